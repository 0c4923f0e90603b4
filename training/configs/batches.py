"""What a step takes: settings of the loader. Imports nothing heavy."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from infra.configs import check_at_least
from infra.errors import ConfigError

STEPS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchesConfig:
    global_batch: int
    """Clips a step, over all workers and accumulated micro-batches."""
    micro_batch: int
    """Clips in one forward pass of one worker, all of one grid."""
    allow_uneven: bool = False
    """Let workers train among whom a step's micro-batches cannot be shared evenly, as 7 that are left of 8:
    those with fewer do one again that counts for nothing, so that a step takes as long as for those with
    most. The clips stay the same."""
    window_groups: int = 32
    """Row groups whose rows are shuffled among each other: a batch comes from so many places. Memory is
    needed for two such windows of each grid of each shard set, and a row group is about a MiB."""
    weights: tuple[float, ...] = ()
    """Share of the clips that each shard set gives, in the order of --data, as 0.7 0.3; by their sizes if
    none are given."""
    skip_steps: tuple[str, ...] = ()
    """Steps that are left out with their data, as 120-140: step 141 follows 119, with what it would have had
    anyway. What is due at a step that is left out happens at the next one. To jump over a loss spike, go on
    from a checkpoint before it with --resume."""
    prefetch_steps: int = 2
    """Steps whose batches are made ready in the background; 0 makes them when they are needed."""
    reader_threads: int = 4
    """Row groups that are read at the same time."""
    cache_dir: str | None = None
    """Where row groups of remote shard sets are kept, for all processes of this machine; by default
    reelgpt/shards in $XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = 16.0
    """Most that the cache may hold, in 10^9 bytes; 0 turns it off."""

    def __post_init__(self) -> None:
        check_at_least(
            1,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch,
            window_groups=self.window_groups,
            reader_threads=self.reader_threads,
        )
        check_at_least(0, prefetch_steps=self.prefetch_steps)
        if not 0 <= self.cache_gb < float("inf"):
            raise ConfigError(f"cache_gb={self.cache_gb} must be at least 0, which turns the cache off")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ConfigError(
                f"weights={self.weights} must all be above 0; leave a shard set out of --data instead"
            )
        skipped_until(0, self.skip_steps)

    def steps_taken(self, first: int, last: int) -> Iterator[int]:
        """The steps from `first` to `last` but for those that are skipped."""
        skipped = skipped_until(last, self.skip_steps)
        return (step for step in range(first, last + 1) if step not in skipped)

    def step_before(self, step: int) -> int:
        """The last step that is taken before `step`; 0 where it is the first."""
        before = step - 1
        for first, last in sorted(map(_range, self.skip_steps), key=lambda ends: ends[1], reverse=True):
            before = first - 1 if first <= before <= last else before
        return before

    def clips_taken(self, step: int) -> int:
        """Once `step` is done."""
        return (step - len(skipped_until(step, self.skip_steps))) * self.global_batch

    @property
    def num_micro_batches(self) -> int:
        """Of a step, over all workers."""
        return self.global_batch // self.micro_batch

    def micro_batches_per_worker(self, world_size: int) -> int:
        """Micro-batches that each worker accumulates in a step, or where they are shared unevenly, the most
        that one does. Raises ConfigError naming legal sizes."""
        self.require_shared_among(world_size)
        return -(-self.num_micro_batches // world_size)

    def require_shared_among(self, world_size: int) -> None:
        """Raises ConfigError, naming legal sizes, where so many workers may not train."""
        if self.is_shared_among(world_size):
            return
        least = self.micro_batch * world_size
        unit = self.micro_batch if self.allow_uneven else least
        below = self.global_batch // unit * unit
        legal = f"{below} or {below + unit}" if below >= least else f"{least}"
        raise ConfigError(
            f"batches.global_batch={self.global_batch} does not divide into {world_size} workers x "
            f"micro-batches of {self.micro_batch} clips; the nearest sizes that do: {legal}"
            + self._way_out(world_size)
        )

    def is_shared_among(self, world_size: int) -> bool:
        """Whether so many workers may train."""
        if self.allow_uneven:
            return self.global_batch % self.micro_batch == 0 and world_size <= self.num_micro_batches
        return self.global_batch % (self.micro_batch * world_size) == 0

    def _way_out(self, world_size: int) -> str:
        """The option that makes this size legal, if it would."""
        if not replace(self, allow_uneven=True).is_shared_among(world_size):
            return ""
        return "; or give --batches.allow-uneven"


def skipped_until(step: int, skip_steps: Sequence[str]) -> set[int]:
    """The steps up to `step` that ranges such as 7 or 120-140 leave out. Raises ConfigError where one is
    none."""
    skipped: set[int] = set()
    for first, last in map(_range, skip_steps):
        skipped.update(range(first, min(last, step) + 1))
    return skipped


def _range(text: str) -> tuple[int, int]:
    found = STEPS.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(
            f"skip_steps={text!r} is no range of steps; give the first and the last, as 120-140"
        )
    return first, last
