"""Whole runs in processes of their own: whatever happens to them, they end as if nothing had."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import tracking
from pipelines.shards import ShardSet
from tests.faults.matrix import SEED
from tests.training import runs
from tests.training.faults import Undisturbed, newest_checkpoint, require_same

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, token_set: ShardSet, bare: dict[str, str]
) -> Undisturbed:
    """A GPT that two workers under torchrun trained without interruption."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    return Undisturbed(run_dir, runs.run(*gpt(token_set, run_dir), env=bare))


def gpt(token_set: ShardSet, run_dir: Path, launcher: str = "torchrun") -> tuple[str, ...]:
    places = f"--data={token_set.uri}", f"--run-dir={run_dir}", f"--launcher={launcher}"
    return "gpt_tiny", *places, *runs.GPT


@pytest.mark.faults
def test_killed_at_any_moment_and_repeated_it_ends_the_same(
    undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    """SIGKILL of the command takes its workers along; then a torchrun of the user's goes on with the run."""
    run_dir, kill_step = tmp_path / "run", random.Random(SEED).randrange(1, runs.STEPS)
    process = runs.start(*gpt(token_set, run_dir), env=bare)
    runs.kill_once(process, lambda: runs.steps_logged(run_dir) >= kill_step)
    saved = runs.newest_committed(run_dir)
    arguments = [argument for argument in gpt(token_set, run_dir) if "--launcher" not in argument]
    summary = runs.run(*arguments, env=bare, before=runs.TORCHRUN)
    assert summary["resumed_from"] == saved
    require_same(run_dir, summary, undisturbed)


@pytest.mark.exhaustive
@pytest.mark.faults
def test_killed_before_its_first_step_or_after_its_last_it_ends_the_same(
    undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    """In start-up, in evaluation, in the end: at seeded moments, wherever those fall."""
    run_dir, chance = tmp_path / "run", random.Random(SEED)
    moments: list[Callable[[], bool]] = [
        lambda: (run_dir / "config.json").exists(),
        lambda: any((run_dir / "samples").glob("*.png")),
        lambda: runs.steps_logged(run_dir) >= runs.STEPS,
    ]
    for is_time in moments:
        process = runs.start(*gpt(token_set, run_dir), env=bare)
        runs.wait_until(is_time, process)
        time.sleep(chance.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
    require_same(run_dir, runs.run(*gpt(token_set, run_dir), env=bare), undisturbed)


@pytest.mark.exhaustive
@pytest.mark.faults
def test_what_the_first_worker_refuses_at_the_end_is_what_is_said(
    token_set: ShardSet, tokenizer_bundle: str, tmp_path: Path, bare: dict[str, str]
) -> None:
    """Others wait for it: they must not end with a lost connection of their own."""
    run_dir, tokenizer = tmp_path / "run", tmp_path / "tokenizer"
    shutil.copytree(tokenizer_bundle, tokenizer)
    process = runs.start(*gpt(token_set, run_dir), f"--tokenizer={tokenizer}", env=bare)
    runs.wait_until(lambda: runs.steps_logged(run_dir) >= 1, process)
    shutil.rmtree(tokenizer)
    refusal = runs.finish(process, code=1)
    assert "bundle" in refusal["error"]
    assert str(tokenizer) in refusal["error"]


def test_a_lineage_names_the_checkpoint(undisturbed: Undisturbed) -> None:
    run_dir, summary = undisturbed.run_dir, undisturbed.summary
    lineage = json.loads((Path(summary["bundle"]) / "lineage.json").read_text())
    assert lineage["checkpoint"] == {"step": runs.STEPS, "name": newest_checkpoint(run_dir).name}


def test_the_finished_model_is_what_the_last_line_measures(undisturbed: Undisturbed) -> None:
    run_dir, summary = undisturbed.run_dir, undisturbed.summary
    measured = [line["step"] for line in runs.metrics(run_dir) if "val_loss" in line]
    assert measured == [6, runs.STEPS]
    assert runs.metrics(run_dir)[-1]["val_loss"] == summary["val_loss"]


def test_a_finished_run_repeated_does_nothing(
    undisturbed: Undisturbed, token_set: ShardSet, bare: dict[str, str]
) -> None:
    run_dir, summary = undisturbed.run_dir, undisturbed.summary
    before = (run_dir / "metrics.jsonl").stat().st_mtime_ns
    again = runs.run(*gpt(token_set, run_dir), env=bare)
    assert again["was_finished"]
    assert again["fingerprint"] == summary["fingerprint"]
    assert (run_dir / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_run_in_the_same_folder_is_refused(
    undisturbed: Undisturbed, token_set: ShardSet, bare: dict[str, str]
) -> None:
    refusal = runs.run(*gpt(token_set, undisturbed.run_dir), "--seed=1", env=bare, code=2)
    assert "seed is 0 there and 1 here; go on with --seed 0" in refusal["error"]


@pytest.mark.faults
def test_a_signal_stops_it_with_everything_saved(
    frame_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    places = {name: tmp_path / name for name in ("stopped", "whole")}
    commands = {
        name: ("tokenizer_tiny", f"--data={frame_set.uri}", f"--run-dir={place}", *runs.TOKENIZER)
        for name, place in places.items()
    }
    process = runs.start(*commands["stopped"], env=bare)
    runs.wait_until(lambda: runs.steps_logged(places["stopped"]) >= 4, process)
    process.send_signal(signal.SIGTERM)
    stopped = runs.finish(process, code=75)
    assert "saved; repeat the command to go on" in stopped["error"]
    summary = runs.run(*commands["stopped"], env=bare)
    assert summary["resumed_from"] >= 4
    whole = Undisturbed(places["whole"], runs.run(*commands["whole"], env=bare))
    require_same(places["stopped"], summary, whole)


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.faults
def test_under_ray_train_a_killed_worker_changes_nothing(
    undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group restarts from the newest whole checkpoint, and MLflow has one run with every step once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run_dir = tmp_path / "run"
    process = runs.start(*gpt(token_set, run_dir, launcher="ray"))
    runs.wait_until(lambda: runs.steps_logged(run_dir) >= 1, process)
    *_, victim = runs.ray_workers(process.pid)
    runs.wait_until(lambda: runs.newest_committed(run_dir) >= 3, process)
    os.kill(victim, signal.SIGKILL)
    summary = runs.finish(process)
    assert summary["resumed_from"] >= 3
    require_same(run_dir, summary, undisturbed)
    client = tracking.connect()
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
    assert_tracked_once(run_dir, summary["mlflow_run_id"])
    assert summary["model_version"] == "models:/gpt-tiny/1"
    return_to_running(summary["mlflow_run_id"], run_dir)
    assert runs.run(*gpt(token_set, run_dir, launcher="ray"))["was_finished"]
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.faults
def test_under_ray_train_a_killed_command_repeated_at_once_ends_the_same(
    undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers outlive it for seconds, and must not write into the run that goes on."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run_dir = tmp_path / "run"
    process = runs.start(*gpt(token_set, run_dir, launcher="ray"))
    runs.kill_once(process, lambda: runs.steps_logged(run_dir) >= 4)
    summary = runs.run(*gpt(token_set, run_dir, launcher="ray"))
    require_same(run_dir, summary, undisturbed)
    assert_tracked_once(run_dir, summary["mlflow_run_id"])
    assert not list(run_dir.glob("ray-*"))


def assert_tracked_once(run_dir: Path, run_id: str) -> None:
    """MLflow has every number of every line of metrics.jsonl, and none of them twice."""
    client = tracking.connect()
    lines = runs.metrics(run_dir)
    for name in {name for line in lines for name in line} - {"step"}:
        told = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        assert told == [(line["step"], line[name]) for line in lines if name in line], name


def return_to_running(run_id: str, run_dir: Path) -> None:
    """As if the command had been killed between its result and the word to MLflow."""
    tracking.connect().update_run(run_id, status="RUNNING")
    record = json.loads((run_dir / "tracking.json").read_text())
    (run_dir / "tracking.json").write_text(json.dumps(record | {"status": None}))
