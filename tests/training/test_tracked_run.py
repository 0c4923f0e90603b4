"""A real MLflow database, whose tables go away and come back."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from infra import storage, tracking
from infra.errors import RegistryError, TrainingError
from pipelines.shards import ShardSet
from tests.mlflow_servers import mute_server
from training import forgetting, going_on
from training.configs.evaluation import EvaluationConfig
from training.data import open_data
from training.launching import settling
from training.listeners import MetricsFile
from training.objectives import build_objective
from training.ranks import Ranks
from training.recipes import get_recipe
from training.run import Run
from training.run_directory import Attempt, RunDirectory
from training.tracking import tracking_record
from training.tracking.sending import Sending, within
from training.tracking.telling import Telling
from training.tracking.tracked_run import Tracking, mend, tell_or_give_up

PATIENCE_SECONDS = 60.0


@pytest.fixture
def run(frame_set: ShardSet, run_dir: str, database: Path) -> Run:  # noqa: ARG001
    config = replace(get_recipe("tokenizer_tiny"), evaluation=EvaluationConfig(every_steps=5))
    data, directory = open_data(config, frame_set.uri), RunDirectory.at(run_dir)
    going_on.begin(directory, config, data, resume="auto", attempt="first")
    objective, attempt = build_objective(config, data), Attempt(directory, "first")
    return Run(config=config, data=data, objective=objective, ranks=Ranks(), attempt=attempt)


@pytest.fixture
def database(mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It has its tables."""
    monkeypatch.setattr("training.tracking.sending.RETRY_SECONDS", 0.2)
    tracking.connect()
    return mlflow_database


