"""A real MLflow database, whose tables go away and come back."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from infra import storage, tracking
from pipelines.shards import ShardSet
from training.data import open_data
from training.evaluation_config import EvaluationConfig
from training.listeners import MetricsFile
from training.objectives import build_objective
from training.ranks import Ranks
from training.recipes import get_recipe
from training.run import Run
from training.run_directory import Attempt, RunDirectory
from training.tracked_run import Tracking, mend_status


@pytest.fixture
def run(frame_set: ShardSet, run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config = replace(get_recipe("tokenizer_tiny"), evaluation=EvaluationConfig(every_steps=5))
    data, directory = open_data(config, frame_set.uri), RunDirectory.at(run_dir)
    directory.begin(config, data, resume="auto", attempt="first")
    objective, attempt = build_objective(config, data), Attempt(directory, "first")
    return Run(config=config, data=data, objective=objective, ranks=Ranks(), attempt=attempt)


@contextmanager
def without(table: str, database: Path) -> Iterator[None]:
    """MLflow refuses what it needs that table for."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO away")
        yield
        connection.execute(f"ALTER TABLE away RENAME TO {table}")


def status(run_id: str | None) -> str:
    return str(tracking.connect().get_run(run_id).info.status)


def test_what_mlflow_missed_is_sent_at_the_next_evaluation(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, lines = Tracking(run), MetricsFile(run.attempt, resumed_step=0)

    def step(number: int) -> None:
        metrics = {"loss": 1 / number}
        lines(number, metrics)
        told(number, metrics)

    def steps_told() -> list[int]:
        return [metric.step for metric in tracking.connect().get_metric_history(str(told.run_id), "loss")]

    step(1)
    with without("metrics", tmp_path / "mlflow.db"):
        step(2)
    step(3)
    assert capsys.readouterr().err.count("metrics wait in") == 1
    assert steps_told() == [1]
    storage.write(f"{run.directory.samples}/notes.txt", b"no sample")
    step(5)
    step(6)
    assert steps_told() == [1, 2, 3, 5, 6]


def test_an_end_that_mlflow_did_not_hear_of_is_told_later(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Tracking(run)
    with without("runs", tmp_path / "mlflow.db"):
        told.finish("KILLED")
        mend_status(run.directory)
    assert capsys.readouterr().err.count("repeat the command") == 2
    assert status(told.run_id) == "RUNNING"
    mend_status(run.directory)
    assert status(told.run_id) == "FINISHED"


def test_a_command_that_was_overtaken_does_not_say_how_the_run_ended(run: Run) -> None:
    told = Tracking(run)
    run.directory.begin(run.config, run.data, resume="auto", attempt="second")
    told.finish("FAILED")
    assert status(told.run_id) == "RUNNING"


def test_a_password_is_not_kept_in_the_run_directory(
    run_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    directory = RunDirectory.at(run_dir)
    storage.write_json(directory.tracking, {"run_id": "7", "status": "RUNNING"})
    mend_status(directory)
    assert "secret" not in capsys.readouterr().err + Path(directory.tracking).read_text()
