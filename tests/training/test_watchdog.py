"""When a step counts as hung, and who is said to be missing; whole runs that hang: `test_launchers.py`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.errors import ConfigError
from training.configs.watchdog import WatchdogConfig
from training.launching.watchdog import (
    COMPILING,
    FIRST_STEPS,
    PATIENT,
    SAVING,
    Pulse,
    Report,
    Watchdog,
    _missing,
    verdict_in,
)

CONFIG = WatchdogConfig(factor=20.0, floor_seconds=2.0, grace_seconds=100.0)


def pulse_after(steps: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> Pulse:
    """Of a run that has done so many steps of so many seconds, and begins another."""
    now = [0.0]
    monkeypatch.setattr("training.launching.watchdog.time.monotonic", lambda: now[0])
    pulse = Pulse(CONFIG)
    for step in range(1, steps + 1):
        pulse.at(step, "data")
        pulse.at(step, "update")
        now[0] += seconds
        pulse.at(step, "beside")
        now[0] += 50.0  # saving and measuring say nothing about steps
    pulse.at(steps + 1, "data")
    return pulse


@pytest.mark.parametrize(("seconds", "limit"), [(1.0, 20.0), (0.01, 2.0)])
def test_a_step_may_take_20_medians_but_never_less_than_the_floor(
    seconds: float, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pulse_after(10, seconds, monkeypatch).limit == pytest.approx(limit)


def test_first_steps_those_of_new_shapes_and_what_is_between_steps_have_a_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pulse_after(FIRST_STEPS - 1, 0.1, monkeypatch).limit == CONFIG.grace_seconds
    pulse = pulse_after(10, 0.1, monkeypatch)
    for place in PATIENT:
        pulse.at(11, place)
        assert pulse.limit == CONFIG.grace_seconds


def test_a_save_before_an_update_is_no_part_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.launching.watchdog.time.monotonic", lambda: now[0])
    pulse = Pulse(CONFIG)
    for step in range(1, 11):
        pulse.at(step, "data")
        pulse.at(step, SAVING)
        now[0] += 90.0
        pulse.at(step, "update")
        assert pulse.seconds == 0.0
        now[0] += 1.0
        pulse.at(step, "beside")
    assert pulse.median == pytest.approx(1.0)
    assert report(0, SAVING).position == report(0, "exchange").position < report(0, COMPILING).position


def report(rank: int, place: str = "exchange", *, step: int = 5, is_waiting: bool = True) -> Report:
    return Report(rank=rank, step=step, place=place, seconds=9.0, is_late=True, is_waiting=is_waiting)


@pytest.mark.parametrize(
    ("reports", "missing"),
    [
        ([report(0), report(2)], "rank 1 did not arrive and gave no sign"),
        ([report(0)], "ranks 1, 2 did not arrive and gave no sign"),
        ([report(0), report(1, "data"), report(2)], "rank 1 did not arrive"),
        ([report(0), report(1), report(2, step=4)], "rank 2 did not arrive"),
        ([report(0), report(1, is_waiting=False), report(2)], "rank 1 did not arrive"),
        ([report(0, "update"), report(1, COMPILING, is_waiting=False)], "rank 2 did not arrive and gave no"),
        (
            [report(rank, "update") for rank in (0, 1)] + [report(2, COMPILING, is_waiting=False)],
            "rank 2 did",
        ),
        ([report(0), report(1), report(2)], "every rank arrived at the same place"),
    ],
)
def test_who_did_not_arrive_is_who_is_silent_or_behind_or_does_not_wait(
    reports: list[Report], missing: str
) -> None:
    assert _missing(reports, 3).startswith(missing)


def test_an_attempt_that_did_not_hang_has_no_verdict(tmp_path: Path) -> None:
    assert verdict_in(str(tmp_path / "hangs")) is None


@pytest.mark.slow
def test_an_alarm_that_cannot_be_written_is_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "hangs"
    in_the_way.write_text("a disk that refuses")
    report = in_the_way / "attempt" / "rank-00000.json"
    config = WatchdogConfig(floor_seconds=0.2, grace_seconds=0.2)
    watchdog = Watchdog(config, str(report.parent), rank=0, world_size=1, speaks=False)
    with watchdog.watching():
        time.sleep(1.0)
        in_the_way.unlink()
        deadline = time.monotonic() + 4.0  # it ends the process 5 s after its alarm
        while not report.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert report.exists()
    told = capfd.readouterr().err
    assert told.count("the watchdog cannot use") == 1
    assert "most recent call first" not in told  # stacks come with a verdict


HOLDING_THE_LOCK = """
import ctypes
from training.configs.watchdog import WatchdogConfig
from training.launching.watchdog import Watchdog
config = WatchdogConfig(floor_seconds=0.2, grace_seconds=0.4)
with Watchdog(config, "hangs", rank=0, world_size=2, speaks=False).watching():
    ctypes.PyDLL(None).sleep(3)
"""


@pytest.mark.slow
def test_a_rank_whose_library_holds_the_interpreter_shows_its_stack(tmp_path: Path) -> None:
    """No thread of its own can: the others would say no more than that it gives no sign."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDING_THE_LOCK]
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "most recent call first" in done.stderr
    assert 'File "<string>", line 7 in <module>' in done.stderr


def test_a_floor_above_the_grace_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at most watchdog\.grace_seconds"):
        WatchdogConfig(floor_seconds=10.0, grace_seconds=5.0)
