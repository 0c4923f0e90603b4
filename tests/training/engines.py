"""A DeepSpeed engine in this process, at one worker, with what it is fed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.shards import ShardSet
from training.config import RunConfig
from training.configs.batches import BatchesConfig
from training.configs.objective import PredictConfig
from training.data import open_data
from training.engine.connection import connect
from training.engine.engine import Engine
from training.objectives import Examples, Learner, Predict, build_objective
from training.recipes import get_recipe
from training.saving import checkpoints, manifest
from training.saving.manifest import Checkpoint
from training.saving.verified_files import VerifiedFiles

SCALED_WELL = '{"fp16": {"initial_scale_power": 6}}'
"""For a small model in fp16, whose gradients overflow at DeepSpeed's first scale."""


def save(engine: Engine, root: Path, state: dict[str, Any]) -> Checkpoint:
    snapshot = engine.snapshot(str(root), "step-1", state, copied=False)
    checkpoints.commit(str(root), name="step-1", step=1, state=state, files=snapshot.write())
    return manifest.read_manifest(str(root), "step-1")


def load(engine: Engine, root: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    return engine.load(str(root), checkpoint, VerifiedFiles(str(root), checkpoint))


def tiny(**engine: Any) -> RunConfig:
    """With a DeepSpeed JSON, so that even a lone worker runs the stage that is asked for."""
    recipe = get_recipe("gpt_tiny")
    assert isinstance(recipe.objective, PredictConfig)
    small = {"model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "hidden_dim": 32}
    shape = replace(recipe.objective.model, **small, dropout=engine.pop("dropout", 0.1))
    average, clip_norm = engine.pop("ema_decay", None), engine.pop("clip_norm", 1.0)
    engine = {"deepspeed_config": "{}"} | engine
    return replace(
        recipe,
        objective=replace(recipe.objective, prefix_frames=1, model=shape),
        optimizer=replace(recipe.optimizer, ema_decay=average, clip_norm=clip_norm),
        batches=BatchesConfig(global_batch=4, micro_batch=2),
        engine=replace(recipe.engine, **engine),
        num_workers=1,
    )


class Training:
    """An engine with what it is fed, at one worker."""

    def __init__(self, config: RunConfig, token_set: ShardSet) -> None:
        self.config = config
        objective = build_objective(config, open_data(config, token_set.uri))
        torch.manual_seed(0)
        self.engine = Engine(Learner(objective), config, connect())
        self.examples = micro_batches(objective)
        self.num_targets = sum(map(objective.count_targets, self.examples))

    def step(self, number: int) -> float:
        losses = self.engine.update(
            self.examples, seeds=[2 * number, 2 * number + 1], lr=1e-2, num_targets=self.num_targets
        )
        return float(losses["loss"])

    def steps(self, *numbers: int) -> list[float]:
        return [self.step(number) for number in numbers]

    def weights(self) -> dict[str, torch.Tensor]:
        weights = self.engine.weights()
        assert weights is not None
        return weights


def micro_batches(objective: Any) -> list[Examples]:
    assert isinstance(objective, Predict)
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 16, (4, 2, 2)).astype(np.uint16) for _ in range(4)]
    return [objective.examples(clips[:2], None), objective.examples(clips[2:], None)]
