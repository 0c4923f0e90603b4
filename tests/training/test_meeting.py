"""Tasks of an srun that do not come to train together: each one ends, soon and with a sentence."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.errors import Stopped
from pipelines.shards import ShardSet
from tests.training import runs
from tests.training.faults import Bench
from tests.training.tiny_run import summary
from tests.training.workers import Workers
from training import going_on
from training.data import open_data
from training.launching.meeting import ended_by_signals
from training.recipes import get_recipe
from training.run_directory import RunDirectory

THREE = ("--batches.global-batch=6", "--num-workers=3")
NOBODY_COMES = """
import datetime
from training.engine import connection, rendezvous
rendezvous.MEETING_TIMEOUT = datetime.timedelta(seconds=1)
connection.connect()
"""


def task(rank: int, port: int = 9) -> dict[str, str]:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} | place


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.parametrize(
    "is_finished", [False, pytest.param(True, marks=[pytest.mark.exhaustive, pytest.mark.faults])]
)
def test_what_all_tasks_refuse_each_says(
    bench: Bench, token_set: ShardSet, run_dir: str, is_finished: bool
) -> None:
    directory, config = RunDirectory.at(run_dir), get_recipe("gpt_tiny")
    going_on.begin(directory, config, open_data(config, token_set.uri), resume="auto", attempt="first")
    if is_finished:
        storage.write_json(directory.result, summary(config.steps))
    group = bench.start(Path(run_dir), "--seed=1")
    assert group.codes() == [2, 2], group.said()
    said = [(group.folder / f"{rank}.err").read_text() for rank in (0, 1)]
    assert all("seed" in each and len(each.splitlines()) == 1 for each in said), said


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.faults
def test_what_the_first_task_refuses_alone_ends_the_others_soon(bench: Bench) -> None:
    """With its exit code, and no sentence of their own."""
    run_dir = bench.folder / "held"
    with RunDirectory.at(str(run_dir)).lease():
        began = time.monotonic()
        group = bench.start(run_dir, *THREE, world_size=3)
        assert group.codes() == [2, 2, 2], group.said()
        assert time.monotonic() - began < 100.0
    said = [(group.folder / f"{rank}.err").read_text() for rank in range(3)]
    assert "is writing to" in said[0]
    assert said[1:] == ["", ""]


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.faults
def test_what_another_task_refuses_alone_is_said_by_the_first_one_too(
    workers: Workers, token_set: ShardSet, tmp_path: Path
) -> None:
    """As where a node has not mounted the data: who started it all looks at the first one."""
    folder, name = os.path.split(token_set.uri)
    goes_there = f"import os; os.chdir('/' if rank == 1 else {folder!r})"
    options = "gpt_tiny", f"--data={name}", f"--run-dir={tmp_path}/run", *runs.GPT, *THREE
    group = workers.start(*options, world_size=3, faults=[goes_there])
    assert group.codes() == [2, 2, 2], group.said()
    said = [(group.folder / f"{rank}.err").read_text() for rank in range(3)]
    assert said == [said[1], said[1], ""]
    assert len(said[1].splitlines()) == 1


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.faults
@pytest.mark.exhaustive
def test_what_a_task_cannot_import_is_said_by_the_first_one_too(bench: Bench) -> None:
    broken = "import sys\nif rank == 1: sys.modules['training.worker'] = None"
    group = bench.start(bench.folder / "broken", faults=[broken])
    assert group.codes() == [1, 1], group.said()
    said = (group.folder / "0.err").read_text()
    assert "import of training.worker halted" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_command_in_a_batch_script_that_says_where_tasks_are_to_meet_meets_nobody(bench: Bench) -> None:
    words = "import os; os.environ |= {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '9'}"
    run_dir, alone = bench.folder / "batch", "--num-workers=1"
    how: dict[str, Any] = {"world_size": 1, "alone": True, "faults": [words]}
    assert bench.run(run_dir, alone, "--steps=3", **how)["workers"] == 1
    refused = bench.run(run_dir, alone, "--steps=3", "--seed=1", **how, code=2)
    assert "seed is 0 there" in refused["error"]


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_task_that_waits_for_the_others_heeds_a_signal(token_set: ShardSet, tmp_path: Path) -> None:
    """It waits in torch's own code, where Python hears none."""
    with socket.create_server(("127.0.0.1", 0)) as first:  # who accepts, and says nothing
        first.settimeout(100)
        place = f"--data={token_set.uri}", f"--run-dir={tmp_path}/run"
        process = runs.start("gpt_tiny", *place, env=task(1, first.getsockname()[1]))
        with first.accept()[0]:
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            _, err = process.communicate(timeout=60)
    assert process.returncode == Stopped.exit_code, err
    assert time.monotonic() - began < 10.0
    assert "stopped before the first step; repeat the command" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.exhaustive
@pytest.mark.faults
def test_a_task_that_nobody_meets_says_where_it_waited() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOBODY_COMES], env=task(0, port=0), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert "worker 0 of 2 did not meet the others at 127.0.0.1:0 within 1 s" in done.stderr


def test_a_signal_before_the_meeting_is_a_stop_and_after_it_means_what_it_did() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="before the first step"), ended_by_signals():
        signal.raise_signal(signal.SIGTERM)
    time.sleep(1.1)  # the backstop is gone, too
    with ended_by_signals():
        pass
    assert signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGTERM, before)
