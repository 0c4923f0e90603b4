"""The commit protocol of checkpoints: one exists once its manifest does, and not before.

Knows files, hashes and manifests; what is in the files is the engine's matter. So a rank that dies while
saving leaves rubbish that nobody mistakes for a checkpoint, and a file that rots later is found before it is
read.
"""

import contextlib
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from infra import storage
from infra.errors import CheckpointError, ReelgptError
from training.ranks import Ranks
from training.saving.manifest import (
    FOLDER,
    FORMAT_VERSION,
    UNREADABLE,
    Checkpoint,
    Damage,
    FileRecord,
    Problem,
    committed,
    delete,
    read_manifest,
    write_manifest,
)
from training.saving.verified_files import VerifiedFiles, problem_of

if TYPE_CHECKING:
    from training.saving.copies import Copies


@dataclass(frozen=True, slots=True)
class Found:
    checkpoint: Checkpoint | None
    passed_over: tuple[Damage, ...]
    files: VerifiedFiles | None = None
    """Of the checkpoint: what this rank has read of it already."""


def new_suffix() -> str:
    """Of the names of all that one group of workers saves: no other group has it."""
    return uuid.uuid4().hex[:8]


def name_of(step: int, suffix: str) -> str:
    """Of the folder of one attempt to save: no other attempt has it."""
    return f"step-{step:08d}-{suffix}"


def commit(root: str, *, name: str, step: int, state: dict[str, Any], files: Iterable[FileRecord]) -> None:
    """Makes the files of `name` a checkpoint. Whoever calls knows that every rank's are on the disk."""
    checkpoint = Checkpoint(
        format_version=FORMAT_VERSION,
        name=name,
        step=step,
        committed_at=time.time(),
        state=state,
        files=tuple(sorted(files, key=lambda record: record.name)),
    )
    write_manifest(root, checkpoint)


def abandon(root: str, name: str) -> None:
    """Deletes what an attempt has written that will not be committed: a full disk needs the room."""
    with contextlib.suppress(ReelgptError):
        delete(root, name)


def find(
    root: str, ranks: Ranks, layout: dict[str, Any] | None = None, *, copies: "Copies | None" = None
) -> Found:
    """The newest whole checkpoint, here or among the copies; None where none was ever committed.

    Rank 0 looks at manifests and sizes and tells the others; each rank hashes what it will read, which is
    every file, shared out, where `layout` is not the one that the checkpoint was saved in. What is damaged is
    named, and the next older one taken, unless its copy is whole. Raises CheckpointError where there are some
    and none is whole.
    """
    candidates, elsewhere, passed_over = ranks.on_first(lambda: _candidates(root, copies))
    for candidate in candidates:
        files = VerifiedFiles(root, candidate)
        mine = _own_share(candidate, ranks, is_as_saved=layout == candidate.state.get("layout"))
        problem = _problem(files, mine, ranks)
        if problem and copies and candidate.name in elsewhere:
            problem = ranks.on_first(partial(_fetch, copies, candidate.name)) or _problem(files, mine, ranks)
        if problem is None:
            return Found(candidate, tuple(passed_over), files)
        passed_over.append(Damage(candidate.name, problem))
    if passed_over:
        raise CheckpointError(
            f"no checkpoint in {root} is whole ({'; '.join(map(str, passed_over))}); "
            f"restore one of them, or start anew in another run directory"
        )
    return Found(None, ())


def problems(uri: str) -> list[str]:
    """What is wrong with the checkpoint at `uri`, a sentence each; empty when every byte is as committed."""
    root, _, name = storage.absolute(uri).rstrip("/").rpartition("/")
    try:
        checkpoint = read_manifest(root, name)
    except UNREADABLE as error:
        return [str(error)]
    checks = (problem_of(storage.join(root, name), record) for record in checkpoint.files)
    return [str(problem) for problem in checks if problem]


