import json
import time
from pathlib import Path

import pytest

from infra import storage
from training.following import Follower, followed


def lines(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps)


def told(follower: Follower) -> list[float]:
    return [line["step"] for line in follower.new_lines()]


def test_every_new_line_is_told_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(str(path), resumed_step=0)
    assert told(follower) == []
    path.write_text(lines(1, 2) + '{"step": 3')
    assert told(follower) == [1, 2]
    with path.open("a") as file:
        file.write(', "loss": 0.5}\n')
    assert told(follower) == [3]
    assert told(follower) == []


def test_a_resume_tells_what_comes_after_it_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2, 3, 4))
    follower = Follower(str(path), resumed_step=2)
    assert told(follower) == []
    storage.write(str(path), lines(1, 2, 3).encode())
    assert told(follower) == [3]
    storage.write(str(path), lines(1, 2, 3, 4).encode())
    assert told(follower) == [4]


def test_a_damaged_line_is_named_and_those_after_it_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    heard: list[float] = []
    with followed(str(path), lambda line: heard.append(line["step"]), resumed_step=0):
        path.write_text(lines(1) + '{"step": 2, "lo\n' + lines(3))
        deadline = time.monotonic() + 10.0
        while heard != [1, 3] and time.monotonic() < deadline:
            time.sleep(0.02)
    assert heard == [1, 3]
    assert "no record of a step" in capsys.readouterr().err
