from pathlib import Path

import pytest

from infra import storage
from infra.errors import TrainingError
from training.listeners import MetricsFile
from training.loop import require_finite
from training.metrics_lines import read_lines
from training.run_directory import Attempt, RunDirectory


def an_attempt(path: Path, name: str = "first") -> Attempt:
    """Of the newest command in the run directory of a metrics file."""
    directory = RunDirectory(str(path.parent))
    storage.write_json(directory.config, {"attempt": name})
    return Attempt(directory, name)


def write(path: Path, *, resumed_step: int, steps: range) -> None:
    listener = MetricsFile(an_attempt(path), resumed_step=resumed_step, clock=lambda: 1.5)
    for step in steps:
        listener(step, {"loss": 1 / 3 + step})


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, resumed_step=0, steps=range(1, 3))
    assert list(read_lines(str(path)))[1] == {"step": 2, "loss": 1 / 3 + 2, "timestamp_ms": 1500}


def test_what_came_after_the_resumed_step_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, resumed_step=0, steps=range(1, 8))
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    write(path, resumed_step=4, steps=range(5, 11))
    assert [line["step"] for line in read_lines(str(path))] == list(range(1, 11))


def test_steps_that_are_not_logged_leave_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(an_attempt(path), resumed_step=0)(1, {})
    assert list(read_lines(str(path))) == []


def test_once_another_command_goes_on_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    listener = MetricsFile(an_attempt(path), resumed_step=0)
    listener(1, {"loss": 1.0})
    an_attempt(path, "second")
    with pytest.raises(TrainingError, match="another command goes on with the run"):
        listener(2, {"loss": 0.5})
    assert [line["step"] for line in read_lines(str(path))] == [1]


def test_a_loss_that_is_not_finite_is_named_with_step_and_learning_rate() -> None:
    require_finite({"loss": 1.0, "lr": 0.5}, 3)
    with pytest.raises(TrainingError, match=r"val_haar is nan at step 7 \(learning rate 0\.5\)"):
        require_finite({"loss": 1.0, "val_haar": float("nan"), "lr": 0.5}, 7)
