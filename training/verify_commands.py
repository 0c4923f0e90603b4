"""The commands of a verification: processes that train in scratch directories, one of which is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from infra import configs
from infra.errors import ReelgptError, Stopped, TrainingError
from training.config import RunConfig
from training.launching.stopping import die_with_parent
from training.run_directory import RunDirectory
from training.saving import manifest

POLL_SECONDS = 0.005
PAUSED = Stopped.exit_code


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where and how the runs are made; as for `training.launching.launch.train`."""

    data: tuple[str, ...]
    scratch: str
    launcher: str
    tokenizer: str | None = None
    init_from: str | None = None


def run_until(
    config: RunConfig, place: Place, run: RunDirectory, *, pause_after: int, resume: str = "auto"
) -> None:
    process = _start(config, place, run, pause_after=pause_after, resume=resume)
    if process.wait() not in (0, PAUSED):
        raise _failed(place, process.returncode)


def run_and_kill(config: RunConfig, place: Place, run: RunDirectory, *, after: int) -> int:
    """Kills the run once the checkpoint of step `after` exists; gives the last step that it had logged."""
    process = _start(config, place, run, pause_after=None, resume="auto")
    while not any(checkpoint.step == after for checkpoint in manifest.committed(run.checkpoints)[0]):
        if process.poll() is not None:
            raise _failed(place, process.returncode)
        time.sleep(POLL_SECONDS)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return max(int(line["step"]) for line in run.read_metrics())


def _start(
    config: RunConfig, place: Place, run: RunDirectory, *, pause_after: int | None, resume: str
) -> subprocess.Popen[str]:
    order = {
        "config": configs.to_dict(config),
        "data": place.data,
        "run_dir": run.path,
        "launcher": place.launcher,
        "tokenizer": place.tokenizer,
        "init_from": place.init_from,
        "resume": resume,
        "pause_after": pause_after,
    }
    with open(_log(place), "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.verify_commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
            preexec_fn=die_with_parent,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    return process


def _log(place: Place) -> str:
    return os.path.join(place.scratch, "log.txt")


def _failed(place: Place, code: int) -> TrainingError:
    with open(_log(place)) as log:
        last = log.read().strip().splitlines()[-1:] or [f"exit code {code}"]
    return TrainingError(f"a run of --verify-resume failed: {last[0]}; all it said is in {_log(place)}")


def _obey(order: dict[str, Any]) -> int:
    """What one command of a verification does."""
    from training.launching.launch import train

    config = configs.from_dict(RunConfig, order.pop("config"))
    try:
        train(config, **order)
    except ReelgptError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_obey(json.load(sys.stdin)))
