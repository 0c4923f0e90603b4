"""When a run is saved, and what of it is kept. Imports nothing heavy."""

from dataclasses import dataclass

from infra.configs import check_at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointsConfig:
    every_steps: int
    keep_last: int = 2
    """Older checkpoints are deleted once a newer one is committed."""

    def __post_init__(self) -> None:
        check_at_least(1, every_steps=self.every_steps, keep_last=self.keep_last)
