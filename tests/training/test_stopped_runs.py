"""Signals to whole runs, under every launcher: all is saved, and the exit code is 75."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.shards import ShardSet
from tests.training import runs
from tests.training.test_launchers import worker
from tests.training.workers import Workers
from training.saving import manifest

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]

STEPS = 200
"""More than are done before the signal."""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, bare: dict[str, str]) -> Iterator[Workers]:
    with Workers(tmp_path_factory.mktemp("workers"), bare) as started:
        yield started


def gpt(token_set: ShardSet, run_dir: Path, *more: str) -> tuple[str, ...]:
    places = f"--data={token_set.uri}", f"--run-dir={run_dir}"
    return "gpt_tiny", *runs.GPT, f"--steps={STEPS}", "--evaluation.every-steps=100", *places, *more


def test_a_signal_to_all_tasks_of_an_srun_stops_them_with_everything_saved(
    token_set: ShardSet, tmp_path: Path, workers: Workers
) -> None:
    """As Slurm sends it before it takes the nodes away: to every task, at moments of its own."""
    run_dir = tmp_path / "run"
    group = workers.start(*gpt(token_set, run_dir))
    group.wait_until(lambda: runs.steps_logged(run_dir) >= 4)
    group.signal(signal.SIGTERM)
    assert group.codes() == [75, 75]
    assert "saved; repeat the command to go on" in group.said()
    (newest, *_), _ = manifest.committed(str(run_dir / "checkpoints"))
    assert newest.step == runs.steps_logged(run_dir) < STEPS


@pytest.mark.exhaustive
def test_a_second_signal_ends_a_command_at_once_and_its_workers_with_it(
    token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    """Of a run that cannot stop, since a worker stands still. The command repeated goes on."""
    run_dir = tmp_path / "run"
    command = gpt(token_set, run_dir, "--launcher=torchrun")
    process = runs.start(*command, env=bare)
    runs.wait_until(lambda: runs.steps_logged(run_dir) >= 4, process)
    below = [worker(process.pid, rank=rank) for rank in range(2)]
    below[1].send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGTERM
    psutil.wait_procs(below, timeout=10)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in below)


def test_a_signal_twice_in_a_row_is_one_and_the_exit_code_stays(
    token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    """As where a launcher passes a terminal's Ctrl-C on: it would meet the process on its way out."""
    run_dir = tmp_path / "run"
    process = runs.start(*gpt(token_set, run_dir), "--num-workers=1", env=bare)
    runs.wait_until(lambda: runs.steps_logged(run_dir) >= 4, process)
    for _ in range(8):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert "saved; repeat the command to go on" in runs.finish(process, code=75)["error"]


def test_a_signal_before_the_first_step_is_not_said_to_have_saved_anything(
    token_set: ShardSet, tmp_path: Path, workers: Workers
) -> None:
    run_dir = tmp_path / "run"
    group = workers.start(*gpt(token_set, run_dir))
    group.wait_until((run_dir / "tracking.json").exists)
    group.signal(signal.SIGINT)
    assert group.codes() == [75, 75]
    if runs.steps_logged(run_dir):
        pytest.skip("the machine was busy, and this signal late")
    assert "stopped before the first step; repeat the command" in group.said()
    assert "saved; repeat" not in group.said()
