from pathlib import Path

from training.listeners import MetricsFile
from training.run_directory import read_lines


def write(path: Path, *, resumed_step: int, steps: range) -> None:
    listener = MetricsFile(str(path), resumed_step=resumed_step, clock=lambda: 1.5)
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
    MetricsFile(str(path), resumed_step=0)(1, {})
    assert list(read_lines(str(path))) == []
