"""Whole runs beside a real MLflow server: whatever happens to either, each number is told once.

Training never fails for it. What could not be told is told by the next command.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.shards import ShardSet
from tests.mlflow_servers import MlflowServer
from tests.training import runs
from tests.training.faults import Undisturbed, require_same
from tests.training.test_tracking_names import ELSEWHERE, documented_metrics, documented_params
from tests.training.workers import Workers

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]

ONE = {"alone": True, "world_size": 1}
"""A command that nobody launched."""
STEPS = 150
"""Enough for a run not to be over before something is done to it."""
LONGER = (f"--steps={STEPS}", f"--evaluation.every-steps={STEPS // 2}", "--checkpoints.every-steps=10")


@pytest.fixture(scope="module")
def server_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow") / "server")
    yield server
    server.kill()


@pytest.fixture
def server(server_at: MlflowServer) -> MlflowServer:
    """Running, and with the data of all tests here: making a database takes seconds."""
    server_at.start()
    return server_at


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, server_at: MlflowServer) -> Iterator[Workers]:
    env = os.environ | {"MLFLOW_TRACKING_URI": server_at.address}
    with Workers(tmp_path_factory.mktemp("workers"), env) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(
    workers: Workers, token_set: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """Without a server."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    return Undisturbed(run_dir, workers.run(*command(token_set, run_dir), "--no-track", **ONE))


def command(token_set: ShardSet, run_dir: Path) -> tuple[str, ...]:
    """Of a run that becomes a version of a model of its own."""
    places = f"--data={token_set.uri}", f"--run-dir={run_dir}", f"--register-as={run_dir.parent.name}"
    return "gpt_tiny", *runs.GPT, *LONGER, "--num-workers=1", *places


def assert_told_once(server: MlflowServer, run_dir: Path, *, resume_count: int | None = None) -> str:
    """One MLflow run is this run's, with every number of metrics.jsonl and none twice; gives its id."""
    client, record = MlflowClient(server.address), json.loads((run_dir / "tracking.json").read_text())
    experiment = client.get_experiment_by_name("reelgpt")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`reelgpt.run_key` = '{record['run_key']}'")
    assert run.info.run_id == record["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    if resume_count is not None:
        assert run.data.tags["reelgpt.resume_count"] == str(resume_count)
    written = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for name in {name for line in written for name in line} - {"step", "timestamp_ms"}:
        told = client.get_metric_history(run.info.run_id, name)
        assert [m.step for m in told] == [line["step"] for line in written if name in line], name
        if name not in runs.TIMING:
            assert [m.value for m in told] == [line[name] for line in written if name in line], name
    shown = {file.path.split("+")[2] for file in client.list_artifacts(run.info.run_id, "images")}
    assert shown == {str(STEPS // 2), str(STEPS)}
    assert set(run.data.metrics) == {name for line in written for name in line} - {"step", "timestamp_ms"}
    return str(run.info.run_id)


def versions(server: MlflowServer, run_dir: Path) -> list[str]:
    found = MlflowClient(server.address).search_model_versions(f"name = '{run_dir.parent.name}'")
    return [version.run_id for version in found]


@pytest.mark.exhaustive
def test_a_server_that_dies_under_a_run_that_dies_is_told_all_once_it_is_back(
    server: MlflowServer, workers: Workers, token_set: ShardSet, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Away from the middle on, at the next command's start and at its end: only the model is missed."""
    run_dir = tmp_path / "run"
    group = workers.start(*command(token_set, run_dir), **ONE)
    group.wait_until(lambda: told_steps(server, run_dir) >= 1)
    group.signal(signal.SIGSTOP)
    server.kill()
    group.kill(0)
    assert group.codes() == [-signal.SIGKILL]
    assert 1 <= runs.steps_logged(run_dir) < STEPS
    refusal = workers.run(*command(token_set, run_dir), **ONE, code=1)
    assert "metrics wait in" in refusal["stderr"]
    assert f"its model in {run_dir}/model, but not registered as {tmp_path.name}" in refusal["error"]
    assert "repeat the command to register it" in refusal["error"]
    assert "Traceback" not in refusal["stderr"]
    server.start()
    summary = workers.run(*command(token_set, run_dir), **ONE)
    assert summary["was_finished"]
    assert summary["model_version"] == f"models:/{tmp_path.name}/1"
    require_same(run_dir, summary, undisturbed)
    run_id = assert_told_once(server, run_dir, resume_count=1)
    assert versions(server, run_dir) == [run_id]
    assert_documented(server, run_id, kind="GPT")
    assert workers.run(*command(token_set, run_dir), **ONE)["model_version"] == summary["model_version"]


@pytest.mark.exhaustive
def test_all_that_a_tokenizers_run_tells_is_documented(
    server: MlflowServer, workers: Workers, frame_set: ShardSet, tmp_path: Path
) -> None:
    places = f"--data={frame_set.uri}", f"--run-dir={tmp_path}/run", "--no-register"
    options = *runs.TOKENIZER, *places, "--optimizer.ema-decay=0.9", "--num-workers=1"
    summary = workers.run("tokenizer_tiny", *options, **ONE)
    assert summary["model_version"] is None
    assert_documented(server, summary["mlflow_run_id"], kind="tokenizer")


def assert_documented(server: MlflowServer, run_id: str, *, kind: str) -> None:
    """No name but those on the page, and all of them that such a run has here."""
    client = MlflowClient(server.address)
    run = client.get_run(run_id)
    assert set(run.data.metrics) == documented_metrics(kind) - ELSEWHERE
    assert set(run.data.params) == documented_params(kind)
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["config.json", "images"]


@pytest.mark.exhaustive
def test_a_server_away_for_a_whole_run_is_told_all_by_the_next_command(
    server: MlflowServer, workers: Workers, token_set: ShardSet, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    server.kill()
    refusal = workers.run(*command(token_set, run_dir), **ONE, code=1)
    assert refusal["stderr"].count("metrics wait in") == 1
    assert record(run_dir)["mlflow_run_id"] is None
    server.start()
    summary = workers.run(*command(token_set, run_dir), **ONE)
    assert summary["was_finished"]
    require_same(run_dir, summary, undisturbed)
    assert versions(server, run_dir) == [assert_told_once(server, run_dir, resume_count=0)]


@pytest.mark.exhaustive
def test_a_server_killed_and_back_in_mid_training_misses_nothing(
    server: MlflowServer, workers: Workers, token_set: ShardSet, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    group = workers.start(*command(token_set, run_dir), **ONE)
    group.wait_until(lambda: told_steps(server, run_dir) >= 1)
    server.kill()
    group.wait_until(lambda: "metrics wait in" in group.said())
    group.signal(signal.SIGSTOP)  # a step here takes milliseconds, and a server seconds to start
    server.start()
    group.signal(signal.SIGCONT)
    summary = group.summary()
    require_same(run_dir, summary, undisturbed)
    assert versions(server, run_dir) == [assert_told_once(server, run_dir, resume_count=0)]
    assert summary["model_version"] == f"models:/{tmp_path.name}/1"


def record(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "tracking.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"mlflow_run_id": None}
    return known


def told_steps(server: MlflowServer, run_dir: Path) -> int:
    run_id = record(run_dir)["mlflow_run_id"]
    return len(MlflowClient(server.address).get_metric_history(run_id, "loss")) if run_id else 0
