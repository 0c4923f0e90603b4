"""A wish to stop, as one worker hears it; what all make of it is `test_stopped_runs.py`'s matter."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from training.launching import stopping
from training.launching.stopping import StopRequest, wish_file

HEARS_SIGNALS = """
import os, signal, sys, time
from training.launching.stopping import StopRequest
stop = StopRequest()
with stop.listening():
    for number, seconds in ((signal.SIGTERM, 0.0), (signal.SIGINT, 0.2), (signal.SIGTERM, 1.5)):
        time.sleep(seconds)
        os.kill(os.getpid(), number)
        print(stop.is_wanted(), flush=True)
print("was not stopped", flush=True)
"""


@pytest.mark.slow
def test_a_second_signal_exits_at_once_and_an_echo_of_the_first_does_not() -> None:
    """Ctrl-C comes to a worker from the terminal and from its launcher, one right after the other."""
    done = subprocess.run([sys.executable, "-c", HEARS_SIGNALS], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "True\nTrue\n"
    assert done.stderr.count("a second signal exits at once") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_each_signal_of_a_scheduler_or_a_terminal_is_a_wish_to_stop(number: signal.Signals) -> None:
    """SIGUSR1: `sbatch --signal=USR1@120`."""
    stop = StopRequest()
    with stop.listening():
        assert not stop.is_wanted()
        signal.raise_signal(number)
        assert stop.is_wanted()


def test_signals_mean_what_they_did_once_nobody_listens() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_a_thread_signals_are_left_to_the_main_one() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen() -> None:
        with StopRequest().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_launchers_file_is_a_wish_to_stop_and_is_gone_with_the_launcher(tmp_path: Path) -> None:
    path = str(tmp_path / "stop")
    stop = StopRequest(path)
    assert not stop.is_wanted()
    assert not stop.is_heard_here
    with wish_file(path):
        Path(path).touch()
        assert stop.is_wanted()
    assert not os.path.exists(path)


def test_a_wish_for_a_save_is_no_wish_to_stop_and_is_answered(tmp_path: Path) -> None:
    save_file = tmp_path / "save"
    stop = StopRequest(save_file=str(save_file))
    assert not stop.is_save_wanted()
    save_file.touch()
    assert stop.is_save_wanted()
    assert not stop.is_wanted()
    stop.tell_saved()
    assert not stop.is_save_wanted()
    stop.tell_saved()  # as after a notice of preemption, where nobody waits


def test_a_notice_of_preemption_is_asked_for_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking is a barrier for all workers: not at every step."""
    answers = iter([(), ("a",), ("a",), ("a", "b"), ("b",)])
    monkeypatch.setattr(stopping, "ASK_SECONDS", 0.05)
    stop = StopRequest(preempted=lambda: next(answers))
    noticed = []
    for _ in range(5):
        assert not stop.is_time_to_ask()
        time.sleep(0.06)
        assert stop.is_time_to_ask()
        noticed.append(stop.is_preempted())
    assert noticed == [False, True, False, True, False]  # once for each machine
    assert not stop.is_wanted()


def test_without_a_launcher_that_knows_there_is_no_notice() -> None:
    stop = StopRequest()
    assert not stop.is_time_to_ask()
    assert not stop.is_preempted()


def test_an_echo_of_a_signal_that_was_heard_is_not_heard_by_who_listens_next() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with StopRequest().listening():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not heard
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)
