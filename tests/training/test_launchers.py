"""The same run under every launcher, and what ends it: preemption, a hang, too few workers."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.shards import ShardSet
from tests.ports import free_ports
from tests.training import runs
from tests.training.faults import Bench

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]

SLEEPING = """
import os
import time


def sleep_in_step_6():
    from {module} import {owner}

    original = {owner}.{method}
    calls = [0]

    def sleepy(self, *args):
        calls[0] += 1
        if calls[0] == {call} and os.environ.get("RANK") == "1":
            time.sleep(1000)
        return original(self, *args)

    {owner}.{method} = sleepy


if os.environ.get("RANK"):
    sleep_in_step_6()
"""
SLEEPING_IN_A_COLLECTIVE = SLEEPING.format(module="training.ranks", owner="Ranks", method="sum", call=16)
SLEEPING_BESIDE_A_STEP = SLEEPING.format(module="training.saver", owner="Saving", method="__call__", call=6)


@pytest.fixture
def expected(bench: Bench) -> list[dict[str, float]]:
    """Of workers that nobody launched."""
    return runs.metrics(bench.undisturbed().run_dir)


@pytest.mark.exhaustive
@pytest.mark.faults
def test_deepspeeds_launcher_trains_the_same(
    token_set: ShardSet, tmp_path: Path, bare: dict[str, str], expected: list[dict[str, float]]
) -> None:
    runs.run(*runs.gpt(token_set, tmp_path / "ours"), "--launcher=deepspeed", env=bare)
    assert runs.metrics(tmp_path / "ours") == expected


@pytest.mark.exhaustive
@pytest.mark.faults
def test_inside_a_deepspeed_of_the_users_it_trains_the_same(
    token_set: ShardSet, tmp_path: Path, bare: dict[str, str], expected: list[dict[str, float]]
) -> None:
    command = Path(sys.executable).parent / "deepspeed"
    options = "--num_accelerators=2", f"--master_port={free_ports(1)[0]}", "--module", "reelgpt", "train"
    done = subprocess.run(
        [command, *options, *runs.gpt(token_set, tmp_path / "run")],
        env=bare | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert runs.metrics(tmp_path / "run") == expected


def test_as_tasks_of_an_srun_it_trains_the_same(
    token_set: ShardSet, tmp_path: Path, bare: dict[str, str], expected: list[dict[str, float]]
) -> None:
    job = str(random.SystemRandom().randrange(1, 1 << 20))
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    host = {"SLURM_JOB_NODELIST": "localhost"}
    tasks = [
        runs.start(
            *runs.gpt(token_set, tmp_path / "run"),
            env=bare | step | host | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    summary = runs.finish(tasks[0])
    assert tasks[1].communicate(timeout=60)[0] == ""
    assert summary["workers"] == 2
    assert runs.metrics(tmp_path / "run") == expected


@pytest.mark.exhaustive
@pytest.mark.faults
def test_a_rank_that_stands_still_ends_the_run_and_is_named(
    token_set: ShardSet, tmp_path: Path, bare: dict[str, str], expected: list[dict[str, float]]
) -> None:
    """SIGSTOP: it neither dies nor answers. The command repeated goes on."""
    run_dir = tmp_path / "run"
    command = (*runs.gpt(token_set, run_dir), "--launcher=torchrun")
    process = runs.start(*command, *runs.IMPATIENT, env=bare)
    runs.wait_until(lambda: runs.steps_logged(run_dir) >= 4, process)
    stopped = worker(process.pid, rank=1)
    stopped.send_signal(signal.SIGSTOP)
    refusal = runs.finish(process, code=1)
    assert "rank 1 did not arrive and gave no sign" in refusal["error"]
    assert "repeat the command" in refusal["error"]
    assert "the others' stacks are in" in refusal["error"]
    (stacks,) = (run_dir / "hangs").glob("*/rank-00000.txt")
    assert "run_steps" in stacks.read_text()
    stopped.wait(timeout=60)  # gone with the launcher
    runs.run(*command, env=bare)
    assert runs.metrics(run_dir) == expected


@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", [SLEEPING_IN_A_COLLECTIVE, SLEEPING_BESIDE_A_STEP])
def test_a_rank_that_sleeps_is_named_from_its_stack(fault: str, token_set: ShardSet, tmp_path: Path) -> None:
    """While it saves, it is waited for longer."""
    run_dir = tmp_path / "run"
    sleepy = runs.bare_environment(tmp_path / "site", fault=fault)
    command = (*runs.gpt(token_set, run_dir), "--launcher=torchrun", *runs.IMPATIENT)
    refusal = runs.run(*command, "--watchdog.grace-seconds=20", env=sleepy, code=1)
    assert "rank 1 did not arrive;" in refusal["error"]
    (stacks,) = (run_dir / "hangs").glob("*/rank-00001.txt")
    assert "sleepy" in stacks.read_text()


def worker(launcher: int, *, rank: int) -> psutil.Process:
    """A training worker below the process `launcher`."""
    for process in psutil.Process(launcher).children(recursive=True):
        if process.environ().get("RANK") == str(rank):
            return process
    raise AssertionError(f"there is no worker of rank {rank}")


def test_a_range_of_workers_that_the_batch_does_not_divide_into_is_refused(
    token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    options = "--num-workers=4", "--min-workers=2"
    refusal = runs.run(*runs.gpt(token_set, tmp_path / "run"), *options, env=bare, code=2)
    assert "there could be 3 workers" in refusal["error"]
    assert "numbers of workers that can: 1, 2, 4" in refusal["error"]
