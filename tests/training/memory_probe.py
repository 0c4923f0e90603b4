"""Real engines, one after the other, each of which says how many bytes a rank of it holds at its fullest.

`python -m tests.training.memory_probe CASES` under torchrun; `CASES`: EngineConfigs as a JSON list.
"""

import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from infra import configs
from model.vocabulary import Vocabulary
from tests.training.engines import micro_batches, tiny
from training.config import RunConfig
from training.configs.engine import EngineConfig
from training.configs.objective import PredictConfig
from training.engine.connection import connect
from training.engine.engine import Engine
from training.objectives import Learner, Predict

BUCKETS = json.dumps(
    {
        "zero_optimization": {
            "reduce_bucket_size": 20_000,
            "stage3_prefetch_bucket_size": 20_000,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
        }
    }
)
"""Small ones, and no weights of stage 3 that stay whole because they are small, as all are here."""


LETTING_GO_SECONDS = 0.2
"""What a collective has moved, gloo's thread may hold for a moment longer."""


class Scales:
    """Weighs the tensors that came into being since they were set up, and the gradients behind them."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()  # what is there already is out of sight
        self.heaviest = 0

    def weigh(self) -> None:
        torch.distributed.barrier()
        time.sleep(LETTING_GO_SECONDS)
        gc.collect()
        found: dict[int, int] = {}
        for thing in gc.get_objects():
            if issubclass(type(thing), Tensor):
                for tensor in (thing, thing.grad if thing.is_leaf else None):
                    if tensor is not None and tensor.numel():
                        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        self.heaviest = max(self.heaviest, sum(found.values()))


def probe(engine_config: EngineConfig) -> dict[str, int]:
    scales, ranks = Scales(), connect()
    config = run_config(engine_config, ranks.world_size)
    learner = Learner(objective(config))
    num_parameters = count(learner)
    engine = Engine(learner, config, ranks)
    with weighed_after_each_backward(engine, scales):
        for step in (1, 2):
            engine.update(micro_batches(objective(config)), seeds=[step, step], lr=1e-3, num_targets=8)
    engine.close()
    return {"parameters": num_parameters, "bytes": scales.heaviest}


@contextmanager
def weighed_after_each_backward(engine: Engine, scales: Scales) -> Iterator[None]:
    step = engine._engine.step

    def weighed_step() -> None:
        scales.weigh()
        step()

    engine._engine.step = weighed_step
    yield
    engine._engine.step = step


def run_config(engine: EngineConfig, world_size: int) -> RunConfig:
    config = tiny()
    assert isinstance(config.objective, PredictConfig)
    shape = replace(config.objective.model, model_dim=64, num_layers=4, hidden_dim=128)
    return replace(
        config,
        engine=replace(engine, deepspeed_config=BUCKETS if engine.zero_stage else None),
        objective=replace(config.objective, model=shape),
        batches=replace(config.batches, global_batch=4 * world_size, micro_batch=2),
        num_workers=world_size,
    )


def objective(config: RunConfig, *, num_codes: int = 16, code_levels: tuple[int, ...] = (4, 4)) -> Any:
    assert isinstance(config.objective, PredictConfig)
    vocabulary = Vocabulary(num_codes=num_codes)
    shape = config.objective.model.config(
        vocabulary_size=vocabulary.size, context_tokens=400, code_levels=code_levels
    )
    return Predict(config.objective, shape, vocabulary)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    answers = [probe(configs.from_dict(EngineConfig, case)) for case in json.loads(sys.argv[1])]
    if torch.distributed.get_rank() == 0:
        sys.stdout.write(json.dumps(answers) + "\n")
