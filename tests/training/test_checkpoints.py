"""The commit protocol with plain files: what DeepSpeed writes is the engine's matter."""

import errno
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from infra import local_files, storage
from infra.errors import CheckpointError, StorageError
from tests.training.tiny_checkpoints import commit, flip_a_bit, write
from training.ranks import Ranks
from training.saving import checkpoints
from training.saving.hashed_files import hashed_file
from training.saving.manifest import MANIFEST, Damage, Problem, committed

ALONE = Ranks()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def found_step(root: Path) -> int | None:
    checkpoint = checkpoints.find(str(root), ALONE).checkpoint
    return checkpoint.step if checkpoint else None


def test_where_nothing_was_committed_nothing_is_found(root: Path) -> None:
    assert found_step(root) is None


def test_the_newest_is_found_with_its_state(root: Path) -> None:
    commit(root, 10)
    commit(root, 20, state={"step": 20, "units": 7})
    checkpoint = checkpoints.find(str(root), ALONE).checkpoint
    assert checkpoint is not None
    assert checkpoint.state == {"step": 20, "units": 7}


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    with hashed_file(str(tmp_path / "file")) as file:
        file.write(b"front ")
        file.write(memoryview(b"to back"))
    written = (tmp_path / "file").read_bytes()
    assert written == b"front to back"
    assert (file.size, file.hexdigest()) == (len(written), hashlib.sha256(written).hexdigest())


def test_what_was_verified_waits_in_memory_until_it_is_forgotten(root: Path) -> None:
    weights = commit(root, 10) / "weights.pt"
    kept, forgotten = (checkpoints.find(str(root), ALONE).files for _ in range(2))
    assert kept is not None
    assert forgotten is not None
    forgotten.forget()
    weights.write_bytes(b"others")
    assert kept.take(str(weights)).read() == b"weights"
    with pytest.raises(CheckpointError, match="has other bytes than were committed"):
        forgotten.take(str(weights))


def test_without_its_manifest_an_attempt_is_no_checkpoint(root: Path) -> None:
    commit(root, 10)
    (commit(root, 20) / MANIFEST).unlink()
    assert found_step(root) == 10


def test_what_was_written_and_not_committed_is_no_checkpoint(root: Path) -> None:
    commit(root, 10)
    name = checkpoints.name_of(20, checkpoints.new_suffix())
    write(root / name, b"weights")
    assert found_step(root) == 10
    checkpoints.abandon(str(root), name)
    assert not (root / name).exists()


def test_of_two_attempts_at_a_step_the_later_one_counts(root: Path) -> None:
    commit(root, 10, state={"attempt": 1})
    commit(root, 10, state={"attempt": 2})
    checkpoint = checkpoints.find(str(root), ALONE).checkpoint
    assert checkpoint is not None
    assert checkpoint.state == {"attempt": 2}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), "weights.pt is missing"),
        (lambda path: path.write_bytes(b"w"), "has 1 bytes, committed with 7"),
        (flip_a_bit, "has other bytes than were committed"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(root: Path, damage: Any, problem: str) -> None:
    commit(root, 10)
    newest = commit(root, 20)
    damage(newest / "weights.pt")
    found = checkpoints.find(str(root), ALONE)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 10
    (passed_over,) = found.passed_over
    assert passed_over.name == newest.name
    assert problem in passed_over.problem.text


@pytest.mark.faults
def test_a_manifest_cut_off_is_damage_too(root: Path) -> None:
    commit(root, 10)
    manifest = commit(root, 20) / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:50])
    assert found_step(root) == 10
    assert "is no longer JSON" in checkpoints.find(str(root), ALONE).passed_over[0].problem.text


@pytest.mark.faults
def test_a_bit_flipped_in_a_manifest_is_damage_too(root: Path) -> None:
    commit(root, 10)
    manifest = commit(root, 20, state={"step": 20, "seed": 4}) / MANIFEST
    manifest.write_text(manifest.read_text().replace('"seed": 4', '"seed": 5'))
    assert found_step(root) == 10


