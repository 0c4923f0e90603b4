"""Named runs: functions that return a whole config. A variant is a `dataclasses.replace` of one."""

import difflib
from collections.abc import Callable

from infra.errors import ConfigError
from model.config import TokenizerConfig
from training.config import RunConfig
from training.configs.batches import BatchesConfig
from training.configs.checkpoints import CheckpointsConfig
from training.configs.engine import EngineConfig, OptimizerConfig
from training.configs.evaluation import EvaluationConfig
from training.configs.objective import GPTShape, PredictConfig, ReconstructConfig


def tokenizer_tiny() -> RunConfig:
    """An FSQ image tokenizer of 64 px frames that two CPU cores train in a minute."""
    return RunConfig(
        name="tokenizer_tiny",
        objective=ReconstructConfig(
            frames_per_clip=2, model=TokenizerConfig(patch_size=4, base_channels=64, max_channels=256)
        ),
        optimizer=OptimizerConfig(peak_lr=2e-3, final_lr_share=0.02),
        batches=BatchesConfig(global_batch=8, micro_batch=8),
        engine=EngineConfig(zero_stage=0),
        checkpoints=CheckpointsConfig(every_steps=100),
        evaluation=EvaluationConfig(every_steps=100),
        steps=500,
        num_workers=1,
        log_every_steps=5,
        register_as="tokenizer-tiny",
    )


def gpt_tiny() -> RunConfig:
    """A small GPT that continues clips, for two CPU workers; held back hard, as it sees few clips."""
    return RunConfig(
        name="gpt_tiny",
        objective=PredictConfig(
            task="continue",
            prefix_frames=2,
            noise_share=0.3,
            model=GPTShape(
                model_dim=96,
                num_layers=2,
                num_heads=3,
                num_kv_heads=1,
                hidden_dim=256,
                dropout=0.3,
                rope_theta=10.0,
            ),
        ),
        optimizer=OptimizerConfig(peak_lr=1e-3, final_lr_share=0.02, weight_decay=0.1),
        batches=BatchesConfig(global_batch=4, micro_batch=2),
        engine=EngineConfig(zero_stage=2),
        checkpoints=CheckpointsConfig(every_steps=50),
        evaluation=EvaluationConfig(every_steps=50),
        steps=150,
        num_workers=2,
        log_every_steps=5,
        register_as="gpt-tiny",
    )


def gpt_350m() -> RunConfig:
    """A GPT of 350 million parameters for clips of about 4,000 codes, on eight GPUs of 80 GB.

    Heads are 128 wide: on a Hopper GPU attention takes a quarter less time than with 64.
    """
    return RunConfig(
        name="gpt_350m",
        objective=PredictConfig(
            task="continue",
            model=GPTShape(model_dim=1024, num_layers=24, num_heads=8, num_kv_heads=2, hidden_dim=3840),
        ),
        optimizer=OptimizerConfig(
            peak_lr=3e-4, warmup_steps=2000, schedule="wsd", weight_decay=0.1, ema_decay=0.9999
        ),
        batches=BatchesConfig(global_batch=256, micro_batch=8),
        engine=EngineConfig(zero_stage=1, dtype="bf16", compile=True),
        checkpoints=CheckpointsConfig(every_steps=1000),
        evaluation=EvaluationConfig(every_steps=1000, max_clips=512),
        steps=20_000,
        num_workers=8,
        log_every_steps=10,
        register_as="gpt-350m",
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "tokenizer_tiny": tokenizer_tiny,
    "gpt_tiny": gpt_tiny,
    "gpt_350m": gpt_350m,
}


def get_recipe(name: str) -> RunConfig:
    """The config of that name. Raises ConfigError naming those that there are."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no recipe {name!r}; {hint}the recipes are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()
