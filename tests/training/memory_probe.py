"""One rank of a real engine, which says how many bytes it holds when its gradients are whole, by dtype."""

import gc
from typing import Any

from torch import Tensor

from training.config import RunConfig
from training.connection import connect
from training.engine import Engine
from training.objectives import Examples, Learner

SMALL_BUCKETS = '{"zero_optimization": {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}}'


def storages() -> dict[int, int]:
    """Bytes of each, by address: of every tensor that Python knows, and of the gradients behind them."""
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.numel():
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def probe(config: RunConfig, objective: Any, examples: list[Examples]) -> dict[str, int]:
    gc.collect()
    before = set(storages())
    ranks = connect()
    learner = Learner(objective)
    num_parameters = sum(p.numel() for p in learner.parameters())
    engine = Engine(learner, config, ranks)
    held: list[int] = []
    step = engine._engine.step

    def watched() -> None:
        if engine._engine.is_gradient_accumulation_boundary():
            gc.collect()
            held.append(sum(size for address, size in storages().items() if address not in before))
        step()

    engine._engine.step = watched
    for number in (1, 2):
        engine.update(examples, seeds=[number] * len(examples), lr=1e-3, num_targets=1)
    gc.collect()
    after = sum(size for address, size in storages().items() if address not in before)
    engine.close()
    return {"parameters": num_parameters, "held": held[-1], "after": after}