def prune(
    root: str, *, keep_last: int, keep_every_steps: int | None = None, passed_over: Iterable[Damage] = ()
) -> None:
    """Deletes all but the last checkpoints and those of every so many steps, what has rotted, and what dead
    attempts left behind, which has no manifest.

    `passed_over`: what was found to be damaged, and does not count. Of it and of the rest, what could not be
    read is spared; and so is a folder that somebody renamed, or of a step after the newest checkpoint's:
    somebody may be writing it.
    """
    looked_at, damaged = committed(root)
    known = {damage.name: damage.problem.is_rot for damage in (*damaged, *passed_over)}
    whole = [checkpoint for checkpoint in looked_at if checkpoint.name not in known]
    newest = whole[0].step if whole else 0
    kept = {checkpoint.name for checkpoint in whole[:keep_last]}
    kept |= {name for name, is_rot in known.items() if not is_rot}
    if keep_every_steps is not None:
        kept |= _first_of_each(whole, keep_every_steps)
    for name in sorted({file.name.partition("/")[0] for file in storage.list_files(root)} - kept):
        folder = FOLDER.fullmatch(name)
        if folder and (name in known or int(folder[1]) <= newest):
            delete(root, name)


def _first_of_each(whole: Sequence[Checkpoint], every_steps: int) -> set[str]:
    """Names of those at a multiple, or of the first after it: the multiple itself may be a step that is left
    out."""
    first: dict[int, Checkpoint] = {}
    for checkpoint in sorted(whole, key=lambda checkpoint: (-checkpoint.step, checkpoint.committed_at)):
        first[checkpoint.step // every_steps] = checkpoint
    return {checkpoint.name for multiple, checkpoint in first.items() if multiple}


def rewind(root: str, step: int) -> None:
    """Deletes the checkpoints later than `step`. Raises CheckpointError unless that of `step` is whole."""
    whole, _ = committed(root)
    chosen = next((checkpoint for checkpoint in whole if checkpoint.step == step), None)
    if chosen is None:
        known = sorted({checkpoint.step for checkpoint in whole})
        raise CheckpointError(
            f"there is no whole checkpoint of step {step} in {root}; it has those of {known}"
        )
    if found := problems(storage.join(root, chosen.name)):
        raise CheckpointError(
            f"the checkpoint of step {step} in {root} is damaged: {found[0]}; take another step"
        )
    for checkpoint in whole:
        if checkpoint.step > step:
            delete(root, checkpoint.name)


def _candidates(root: str, copies: "Copies | None") -> tuple[list[Checkpoint], frozenset[str], list[Damage]]:
    """Checkpoints to try, newest first; the names of those that have a copy; what is damaged for certain."""
    here, damaged = committed(root)
    there = _among_copies(copies, here) if copies else []
    elsewhere = frozenset(checkpoint.name for checkpoint in there)
    known = {checkpoint.name: checkpoint for checkpoint in (*there, *here)}
    candidates = sorted(known.values(), key=lambda checkpoint: checkpoint.age, reverse=True)
    return candidates, elsewhere, [damage for damage in damaged if damage.name not in elsewhere]


def _among_copies(copies: "Copies", here: list[Checkpoint]) -> list[Checkpoint]:
    """Empty where they are out of reach and the run can do without; where nothing is here, it cannot."""
    try:
        return copies.committed()[0]
    except ReelgptError as error:
        if not here:
            raise
        sys.stderr.write(
            f"{error}; a newer checkpoint may lie there, and the run goes on from the newest one here, "
            f"of step {here[0].step}\n"
        )
        return []


def _problem(files: VerifiedFiles, mine: Iterable[FileRecord], ranks: Ranks) -> Problem | None:
    """What is wrong with a checkpoint, as the first rank says that finds something in its files."""
    return ranks.first_of(next(filter(None, map(files.problem, mine)), None))


def _fetch(copies: "Copies", name: str) -> Problem | None:
    try:
        copies.fetch(name)
    except UNREADABLE as error:
        return Problem.of(error)
    return None


def _own_share(checkpoint: Checkpoint, ranks: Ranks, *, is_as_saved: bool) -> Sequence[FileRecord]:
    """What a rank reads: its own files, and rank 0's, which everybody shares; in another layout all of them
    are read, by one rank each."""
    if is_as_saved:
        return [record for record in checkpoint.files if record.rank in (0, ranks.rank)]
    return checkpoint.files[ranks.rank :: ranks.world_size]
