"""`--resume STEP`: back to the checkpoint of a step, to go on from there as another branch. It happens once.

A command that was killed is repeated as it stands, by people and by schedulers. So a going back has a name,
`3`, and a run remembers the names of those that it has behind it, in its config.json and in every checkpoint:
the second `--resume 3` goes on from where the first one came to. Who means the same step once more says
`3/2`, which is a name like any other. What is forgotten beside checkpoints: see `training.forgetting`.
Imports no torch.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from infra import storage
from training.config import RunConfig
from training.run_directory import RunDirectory
from training.saving import checkpoints, manifest
from training.saving.copies import Copies
from training.saving.manifest import Checkpoint

NAME = re.compile(r"(\d+)(?:/([1-9]\d*))?")
GONE_BACK = "gone_back"
"""Under which config.json and the state of a checkpoint hold the names."""


@dataclass(frozen=True, slots=True)
class GoingBack:
    step: int
    nth: int = 1
    """To this step."""

    @classmethod
    def named(cls, resume: str) -> "GoingBack | None":
        """None where `--resume` names no step."""
        found = NAME.fullmatch(resume)
        return cls(int(found[1]), int(found[2] or 1)) if found else None

    def __str__(self) -> str:
        return str(self.step) if self.nth == 1 else f"{self.step}/{self.nth}"

    def is_behind(self, root: str, copies: Copies | None) -> bool:
        """Whether the newest checkpoint, here in `root` or among the copies, comes after it."""
        newest = manifest.committed(root)[0][:1] + (copies.committed()[0][:1] if copies else [])
        return any(str(self) in checkpoint.state.get(GONE_BACK, ()) for checkpoint in newest)

    def rewind(self, root: str, copies: Copies | None) -> None:
        """Forgets the later checkpoints, once that of the step is known to be whole."""
        if copies is not None:
            copies.rewind(self.step)
        else:
            checkpoints.rewind(root, self.step)


def goes_back(directory: RunDirectory, config: RunConfig, resume: str) -> GoingBack | None:
    """What a command with this `--resume` has to go back for; None where the run has that behind it."""
    named = GoingBack.named(resume)
    if named is None or str(named) in gone_back(directory):
        return None
    return None if named.is_behind(directory.checkpoints, directory.copies(config)) else named


def gone_back(directory: RunDirectory) -> list[str]:
    """Names of the goings back that commands here have done. Raises UsageError where `config.json` is not
    ours."""
    if not storage.exists(directory.config):
        return []
    behind = directory.record().get(GONE_BACK, [])
    if not isinstance(behind, list):
        raise directory.foreign()
    return behind


def ways_back(directory: RunDirectory, kept: Sequence[Checkpoint]) -> list[GoingBack]:
    """One to each of these checkpoints, which come newest first: the next that the run has not behind it."""
    behind = set(gone_back(directory)).union(*(known.state.get(GONE_BACK, ()) for known in kept[:1]))
    return [_next(checkpoint.step, behind) for checkpoint in kept]


def once_more(directory: RunDirectory, done: GoingBack) -> GoingBack:
    return _next(done.step, {str(done), *gone_back(directory)})


def _next(step: int, behind: set[str]) -> GoingBack:
    ways = (GoingBack(step, nth) for nth in count(1))
    return next(way for way in ways if str(way) not in behind)


def joined(*names: Iterable[str]) -> list[str]:
    """All of them, each once."""
    return sorted({name for some in names for name in some})
