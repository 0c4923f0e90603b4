import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra import tracking
from infra.errors import RegistryError
from infra.mlflow_store import connect, experiment_id
from infra.tracking import ShardSetInput, Tracker

SHARDS = ShardSetInput(uri="/data/tokens", fingerprint="0123456789abcdef" * 4)

KILLED_WHILE_TRACKING = """
import os, signal, sys
from infra.tracking import ShardSetInput, Tracker
tracker = Tracker.start(
    None, recipe="gpt_tiny", run_dir="/runs/gpt", config={"steps": 9, "model": {"num_heads": 4}},
    shard_set=ShardSetInput(uri="/data/tokens", fingerprint="0123456789abcdef" * 4))
for step in (1, 2, 3):
    tracker.log_metrics(step, {"loss": 1 / step})
tracker.log_metrics(2, {"val_loss": 5.0})
print(tracker.run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def _database(
    own_place: None,  # noqa: ARG001
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One database for all tests here: making one takes seconds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")


def start(run_id: str | None = None, **config: object) -> Tracker:
    return Tracker.start(
        run_id, recipe="gpt_tiny", run_dir="/runs/gpt", config=config or {"steps": 9}, shard_set=SHARDS
    )


def steps(tracker: Tracker, key: str) -> list[int]:
    history = connect().get_metric_history(tracker.run_id, key)
    return [metric.step for metric in history]


def test_nested_settings_become_params_with_dots() -> None:
    config = {"steps": 3, "model": {"num_heads": 4, "levels": [8, 5]}, "init_from": None, "name": "a"}
    assert tracking.flatten(config) == {
        "steps": "3", "model.num_heads": "4", "model.levels": "[8, 5]", "init_from": "null", "name": "a",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("_database")
def test_a_run_holds_what_went_into_it() -> None:
    tracker = start(steps=9, model={"num_heads": 4})
    run = connect().get_run(tracker.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"steps": "9", "model.num_heads": "4"}
    assert run.data.tags["reelgpt.recipe"] == "gpt_tiny"
    assert run.data.tags["reelgpt.run_dir"] == "/runs/gpt"
    assert run.data.tags["reelgpt.commit"]
    assert run.data.tags["reelgpt.resume_count"] == "0"
    assert run.data.tags["reelgpt.shard_set.fingerprint"] == SHARDS.fingerprint
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("tokens", SHARDS.fingerprint[:36])
    assert run.info.artifact_uri.startswith(
        str(Path(tracking.tracking_uri().removeprefix("sqlite:///")).parent)
    )
    assert [file.path for file in connect().list_artifacts(tracker.run_id)] == ["config.json"]
    tracker.finish("FINISHED")
    assert connect().get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.usefixtures("_database")
def test_a_killed_run_goes_on_as_the_same_run_with_each_step_once() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_TRACKING],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert killed.returncode == -signal.SIGKILL
    run_id = killed.stdout.strip()
    assert killed.stderr == ""
    client = connect()
    assert client.get_run(run_id).info.status == "RUNNING"

    tracker = start(run_id, steps=12, seed=7)
    for step in (2, 3, 4, 5):
        tracker.log_metrics(step, {"loss": 1 / step})
    tracker.log_metrics(2, {"val_loss": 5.0})
    tracker.log_metrics(4, {"val_loss": 4.0})
    tracker.finish("FINISHED")

    assert steps(tracker, "loss") == [1, 2, 3, 4, 5]
    assert steps(tracker, "val_loss") == [2, 4]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["reelgpt.resume_count"] == "1"
    assert run.data.params == {"steps": "9", "model.num_heads": "4", "seed": "7"}
    assert len(run.inputs.dataset_inputs) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_database")
def test_a_status_left_false_is_mended() -> None:
    tracker = start()
    tracking.mend_status(tracker.run_id, "FINISHED")
    run = connect().get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    tracking.mend_status(tracker.run_id, "FINISHED")
    assert connect().get_run(tracker.run_id).info.end_time == run.info.end_time


@pytest.mark.slow
@pytest.mark.usefixtures("_database")
def test_a_picture_is_shown_once_at_its_step(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    tracker = start()
    tracker.log_picture("samples/continue", 10, tmp_path / "picture.png")
    resumed = start(tracker.run_id)
    resumed.log_picture("samples/continue", 10, tmp_path / "picture.png")
    resumed.log_picture("samples/continue", 20, tmp_path / "picture.png")
    files = [file.path for file in connect().list_artifacts(tracker.run_id, "images")]
    assert len([file for file in files if "+step+10+" in file and file.endswith(".png")]) == 1
    assert len([file for file in files if "+step+20+" in file and file.endswith(".png")]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_database")
def test_a_run_that_the_server_does_not_know_is_named_with_the_remedy() -> None:
    with pytest.raises(RegistryError, match=r"has no run 0{32}.*set MLFLOW_TRACKING_URI"):
        start("0" * 32)


@pytest.mark.slow
def test_processes_that_start_at_once_share_a_new_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    code = KILLED_WHILE_TRACKING.rpartition("os.kill")[0]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], answers
    assert [stderr for _, stderr in answers] == ["", "", ""]
    client = connect()
    runs = client.search_runs([experiment_id(client)])
    assert {run.info.run_id for run in runs} == {stdout.strip() for stdout, _ in answers}
