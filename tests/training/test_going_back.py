"""`--resume STEP`: it happens once, however often the command is repeated, here or on another machine."""

import shutil
from pathlib import Path

import pytest

from infra import storage
from infra.errors import ConfigError
from model.bundle import LINEAGE, RECORD
from pipelines.shards import ShardSet
from tests.training import faults, runs
from tests.training.faults import Bench, Moment
from tests.training.tiny_run import TinyRun, summary
from training import going_on
from training.data import TrainingData, open_data
from training.going_back import GoingBack
from training.recipes import get_recipe
from training.run_directory import RunDirectory
from training.tracking import tracking_record


@pytest.fixture
def data(frame_set: ShardSet) -> TrainingData:
    return open_data(get_recipe("tokenizer_tiny"), frame_set.uri)


@pytest.fixture
def run(tmp_path: Path, data: TrainingData) -> TinyRun:
    tiny = TinyRun(tmp_path, data)
    tiny.command("auto")
    tiny.reach(3, 6)
    return tiny


@pytest.mark.parametrize("resume", ["auto", "-3", "3/0", "3/", "/2", "3.5"])
def test_what_names_no_step(resume: str) -> None:
    assert GoingBack.named(resume) is None


def test_one_going_back_has_one_name() -> None:
    assert {str(GoingBack.named(resume)) for resume in ("3", "03", "3/1")} == {"3"}
    assert str(GoingBack.named("3/2")) == "3/2"


def test_the_command_repeated_goes_on_from_where_it_was(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run.command("3")
    assert run.directory.newest_step() == 3
    assert run.told() == [3]
    assert not capsys.readouterr().err
    run.reach(6)
    for resume in ("3", "auto", "3", "3/1"):
        run.command(resume)
        assert run.directory.newest_step() == 6
    assert "to go back there once more, give --resume 3/2" in capsys.readouterr().err


def test_a_going_back_of_another_name_happens(run: TinyRun) -> None:
    run.command("3")
    for nth in (2, 3):
        run.reach(6)
        for _ in range(2):
            run.command(f"3/{nth}")
            assert run.directory.newest_step() == 3
    run.reach(6)
    run.command("3/2")
    assert run.directory.newest_step() == 6


def test_what_was_gone_back_to_is_known_on_another_machine(run: TinyRun) -> None:
    """Which has nothing but the copies: their checkpoints say it."""
    run.command("3")
    run.reach(6)
    shutil.rmtree(run.directory.path)
    run.command("3")
    assert [copy.step for copy in run.copies.committed()[0]] == [6, 3]


def test_a_going_back_that_was_cut_short_is_done_again(
    tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a finished run that it began from is finished no longer: its model may be gone."""
    run = TinyRun(tmp_path, data, steps=6)
    run.command("auto")
    run.reach(3, 6)
    storage.write_json(f"{run.directory.bundle}/{LINEAGE}", {"checkpoint": {"step": 6}})
    storage.write_json(run.directory.result, summary(6))
    with monkeypatch.context() as cut_short:
        cut_short.setattr(RunDirectory, "write_metrics", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.command("3")
    assert run.told() == [3, 6]
    assert not storage.exists(run.directory.bundle)
    assert going_on.finished(run.directory, run.config, resume="auto") is None
    run.command("3")
    assert run.told() == [3]


def test_a_copy_holds_up_no_going_back_before_the_steps_to_skip(run: TinyRun, tmp_path: Path) -> None:
    other = TinyRun(tmp_path, run.data, skip=("5",))
    shutil.rmtree(run.directory.path)
    with pytest.raises(ConfigError, match="go back with --resume 3, as both are the same up to step 4,"):
        other.command("auto")
    other.command("3")
    assert other.directory.newest_step() == 3


def test_going_back_again_for_other_steps_to_skip_is_told_its_name(run: TinyRun, tmp_path: Path) -> None:
    run.command("3")
    run.reach(6)
    other = TinyRun(tmp_path, run.data, skip=("5",))
    with pytest.raises(ConfigError, match="go back with --resume 3/2, as both are the same up to step 4"):
        other.command("3")
    assert run.told() == [3, 6]
    other.command("3/2")
    assert run.told() == [3]


def test_what_it_drew_and_became_after_the_step_is_forgotten(run: TinyRun) -> None:
    directory = run.directory
    for step in (3, 6):
        storage.write(directory.sample(step), b"a picture")
        storage.write(f"{directory.bundle_of(step)}/{RECORD}", b"{}")
    storage.write_json(f"{directory.bundle}/{LINEAGE}", {"checkpoint": {"step": 6}})
    run.command("6")
    assert directory.bundle_steps() == [3, 6]
    assert storage.exists(directory.bundle)
    run.command("3")
    assert directory.bundle_steps() == [3]
    assert not storage.exists(directory.bundle_of(6))
    assert not storage.exists(directory.bundle)
    assert [file.name for file in storage.list_files(directory.samples)] == ["step-00000003.png"]


def test_a_branch_that_mlflow_never_heard_of_comes_from_where_the_one_before_it_came(run: TinyRun) -> None:
    place = run.directory.path
    tracking_record.remember(place, tracking_record.TrackingRecord(mlflow_run_id="the first"))
    for _ in range(2):
        tracking_record.branch(place)
        record = tracking_record.recall(place)
        assert record is not None
        assert record.branched_from == "the first"


@pytest.mark.parametrize(("skip", "is_another"), [("7", True), ("6-8", None), ("8", False)])
def test_a_step_that_was_told_and_is_skipped_now_makes_another_run_for_mlflow(
    run: TinyRun, tmp_path: Path, skip: str, is_another: bool | None
) -> None:
    """Step 7 was lost by a kill after it was told; step 6 was not, and 8 is to come."""
    place = run.directory.path
    storage.append(run.directory.metrics, b'{"step": 7}\n')
    tracking_record.remember(place, tracking_record.TrackingRecord(mlflow_run_id="the first"))
    other = TinyRun(tmp_path, run.data, skip=(skip,))
    if is_another is None:
        with pytest.raises(ConfigError, match="go back with --resume 3, as both are the same up to step 5,"):
            other.command("auto")
        return
    other.command("auto")
    assert other.told() == ([3, 6] if is_another else [3, 6, 7])
    record = tracking_record.recall(place)
    assert record is not None
    assert record.branched_from == ("the first" if is_another else None)


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
def test_a_run_killed_after_it_went_back_goes_on_from_its_own_steps(bench: Bench, tmp_path: Path) -> None:
    run_dir, keep_all = tmp_path / "run", "--checkpoints.keep-last=9"
    expected = bench.unfinished(run_dir, keep_all)
    kill = faults.at(Moment(0, 10, "data"))  # at step 9 the checkpoint before it is committed at the latest
    bench.killed(run_dir, keep_all, "--resume=3", rank=0, faults=[kill])
    newest = runs.newest_committed(run_dir)
    assert newest in (6, 9)
    summary = bench.run(run_dir, keep_all, "--resume=3")
    assert summary["resumed_from"] == newest
    faults.require_same(run_dir, summary, expected)
    assert bench.run(run_dir, keep_all, "--resume=3")["was_finished"]
