"""DeepSpeed's engine around a learner, and what of a user's JSON it refuses to be made with."""

from typing import Any

import torch
from pydantic import ValidationError

from infra.errors import ConfigError
from training.config import RunConfig
from training.engine.connection import deepspeed
from training.engine.deepspeed_settings import started_with
from training.objectives import Learner

REFUSALS = (
    ValidationError,
    deepspeed.DeepSpeedConfigError,
    AssertionError,
    ImportError,
    TypeError,
    ValueError,
)
"""How DeepSpeed answers a JSON that it cannot use: its sections differ."""


def initialized(
    learner: Learner, optimizer: torch.optim.Optimizer, config: RunConfig, world_size: int
) -> Any:
    """Raises ConfigError naming what of the user's JSON DeepSpeed refuses."""
    try:
        engine, *_ = deepspeed.initialize(
            model=learner,
            optimizer=optimizer,
            config=started_with(config, world_size, has_gpu=torch.cuda.is_available()),
            dist_init_required=False,
        )
    except REFUSALS as error:
        if config.engine.deepspeed_config is None:
            raise
        raise ConfigError(
            f"DeepSpeed refuses engine.deepspeed_config: {_reason(error)}; correct those keys"
        ) from error
    return engine


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
