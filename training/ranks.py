"""The workers of a run as one of them sees it, and the few words they exchange on the host.

Gradients are DeepSpeed's matter; here go counts, flags and small records, over gloo, so that a GPU is not
waited for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from infra.errors import ReelgptError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    rank: int = 0
    world_size: int = 1
    group: "ProcessGroup | None" = None
    """None: a lone worker, which talks to nobody and needs no torch."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def broadcast(self, record: Record) -> Record:
        """What rank 0 holds."""
        if self.group is None:
            return record
        from torch import distributed

        box: list[Any] = [record]
        distributed.broadcast_object_list(box, src=0, group=self.group)
        received: Record = box[0]
        return received

    def on_first(self, action: Callable[[], Record]) -> Record:
        """What `action` gives on rank 0, on every rank; what it refuses, every rank refuses."""
        answer: tuple[Record | None, ReelgptError | None] = (None, None)
        if self.is_first:
            try:
                answer = (action(), None)
            except ReelgptError as error:
                answer = (None, error)
        result, refusal = self.broadcast(answer)
        if refusal is not None:
            raise refusal
        return result  # type: ignore[return-value]

    def gather(self, record: Record) -> list[Record]:
        """What every rank holds, by rank; nobody goes on before all have come."""
        if self.group is None:
            return [record]
        from torch import distributed

        box: list[Any] = [None] * self.world_size
        distributed.all_gather_object(box, record, group=self.group)
        return box

    def first_of(self, record: Record | None) -> Record | None:
        """What the first rank says that has anything to say; nobody goes on before all have come."""
        return next(filter(None, self.gather(record)), None)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, in float64, added in the order of the ranks on every one of them."""
        if self.group is None:
            return list(values)
        return [float(total) for total in self._everyones(values).sum(dim=0)]

    def max(self, values: Sequence[float]) -> list[float]:
        """Of each, the largest of the ranks'."""
        if self.group is None:
            return list(values)
        return [float(largest) for largest in self._everyones(values).amax(dim=0)]

    def _everyones(self, values: Sequence[float]) -> "Tensor":
        """By rank, in float64."""
        import torch
        from torch import distributed

        mine = torch.tensor(values, dtype=torch.float64)
        everyones = [torch.empty_like(mine) for _ in range(self.world_size)]
        distributed.all_gather(everyones, mine, group=self.group)
        return torch.stack(everyones)
