"""Another number of steps: a run goes on with it where every step done so far would have been the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.errors import ConfigError, UsageError
from pipelines.shards import ShardSet
from tests.training import faults, runs
from tests.training.faults import Bench, Moment
from tests.training.tiny_run import TinyRun, summary
from training import going_on
from training.data import TrainingData, open_data
from training.recipes import get_recipe
from training.run_identity import identity, refuse_mismatch
from training.saving import manifest
from training.tracking import tracking_record

WSD = {"schedule": "wsd", "warmup_steps": 2, "decay_share": 0.25}
"""12 steps of it are at their peak up to step 9, 24 up to step 18."""
CONSTANT = {"schedule": "wsd", "warmup_steps": 2, "final_lr_share": 1.0}
SHORT = ("--optimizer.schedule=wsd", "--optimizer.decay-share=0.5", "--checkpoints.keep-last=9")


@pytest.fixture
def data(frame_set: ShardSet) -> TrainingData:
    return open_data(get_recipe("tokenizer_tiny"), frame_set.uri)


def a_run(
    folder: Path, data: TrainingData, *reached: int, is_finished: bool = False, **schedule: Any
) -> TinyRun:
    run = TinyRun(folder, data, steps=12, **schedule)
    run.command("auto")
    run.reach(*reached)
    if is_finished:
        storage.write_json(run.directory.result, summary(12))
    return run


def test_before_it_decays_a_run_goes_on_with_more_steps_or_fewer(tmp_path: Path, data: TrainingData) -> None:
    a_run(tmp_path, data, 3, 6, 9, **WSD)
    for steps in (24, 12, 100):
        other = TinyRun(tmp_path, data, steps=steps, **WSD)
        other.command("auto")
        assert other.told() == [3, 6, 9]
        assert other.directory.record()["config"]["steps"] == steps


@pytest.mark.parametrize("is_finished", [True, False])
def test_once_it_decays_it_goes_back_to_before(tmp_path: Path, data: TrainingData, is_finished: bool) -> None:
    run = a_run(tmp_path, data, 6, 9, 10, is_finished=is_finished, **WSD)
    longer = TinyRun(tmp_path, data, steps=24, **WSD)
    with pytest.raises(
        ConfigError,
        match="steps is 12 there and 24 here; go on with --steps 12, go back with --resume 9, as both are "
        "the same up to step 9, or give another --run-dir",
    ):
        longer.command("auto")
    assert run.told() == [6, 9, 10]
    longer.command("9")
    assert longer.told() == [6, 9]
    assert going_on.finished(longer.directory, longer.config, resume="9") is None
    longer.reach(12)
    longer.command("9")
    assert longer.told() == [6, 9, 12]
    with pytest.raises(ConfigError, match="go back with --resume 9/2, as both"):
        run.command("auto")


def test_where_no_checkpoint_is_left_of_before_it_is_said(tmp_path: Path, data: TrainingData) -> None:
    a_run(tmp_path, data, 12, **WSD)
    with pytest.raises(
        ConfigError, match=r"both are the same up to step 9, and no checkpoint is left of then"
    ):
        TinyRun(tmp_path, data, steps=24, **WSD).command("auto")


def test_a_copy_of_before_is_a_way_back_too(tmp_path: Path, data: TrainingData) -> None:
    run = a_run(tmp_path, data, 9, 12, **WSD)
    manifest.delete(run.directory.checkpoints, manifest.committed(run.directory.checkpoints)[0][1].name)
    longer = TinyRun(tmp_path, data, steps=24, **WSD)
    with pytest.raises(ConfigError, match="go back with --resume 9, as both"):
        longer.command("auto")
    longer.command("9")
    assert longer.told() == [9]


def test_where_nobody_looked_for_a_checkpoint_none_is_said_to_be_left(
    tmp_path: Path, data: TrainingData
) -> None:
    """As in a worker."""
    short, long = (identity(TinyRun(tmp_path, data, steps=steps, **WSD).config, data) for steps in (12, 24))
    with pytest.raises(ConfigError, match=r"--steps 12 \(both are the same up to step 9\), or give"):
        refuse_mismatch(short, long, "run", step=12)


def test_a_finished_run_whose_rate_never_fell_goes_on_as_it_is(tmp_path: Path, data: TrainingData) -> None:
    run = a_run(tmp_path, data, 9, 12, is_finished=True, **CONSTANT)
    assert going_on.finished(run.directory, run.config, resume="auto") == summary(12)
    longer = TinyRun(tmp_path, data, steps=24, **CONSTANT)
    assert going_on.finished(longer.directory, longer.config, resume="auto") is None
    longer.command("auto")
    assert longer.told() == [9, 12]
    assert longer.directory.finished() is None


def test_steps_that_are_done_cannot_be_left_out_again(tmp_path: Path, data: TrainingData) -> None:
    a_run(tmp_path, data, 9, 12, **CONSTANT)
    with pytest.raises(ConfigError, match="go back with --resume 9, as both are the same up to step 10"):
        TinyRun(tmp_path, data, steps=10, **CONSTANT).command("auto")


@pytest.mark.parametrize("schedule", [WSD, CONSTANT])
def test_a_finished_run_without_checkpoints_is_not_begun_anew(
    tmp_path: Path, data: TrainingData, schedule: dict[str, Any]
) -> None:
    run = a_run(tmp_path, data, 12, is_finished=True, **schedule)
    shutil.rmtree(run.directory.checkpoints)
    shutil.rmtree(run.copies.uri)
    with pytest.raises(UsageError, match="steps is 12 there" if schedule is WSD else "with --init-from"):
        TinyRun(tmp_path, data, steps=24, **schedule).command("auto")


@pytest.mark.parametrize(("steps", "is_another"), [(24, False), (14, True)])
def test_a_step_that_was_told_and_is_another_now_makes_another_run_for_mlflow(
    tmp_path: Path, data: TrainingData, steps: int, is_another: bool
) -> None:
    """Of 24 steps the 14th was told and lost by a kill; with 14 in all its rate is the lowest."""
    run = TinyRun(tmp_path, data, steps=24, **WSD)
    run.command("auto")
    run.reach(9)
    storage.append(run.directory.metrics, b'{"step": 14}\n')
    tracking_record.remember(run.directory.path, tracking_record.TrackingRecord(mlflow_run_id="the first"))
    TinyRun(tmp_path, data, steps=steps, **WSD).command("auto")
    record = tracking_record.recall(run.directory.path)
    assert record is not None
    assert record.branched_from == ("the first" if is_another else None)


def test_what_was_told_is_kept_up_to_the_copy_that_the_run_goes_on_from(
    tmp_path: Path, data: TrainingData
) -> None:
    run = a_run(tmp_path, data, 3, 6, 9, **CONSTANT)
    storage.append(run.directory.metrics, b'{"step": 11}\n')
    shutil.rmtree(run.directory.checkpoints)
    shorter = TinyRun(tmp_path, data, steps=10, **CONSTANT)
    shorter.command("auto")
    assert shorter.told() == [3, 6, 9]


def test_what_was_told_before_another_machine_lengthened_the_run_is_forgotten(
    tmp_path: Path, data: TrainingData
) -> None:
    """Its copies are further on, and were never where this directory had come to."""
    run = a_run(tmp_path, data, 3, 6, 9, **WSD)
    here, aside = Path(run.directory.path), tmp_path / "aside"
    shutil.copytree(here, aside)
    longer = TinyRun(tmp_path, data, steps=24, **WSD)
    longer.command("auto")
    longer.reach(12, 15)
    shutil.rmtree(here)
    aside.rename(here)
    storage.append(run.directory.metrics, b'{"step": 11}\n')
    longer.command("auto")
    assert longer.told() == [3, 6, 9]


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
def test_a_finished_run_that_is_lengthened_is_one_that_was_as_long_from_the_start(
    bench: Bench, tmp_path: Path
) -> None:
    """Back to before its decay, killed on the way, and repeated."""
    run_dir, whole = tmp_path / "run", bench.undisturbed(*SHORT)
    first = bench.run(run_dir, *SHORT, "--steps=6")
    longer = *SHORT, "--resume=3"
    assert "go back with --resume 3, as both" in bench.run(run_dir, *SHORT, code=2)["error"]
    bench.killed(run_dir, *longer, rank=0, faults=[faults.at(Moment(0, 10, "data"))])
    assert not (run_dir / "model").exists()
    newest = runs.newest_committed(run_dir)
    assert newest in (6, 9)
    summary = bench.run(run_dir, *longer)
    assert summary["resumed_from"] == newest
    assert summary["fingerprint"] != first["fingerprint"]
    faults.require_same(run_dir, summary, whole)
    assert bench.run(run_dir, *longer)["was_finished"]


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.exhaustive
def test_a_finished_run_of_one_rate_goes_on_from_its_end(bench: Bench, tmp_path: Path) -> None:
    run_dir, options = tmp_path / "run", (*SHORT, "--optimizer.final-lr-share=1")
    whole = bench.undisturbed(*options)
    bench.run(run_dir, *options, "--steps=6")
    summary = bench.run(run_dir, *options)
    assert summary["resumed_from"] == 6
    assert summary["fingerprint"] == whole.summary["fingerprint"]
    assert faults.losses(run_dir) == faults.losses(whole.run_dir)