@contextmanager
def without(table: str, database: Path) -> Iterator[None]:
    """MLflow refuses what it needs that table for."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO away")
        yield
        connection.execute(f"ALTER TABLE away RENAME TO {table}")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(run_id: str | None) -> str:
    return str(tracking.connect().get_run(run_id).info.status)


def steps_told(run_id: str | None) -> list[int]:
    return [metric.step for metric in tracking.connect().get_metric_history(str(run_id), "loss")]


def finished(run: Run, **more: object) -> dict[str, object]:
    """As the workers leave it, once they have told MLflow or not."""
    summary = {"bundle": "nowhere", "model_version": None, "mlflow_run_id": None, "measured": []} | more
    storage.write_json(run.directory.result, summary)
    return summary


@pytest.mark.slow
def test_what_mlflow_missed_is_sent_once_it_answers_again(
    run: Run, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = MetricsFile(run.attempt, resumed_step=0)
    told = Tracking(run, resumed_key=None)

    def step(number: int) -> None:
        metrics = {"loss": 1 / number}
        lines(number, metrics)
        began = time.monotonic()
        told(number, metrics)
        assert time.monotonic() - began < 0.05  # nobody waits

    assert told.await_run_id()
    step(1)
    wait_until(lambda: steps_told(told.run_id) == [1])
    with without("metrics", database):
        step(2)
        wait_until(lambda: "metrics wait in" in capsys.readouterr().err)
        step(3)
    storage.write(f"{run.directory.samples}/notes.txt", b"no sample")
    wait_until(lambda: steps_told(told.run_id) == [1, 2, 3])
    step(5)
    told.finish("FINISHED")
    assert steps_told(told.run_id) == [1, 2, 3, 5]
    assert status(told.run_id) == "FINISHED"
    assert capsys.readouterr().err == ""  # said once


@pytest.mark.slow
def test_an_end_that_mlflow_did_not_hear_of_is_told_later(
    run: Run, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Tracking(run, resumed_key=None)
    assert told.await_run_id()
    assert status(told.run_id) == "RUNNING"
    with without("runs", database):
        told.finish("KILLED")
        mend(run.directory, run.config, run.data, "FINISHED")
    assert capsys.readouterr().err.count("repeat the command to tell MLflow how the run ended") == 1
    assert status(told.run_id) == "RUNNING"
    mend(run.directory, run.config, run.data, "FINISHED")
    assert status(told.run_id) == "FINISHED"


@pytest.mark.slow
def test_a_finished_run_is_registered_by_a_later_command(run: Run, database: Path) -> None:
    """`MODEL` cannot be registered where MLflow is away, nor where the bundle is lost; then it is said."""
    summary = finished(run)
    config = replace(run.config, register_as="model")
    assert not settling.is_owing(run.directory, config, summary)  # of a run that never began to be tracked
    told = Tracking(run, resumed_key=None)
    assert told.await_run_id()
    with without("runs", database):
        told.finish("FINISHED")
        with pytest.raises(RegistryError, match="its model in nowhere, but not registered as model: MLflow"):
            settling.settle(run.directory, config, run.data, summary)
    assert status(told.run_id) == "RUNNING"
    with pytest.raises(RegistryError, match="not registered as model: nowhere is no bundle"):
        settling.settle(run.directory, config, run.data, summary)
    assert status(told.run_id) == "FINISHED"
    unregistered = replace(config, register_as=None)
    assert not settling.is_owing(run.directory, unregistered, summary)
    assert settling.is_owing(run.directory, config, summary)
    assert not settling.is_owing(run.directory, config, summary | {"model_version": "models:/model/1"})


@pytest.mark.slow
def test_a_command_that_was_overtaken_does_not_say_how_the_run_ended(run: Run) -> None:
    told = Tracking(run, resumed_key=None)
    assert told.await_run_id()
    going_on.begin(run.directory, run.config, run.data, resume="auto", attempt="second")
    told.finish("FAILED")
    assert status(told.run_id) == "RUNNING"


@pytest.mark.slow
def test_a_run_that_goes_back_is_another_run_that_shares_the_first_steps(run: Run) -> None:
    lines = MetricsFile(run.attempt, resumed_step=0)
    for step in range(1, 6):
        lines(step, {"loss": float(step)})
    storage.write(run.directory.sample(5), a_picture())
    told = Tracking(run, resumed_key=None)
    told.finish("KILLED")

    forgetting.forget_after(run.directory, 3)
    lines = MetricsFile(run.attempt, resumed_step=3)
    again = Tracking(run, resumed_key=told.key)
    for step in range(4, 6):
        lines(step, {"loss": step + 0.5})
    again.finish("FINISHED")
    assert again.run_id != told.run_id
    history = tracking.connect().get_metric_history(str(again.run_id), "loss")
    assert [metric.value for metric in history] == [1.0, 2.0, 3.0, 4.5, 5.5]
    run_again = tracking.connect().get_run(again.run_id)
    assert run_again.data.tags[tracking.BRANCHED_FROM_TAG] == told.run_id
    assert not tracking.connect().list_artifacts(str(again.run_id), "images")
    assert steps_told(told.run_id) == [1, 2, 3, 4, 5]


def a_picture() -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    return file.getvalue()


def test_a_run_keeps_its_key_and_counts_how_often_it_went_on(tmp_path: Path) -> None:
    place = str(tmp_path)
    first = tracking_record.begun(place, None)
    again = tracking_record.begun(place, "of a checkpoint")
    assert again.run_key == first.run_key
    assert (first.resume_count, again.resume_count) == (0, 1)
    elsewhere = tracking_record.begun(f"{place}/elsewhere", first.run_key)
    assert elsewhere.run_key == first.run_key
    assert elsewhere.resume_count is None  # MLflow knows better
    tracking_record.branch(place)
    assert tracking_record.begun(place, first.run_key).run_key != first.run_key


@pytest.mark.slow
def test_a_password_is_not_kept_in_the_run_directory(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking_record.begun(run.directory.path, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    mend(run.directory, run.config, run.data, "FINISHED")
    told = capsys.readouterr().err
    assert "127.0.0.1:9" in told
    for file in Path(run.directory.path).rglob("*.json"):
        told += file.read_text()
    assert "secret" not in told


@pytest.mark.slow
def test_a_server_that_is_well_and_mute_holds_nobody_up_at_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.tracking.tracked_run.FIRST_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("training.tracking.tracked_run.FAREWELL_SECONDS", 0.5)
    summary, registered = finished(run), replace(run.config, register_as="model")
    unregistered = replace(run.config, register_as=None)
    with mute_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        began = time.monotonic()
        told = Tracking(run, resumed_key=None)
        assert told.await_run_id() is None
        told.finish("FINISHED")
        settling.settle(run.directory, unregistered, run.data, summary, is_fresh=True)
        assert "has not heard all of the run; repeat the command" in capsys.readouterr().err
        settling.settle(run.directory, unregistered, run.data, summary)
        assert "gave no answer in 0.5 s; repeat the command" in capsys.readouterr().err
        with pytest.raises(RegistryError, match=r"not registered as model: .* gave no answer in 0\.5 s"):
            settling.settle(run.directory, registered, run.data, summary)
        assert time.monotonic() - began < 10.0


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.exhaustive
def test_nobody_counts_the_seconds_in_which_a_database_is_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}")
    there: list[bool] = []
    monkeypatch.setattr("training.tracking.tracked_run.within", lambda *_, **__: there.append(new.exists()))
    tell_or_give_up(Telling(run.directory, run.config, run.data), "FINISHED")
    assert there == [True]


def test_a_slow_answer_is_awaited_as_long_as_there_are_signs_of_life() -> None:
    assert within(0.1, lambda: time.sleep(0.4) or "late", since=time.monotonic) == "late"  # type: ignore[func-returns-value]
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(5), since=lambda: 0.0)
    with pytest.raises(RegistryError, match="refused"):
        within(5.0, refuse, since=lambda: 0.0)


def refuse() -> None:
    raise RegistryError("refused")


def test_trouble_is_said_once_an_outage_and_tried_until_it_is_over() -> None:
    answers = iter([None, "away", "away", "away", None, "away", None])
    said: list[str] = []
    tries: list[str | None] = []

    def send() -> None:
        answer = next(answers, None)
        tries.append(answer)
        if answer:
            raise RegistryError(f"{answer} at try {len(tries)}")

    sending = Sending(send, on_trouble=lambda error: said.append(str(error)), retry_seconds=0.01)
    for expected in (1, 5, 7):
        wait_until(lambda expected=expected: len(tries) >= expected)  # type: ignore[misc]
        sending.wake()
    sending.end(5.0)
    assert said == ["away at try 2", "away at try 6"]


def test_an_end_waits_no_longer_than_it_is_told_to() -> None:
    sending = Sending(lambda: time.sleep(30), on_trouble=lambda _: None)
    began = time.monotonic()
    sending.end(0.1)
    assert time.monotonic() - began < 2.0


def test_a_record_is_whole_json(tmp_path: Path) -> None:
    record = tracking_record.begun(str(tmp_path), None)
    kept = json.loads((tmp_path / tracking_record.NAME).read_text())
    assert kept["run_key"] == record.run_key
    assert tracking_record.recall(str(tmp_path)) == record


@pytest.mark.parametrize("content", ["", "[]", '{"run_key": 3}', '{"another": 1}'])
def test_a_record_that_was_changed_is_said_with_what_helps(content: str, tmp_path: Path) -> None:
    (tmp_path / tracking_record.NAME).write_text(content)
    with pytest.raises(TrainingError, match=r"is no record of ours .* delete it, and repeat the"):
        tracking_record.recall(str(tmp_path))