@pytest.mark.faults
def test_a_checkpoint_that_was_renamed_is_one_and_nobody_sweeps_it_up(root: Path) -> None:
    newest = commit(root, 20)
    kept = newest.rename(root / f"{newest.name}.good")
    assert found_step(root) == 20
    commit(root, 30)
    checkpoints.prune(str(root), keep_last=1)
    assert checkpoints.problems(str(kept)) == []


@pytest.mark.faults
def test_where_none_is_whole_nothing_is_begun_anew(root: Path) -> None:
    for step in (10, 20):
        flip_a_bit(commit(root, step) / "weights.pt")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole .*restore one of them"):
        checkpoints.find(str(root), ALONE)


def test_a_folder_that_may_not_be_read_is_not_taken_for_absent(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(root, 10)
    locked, rest = commit(root, 20), local_files._entries

    def entries(folder: str) -> list[os.DirEntry[str]]:
        if folder == str(locked):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return rest(folder)

    monkeypatch.setattr(local_files, "_entries", entries)
    found = checkpoints.find(str(root), ALONE)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 10
    assert [str(damage) for damage in found.passed_over] == [
        f"{locked.name}: its folder may not be read; check the permissions"
    ]
    checkpoints.prune(str(root), keep_last=1, keep_every_steps=None, passed_over=found.passed_over)
    assert locked.exists()


def test_a_file_out_of_reach_is_not_taken_for_rot(root: Path) -> None:
    """Of two checkpoints, the newer has its file on a disk that is away, and a link to it."""
    commit(root, 10)
    newest = commit(root, 20)
    (newest / "weights.pt").unlink()
    (newest / "weights.pt").symlink_to("/nowhere/weights.pt")
    found = checkpoints.find(str(root), ALONE)
    assert [str(damage) for damage in found.passed_over] == [
        f"{newest.name}: weights.pt is out of reach, as a link to a disk that is away"
    ]
    checkpoints.prune(str(root), keep_last=1, keep_every_steps=None, passed_over=found.passed_over)
    assert (newest / MANIFEST).exists()


def test_a_stray_manifest_is_no_checkpoint(root: Path) -> None:
    commit(root, 10)
    (root / MANIFEST).write_text("{}")
    assert committed(str(root))[1] == []


def test_problems_are_told_without_taking_part(root: Path) -> None:
    checkpoint = commit(root, 10)
    assert checkpoints.problems(str(checkpoint)) == []
    flip_a_bit(checkpoint / "weights.pt")
    assert checkpoints.problems(str(checkpoint)) == ["weights.pt has other bytes than were committed"]


def test_problems_of_a_checkpoint_named_from_where_one_stands(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = commit(root, 10)
    monkeypatch.chdir(root)
    assert checkpoints.problems(checkpoint.name) == []
    (checkpoint / MANIFEST).write_text("{}")
    (problem,) = checkpoints.problems(checkpoint.name)
    assert "is not of format" in problem


class BadDisk(io.RawIOBase):
    """What a file on a failing disk reads like."""

    def readable(self) -> bool:
        return True

    def readinto(self, _: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.faults
def test_a_file_that_cannot_be_read_is_damage_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(root, 10)
    bad, open_input = commit(root, 20).name, storage.open_input
    monkeypatch.setattr(storage, "open_input", lambda uri: BadDisk() if bad in uri else open_input(uri))
    found = checkpoints.find(str(root), ALONE)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 10
    assert "weights.pt cannot be read: [Errno 5]" in found.passed_over[0].problem.text


def test_pruning_spares_what_may_be_in_the_writing(root: Path) -> None:
    commit(root, 10)
    (commit(root, 20) / MANIFEST).unlink()
    checkpoints.prune(str(root), keep_last=1)
    assert sorted(path.name[:13] for path in root.iterdir()) == ["step-00000010", "step-00000020"]


def test_pruning_keeps_the_last_and_sweeps_up_dead_attempts(root: Path) -> None:
    for step in (10, 20, 30):
        commit(root, step)
    (commit(root, 15) / MANIFEST).unlink()
    checkpoints.prune(str(root), keep_last=2)
    assert sorted(path.name[:13] for path in root.iterdir()) == ["step-00000020", "step-00000030"]


@pytest.mark.parametrize(
    "first_kept", [20, 21], ids=["that step", "the first after it, where it was left out"]
)
def test_pruning_keeps_those_of_every_so_many_steps_for_good(root: Path, first_kept: int) -> None:
    for step in (10, first_kept, 30, 40, 50):
        commit(root, step)
    checkpoints.prune(str(root), keep_last=1, keep_every_steps=20)
    assert sorted(path.name[:13] for path in root.iterdir()) == [
        f"step-000000{first_kept}", "step-00000040", "step-00000050",
    ]  # fmt: skip


def test_a_checkpoint_known_as_damaged_is_not_among_those_kept(root: Path) -> None:
    commit(root, 10)
    damaged = commit(root, 20)
    commit(root, 20)
    rotten = Damage(damaged.name, Problem("has other bytes", is_rot=True))
    checkpoints.prune(str(root), keep_last=2, passed_over=[rotten])
    assert not damaged.exists()
    assert sorted(path.name[:13] for path in root.iterdir()) == ["step-00000010", "step-00000020"]


def test_what_could_not_be_read_is_neither_deleted_nor_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(root, 10)
    bad, open_input = commit(root, 20), storage.open_input
    monkeypatch.setattr(storage, "open_input", lambda uri: BadDisk() if bad.name in uri else open_input(uri))
    passed_over = checkpoints.find(str(root), ALONE).passed_over
    commit(root, 20)
    checkpoints.prune(str(root), keep_last=2, passed_over=passed_over)
    assert bad.exists()
    assert [path.name[:13] for path in sorted(root.iterdir())] == [
        "step-00000010", "step-00000020", "step-00000020",
    ]  # fmt: skip


def test_a_manifest_that_could_not_be_read_is_no_reason_to_delete(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, read_bytes = commit(root, 10), storage.read_bytes
    commit(root, 20)

    def read(uri: str) -> bytes:
        if bad.name in uri:
            raise StorageError(f"{uri}: the store is overloaded")
        return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", read)
    checkpoints.prune(str(root), keep_last=1)
    assert bad.exists()


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_checkpoint_of_another_build_is_kept_and_one_that_rotted_is_not(
    root: Path, is_kept: bool
) -> None:
    other, state = commit(root, 10), {"step": 10, "seed": 4}
    commit(root, 20)
    values = json.loads((other / MANIFEST).read_text())
    changed = values | ({"format_version": 2} if is_kept else {"state": state})
    (other / MANIFEST).write_text(json.dumps(changed))
    checkpoints.prune(str(root), keep_last=1)
    assert other.exists() is is_kept


@pytest.mark.faults
@pytest.mark.parametrize(
    "damage", [lambda data: data[:50], lambda data: data[:0], lambda data: b"\xff" + data]
)
def test_a_manifest_that_rotted_is_swept_up(root: Path, damage: Any) -> None:
    rotten = commit(root, 10)
    commit(root, 20)
    (rotten / MANIFEST).write_bytes(damage((rotten / MANIFEST).read_bytes()))
    checkpoints.prune(str(root), keep_last=1)
    assert not rotten.exists()


def test_rewinding_forgets_what_came_after(root: Path) -> None:
    for step in (10, 20, 30):
        commit(root, step)
    checkpoints.rewind(str(root), 20)
    assert found_step(root) == 20


def test_rewinding_to_a_step_without_checkpoint_names_those_there_are(root: Path) -> None:
    commit(root, 10)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint of step 15 .* those of \[10\]"):
        checkpoints.rewind(str(root), 15)
