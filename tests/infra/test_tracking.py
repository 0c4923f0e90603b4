import os
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from infra import tracking
from infra.errors import RegistryError
from infra.mlflow_store import connect, experiment_id
from infra.tracking import LoggedStep, RunFacts, ShardSetInput, Tracker

SHARDS = ShardSetInput(uri="/data/tokens", fingerprint="0123456789abcdef" * 4)
OTHER_SHARDS = ShardSetInput(uri="s3://bucket/more/", fingerprint="fedcba9876543210" * 4)

KILLED_WHILE_TRACKING = """
import os, signal, sys
from infra.tracking import LoggedStep, RunFacts, ShardSetInput, Tracker
facts = RunFacts(
    key=sys.argv[1], recipe="gpt_tiny", run_dir="/runs/gpt", config={"steps": 9, "model": {"num_heads": 4}},
    shard_sets=(ShardSetInput(uri="/data/tokens", fingerprint="0123456789abcdef" * 4),))
tracker = Tracker.reach(facts)
tracker.log_steps(LoggedStep(step, 1000 + step, {"loss": 1 / step}) for step in (1, 2, 3))
tracker.log_steps([LoggedStep(2, 1002, {"val_loss": 5.0})])
print(tracker.run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def facts(key: str | None = None, resume_count: int | None = 0, **config: object) -> RunFacts:
    return RunFacts(
        key=key or uuid.uuid4().hex, recipe="gpt_tiny", run_dir="/runs/gpt", config=config or {"steps": 9},
        shard_sets=(SHARDS,), resume_count=resume_count,
    )  # fmt: skip


def lines(*steps: int, since: int = 0, **metrics: float) -> list[LoggedStep]:
    """Logged `since` milliseconds after the first time that they were."""
    return [LoggedStep(step, 1000 + since + step, metrics or {"loss": 1 / step}) for step in steps]


def steps(tracker: Tracker, key: str) -> list[int]:
    history = connect().get_metric_history(tracker.run_id, key)
    return [metric.step for metric in history]


def runs_with(key: str) -> list[str]:
    client = connect()
    found = client.search_runs([experiment_id(client)], f"tags.`{tracking.RUN_KEY_TAG}` = '{key}'")
    return [run.info.run_id for run in found]


def test_nested_settings_become_params_with_dots() -> None:
    config = {"steps": 3, "model": {"num_heads": 4, "levels": [8, 5]}, "init_from": None, "name": "a"}
    assert tracking.flatten(config) == {
        "steps": "3", "model.num_heads": "4", "model.levels": "[8, 5]", "init_from": "null", "name": "a",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_run_holds_what_went_into_it() -> None:
    given = replace(facts(steps=9, model={"num_heads": 4}), shard_sets=(SHARDS, OTHER_SHARDS))
    tracker = Tracker.reach(given)
    tracker.log_config(given.config)
    run = connect().get_run(tracker.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"steps": "9", "model.num_heads": "4"}
    assert run.data.tags["reelgpt.recipe"] == "gpt_tiny"
    assert run.data.tags["reelgpt.run_dir"] == "/runs/gpt"
    assert run.data.tags["reelgpt.run_key"] == given.key
    assert run.data.tags["reelgpt.commit"]
    assert run.data.tags["reelgpt.resume_count"] == "0"
    assert (
        run.data.tags["reelgpt.shard_set.fingerprint"] == f"{SHARDS.fingerprint},{OTHER_SHARDS.fingerprint}"
    )
    named = {(data.dataset.name, data.dataset.digest) for data in run.inputs.dataset_inputs}
    assert named == {("tokens", SHARDS.fingerprint[:36]), ("more", OTHER_SHARDS.fingerprint[:36])}
    assert run.info.artifact_uri.startswith(
        str(Path(tracking.tracking_uri().removeprefix("sqlite:///")).parent)
    )
    assert [file.path for file in connect().list_artifacts(tracker.run_id)] == ["config.json"]
    tracker.finish("FINISHED")
    ended = connect().get_run(tracker.run_id).info
    assert ended.status == "FINISHED"
    tracker.finish("FINISHED")
    assert connect().get_run(tracker.run_id).info.end_time == ended.end_time


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.usefixtures("mlflow_database")
def test_a_killed_run_goes_on_as_the_same_run_with_each_step_once() -> None:
    """Its id was not kept: the key finds it."""
    key = uuid.uuid4().hex
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_TRACKING, key],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert killed.stderr == ""
    client = connect()
    assert runs_with(key) == [killed.stdout.strip()]
    assert client.get_run(killed.stdout.strip()).info.status == "RUNNING"

    tracker = Tracker.reach(facts(key, resume_count=1, steps=12, seed=7))
    assert tracker.run_id == killed.stdout.strip()
    tracker.log_steps(lines(2, 3, 4, 5, since=100_000))
    tracker.log_steps(lines(2, val_loss=5.0, since=100_000))
    tracker.log_steps(lines(4, val_loss=4.0))
    tracker.finish("FINISHED")

    assert steps(tracker, "loss") == [1, 2, 3, 4, 5]
    assert steps(tracker, "val_loss") == [2, 4]
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["reelgpt.resume_count"] == "1"
    assert run.data.params == {"steps": "9", "model.num_heads": "4", "seed": "7"}
    assert len(run.inputs.dataset_inputs) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_run_whose_count_was_lost_goes_on_counting_from_mlflows() -> None:
    key = uuid.uuid4().hex
    counts = [Tracker.reach(facts(key, resume_count=count)).resume_count for count in (0, 1, 1, 3, None, 5)]
    assert counts == [0, 1, 1, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_steps_that_mlflow_took_without_saying_so_are_there_once() -> None:
    """An answer that was lost: who did not hear it says the same again."""
    given = facts()
    heard, deaf = Tracker.reach(given), Tracker.reach(given)
    many = lines(*range(1, 1501))
    heard.log_steps(many)
    deaf.log_steps(many)
    assert steps(deaf, "loss") == list(range(1, 1501))


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_of_two_runs_that_were_made_for_one_key_the_first_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looked before the other had made its own."""
    given = facts()
    first = Tracker.reach(given)
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_find", lambda *_: None)
        second = Tracker.reach(given)
    assert second.run_id == first.run_id
    assert runs_with(given.key) == [first.run_id]


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_run_that_was_deleted_is_not_begun_anew() -> None:
    given = facts()
    tracker = Tracker.reach(given)
    connect().delete_run(tracker.run_id)
    with pytest.raises(RegistryError, match=f"was deleted; `mlflow runs restore --run-id {tracker.run_id}`"):
        Tracker.reach(given, tracker.run_id)
    connect().restore_run(tracker.run_id)
    assert Tracker.reach(given, tracker.run_id).run_id == tracker.run_id


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_picture_is_shown_once_at_its_step(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    given = facts()
    Tracker.reach(given).log_picture("samples/continue", 10, tmp_path / "picture.png")
    resumed = Tracker.reach(given)
    resumed.log_picture("samples/continue", 10, tmp_path / "picture.png")
    resumed.log_picture("samples/continue", 20, tmp_path / "picture.png")
    files = [file.path for file in connect().list_artifacts(resumed.run_id, "images")]
    assert len([file for file in files if "+step+10+" in file and file.endswith(".png")]) == 1
    assert len([file for file in files if "+step+20+" in file and file.endswith(".png")]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_runs_that_start_at_once_share_a_new_dataset() -> None:
    def start(fingerprint: str) -> Tracker:
        all_are_here.wait(60)
        data = ShardSetInput(uri="/data/new", fingerprint=fingerprint)
        return Tracker.reach(replace(facts(), shard_sets=(data,)))

    all_are_here = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for fingerprint in ("1" * 64, "2" * 64, "3" * 64):
            runs = [connect().get_run(run.run_id) for run in pool.map(start, [fingerprint] * 4)]
            digests = [dataset.dataset.digest for run in runs for dataset in run.inputs.dataset_inputs]
            assert digests == [fingerprint[:36]] * 4


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_run_that_the_server_does_not_know_is_named_with_the_remedy() -> None:
    with pytest.raises(RegistryError, match=r"has no run 0{32}.*set MLFLOW_TRACKING_URI"):
        Tracker.reach(facts(), "0" * 32)


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_artifacts_that_cannot_be_kept_are_named(tmp_path: Path) -> None:
    tracker = Tracker.reach(facts())
    with pytest.raises(RegistryError, match="did not take the picture samples of step 1"):
        tracker.log_picture("samples", 1, tmp_path / "away.png")


@pytest.mark.slow
def test_processes_that_start_at_once_share_a_new_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    code = KILLED_WHILE_TRACKING.rpartition("os.kill")[0]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    answers = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], answers
    assert [stderr for _, stderr in answers] == ["", "", ""]
    client = connect()
    runs = client.search_runs([experiment_id(client)])
    assert {run.info.run_id for run in runs} == {stdout.strip() for stdout, _ in answers}
