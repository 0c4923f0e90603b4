"""What a step takes: settings of the loader. Imports nothing heavy."""

from dataclasses import dataclass

from infra.configs import check_at_least
from infra.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchesConfig:
    global_batch: int
    """Clips a step, over all workers and accumulated micro-batches."""
    micro_batch: int
    """Clips in one forward pass of one worker."""
    window_groups: int = 8
    """Row groups whose rows are shuffled among each other; memory for that many is needed."""

    def __post_init__(self) -> None:
        check_at_least(
            1, global_batch=self.global_batch, micro_batch=self.micro_batch, window_groups=self.window_groups
        )

    def micro_batches_per_worker(self, world_size: int) -> int:
        """Micro-batches that each worker accumulates in a step. Raises ConfigError naming legal sizes."""
        unit = self.micro_batch * world_size
        if self.global_batch % unit:
            below = self.global_batch // unit * unit
            legal = f"{below} or {below + unit}" if below else f"{unit}"
            raise ConfigError(
                f"batches.global_batch={self.global_batch} does not divide into {world_size} workers x "
                f"micro-batches of {self.micro_batch} clips; the nearest sizes that do: {legal}"
            )
        return self.global_batch // unit
