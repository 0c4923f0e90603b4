"""Copies of checkpoints in a second place; that it may be an object store is shown from end to end."""

from dataclasses import replace
from pathlib import Path

import pytest

from infra import storage
from infra.errors import CheckpointError, ReelgptError, UsageError
from tests.training.tiny_checkpoints import commit, flip_a_bit
from training.configs.checkpoints import CheckpointsConfig
from training.going_on import Kept
from training.ranks import Ranks
from training.recipes import get_recipe
from training.run_directory import RunDirectory
from training.saving import checkpoints
from training.saving.copies import Copies
from training.saving.manifest import MANIFEST


class Place:
    """A run directory and a place for its copies."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.root = self.run_dir / "checkpoints"
        self.copies = Copies(str(self.run_dir), str(folder / "copy"))
        self.there = folder / "copy" / "checkpoints"

    def commit(self, step: int) -> Path:
        return commit(self.root, step, data=f"weights {step}".encode())

    def found(self) -> checkpoints.Found:
        return checkpoints.find(str(self.root), Ranks(), copies=self.copies)

    def found_step(self) -> int:
        checkpoint = self.found().checkpoint
        assert checkpoint is not None
        return checkpoint.step


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_another_machine_finds_the_newest_copy_and_what_lies_beside(place: Place) -> None:
    for step in (10, 20):
        place.commit(step)
    (place.run_dir / "metrics.jsonl").write_text('{"step": 20}\n')
    place.copies.upload_missing()
    storage.delete(str(place.run_dir))
    assert place.found_step() == 20
    assert (place.run_dir / "metrics.jsonl").read_text() == '{"step": 20}\n'


def test_an_upload_cut_off_is_no_copy(place: Place) -> None:
    place.commit(10)
    place.copies.upload_missing()
    newest = place.commit(20)
    place.copies.upload_missing()
    (place.there / newest.name / MANIFEST).unlink()
    storage.delete(str(place.run_dir))
    assert place.found_step() == 10


@pytest.mark.faults
def test_a_damaged_checkpoint_is_mended_from_its_copy(place: Place) -> None:
    place.commit(10)
    damaged = place.commit(20)
    place.copies.upload_missing()
    flip_a_bit(damaged / "weights.pt")
    assert place.found_step() == 20
    assert (damaged / "weights.pt").read_bytes() == b"weights 20"


@pytest.mark.faults
def test_a_damaged_copy_is_named_and_an_older_one_taken(place: Place) -> None:
    place.commit(10)
    newest = place.commit(20)
    place.copies.upload_missing()
    storage.delete(str(place.run_dir))
    flip_a_bit(place.there / newest.name / "weights.pt")
    found = place.found()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 10
    assert "weights.pt has other bytes than were committed" in str(found.passed_over[0])


@pytest.mark.faults
def test_what_rotted_here_is_not_copied_and_holds_no_other_up(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    rotten = place.commit(10)
    flip_a_bit(rotten / "weights.pt")
    place.commit(20)
    place.copies.catch_up(CheckpointsConfig(every_steps=10))
    assert [copy.step for copy in place.copies.committed()[0]] == [20]
    assert f"{rotten.name}: weights.pt has other bytes than were committed; it is not copied" in (
        capsys.readouterr().err
    )


def test_a_rewind_forgets_the_later_copies_and_fetches_the_one_named(place: Place) -> None:
    for step in (10, 20, 30):
        place.commit(step)
    place.copies.upload_missing()
    storage.delete(str(place.run_dir))
    place.copies.rewind(20)
    assert place.found_step() == 20


@pytest.mark.parametrize("is_here", [True, False])
def test_a_rewind_to_a_step_that_is_nowhere_forgets_nothing(place: Place, is_here: bool) -> None:
    for step in (10, 20, 30):
        place.commit(step)
    place.copies.upload_missing()
    if not is_here:
        storage.delete(str(place.run_dir))
    with pytest.raises(CheckpointError, match=r"no whole checkpoint of step 7 .* of \[10, 20, 30\]"):
        place.copies.rewind(7)
    assert [copy.step for copy in place.copies.committed()[0]] == [30, 20, 10]
    assert place.found_step() == 30


def test_a_rewind_to_a_step_whose_copy_rotted_forgets_nothing(place: Place) -> None:
    folders = [place.commit(step) for step in (10, 20)]
    place.copies.upload_missing()
    storage.delete(str(place.run_dir))
    flip_a_bit(place.there / folders[0].name / "weights.pt")
    with pytest.raises(CheckpointError, match="has other bytes than were committed"):
        place.copies.rewind(10)
    assert place.found_step() == 20


def test_a_rewind_to_what_rotted_here_and_has_no_copy_forgets_nothing(place: Place) -> None:
    folders = [place.commit(step) for step in (10, 20)]
    place.copies.upload_missing()
    storage.delete(str(place.there / folders[0].name))
    flip_a_bit(folders[0] / "weights.pt")
    with pytest.raises(CheckpointError, match=r"step 10 .* is damaged"):
        place.copies.rewind(10)
    assert [copy.step for copy in place.copies.committed()[0]] == [20]


def test_a_rewind_mends_what_rotted_here(place: Place) -> None:
    folders = [place.commit(step) for step in (10, 20)]
    place.copies.upload_missing()
    flip_a_bit(folders[0] / "weights.pt")
    place.copies.rewind(10)
    assert (folders[0] / "weights.pt").read_bytes() == b"weights 10"
    assert [copy.step for copy in place.copies.committed()[0]] == [10]


@pytest.mark.faults
def test_where_the_copies_are_out_of_reach_the_run_goes_on_from_what_is_here(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody answers at the address of the store."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    place.copies = Copies(str(place.run_dir), "s3://bucket/run")
    with pytest.raises(ReelgptError, match=r"s3://bucket/run"):
        place.found()
    place.commit(10)
    config = get_recipe("tokenizer_tiny")
    copying = replace(config, checkpoints=replace(config.checkpoints, copy_to=place.copies.uri))
    kept = Kept.of(RunDirectory.at(str(place.run_dir)), copying)
    assert [checkpoint.step for checkpoint in kept.anywhere] == [10]
    assert place.found_step() == 10
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert (
        "a newer checkpoint may lie there, and the run goes on from the newest one here, of step 10" in said
    )


def test_a_place_that_is_the_run_directory_is_no_second_one(place: Place, tmp_path: Path) -> None:
    place.run_dir.mkdir()
    (tmp_path / "link").symlink_to(place.run_dir)
    config = get_recipe("tokenizer_tiny")
    onto = replace(config, checkpoints=replace(config.checkpoints, copy_to=str(tmp_path / "link")))
    with pytest.raises(UsageError, match="lies in the run directory itself; give a second place"):
        RunDirectory.at(str(place.run_dir)).copies(onto)


def test_a_place_among_what_it_is_a_copy_of_or_that_is_no_folder_is_refused(
    place: Place, tmp_path: Path
) -> None:
    place.commit(10)
    (tmp_path / "file").write_text("")
    for there, why in ((place.root, "lies in the run directory"), (tmp_path / "file", "is no folder")):
        config = get_recipe("gpt_tiny")
        copied = replace(config, checkpoints=replace(config.checkpoints, copy_to=str(there)))
        with pytest.raises(UsageError, match=why):
            RunDirectory.at(str(place.run_dir)).copies(copied)


def test_copies_are_pruned_by_the_same_rules(place: Place) -> None:
    for step in (10, 20, 30):
        place.commit(step)
    place.copies.upload_missing()
    place.copies.prune(keep_last=1, keep_every_steps=20)
    assert sorted(path.name[:13] for path in place.there.iterdir()) == ["step-00000020", "step-00000030"]
