"""Commands that train for a few steps, as processes that can be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.shards import ShardSet
from training.saving import manifest

STEPS = 12
OPTIONS = (
    f"--steps={STEPS}", "--log-every-steps=1", "--checkpoints.every-steps=3", "--evaluation.every-steps=6",
    "--optimizer.warmup-steps=2",
)  # fmt: skip
GPT = (
    *OPTIONS, "--objective.prefix-frames=1", "--objective.model.model-dim=16",
    "--objective.model.num-layers=2",
    "--objective.model.num-heads=2", "--objective.model.num-kv-heads=1", "--objective.model.hidden-dim=32",
    "--batches.global-batch=8", "--batches.micro-batch=2",
)  # fmt: skip
IMPATIENT = ("--watchdog.floor-seconds=6", "--watchdog.grace-seconds=60")
TOKENIZER = (
    *OPTIONS, "--objective.model.frame-size=16", "--objective.model.base-channels=8",
    "--objective.model.max-channels=8", "--objective.model.num-heads=1", "--objective.model.patch-size=4",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
WITHOUT_RAY_AND_MLFLOW = """
import importlib.machinery

find = importlib.machinery.PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name in ("ray", "mlflow") else find(name, path, target)


importlib.machinery.PathFinder.find_spec = find_spec
"""
TIMING = (
    "seconds_per_step", "tokens_per_second", "frames_per_second", "loader_wait_seconds", "loader_wait_share",
    "save_stall_seconds", "memory_gb", "mfu", "timestamp_ms",
)  # fmt: skip
PATIENCE_SECONDS = 400.0
"""For what takes a minute on a machine that does nothing else."""


def gpt(token_set: ShardSet, run_dir: Path) -> tuple[str, ...]:
    return "gpt_tiny", f"--data={token_set.uri}", f"--run-dir={run_dir}", *GPT


def bare_environment(folder: Path, *, fault: str = "") -> dict[str, str]:
    """That of a training machine with neither Ray nor MLflow, and perhaps a fault."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WITHOUT_RAY_AND_MLFLOW + fault)
    return os.environ | {"PYTHONPATH": str(folder)}


def start(
    *arguments: str, env: dict[str, str] | None = None, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`reelgpt train ...`, or, with TORCHRUN before it, the same under a torchrun of the user's."""
    command = [sys.executable, *before, "-m", "reelgpt", "train", *arguments, "--json"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], *, code: int = 0) -> dict[str, Any]:
    """Its summary, or what it refused with."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, err[-4000:]
    answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1]) | {"stderr": err}
    return answer


def run(*arguments: str, code: int = 0, **options: Any) -> dict[str, Any]:
    return finish(start(*arguments, **options), code=code)


def kill_once(process: subprocess.Popen[str], is_time: Callable[[], bool]) -> None:
    """SIGKILL, as soon as it is time."""
    wait_until(is_time, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_until(is_time: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_time():
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def steps_logged(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def newest_committed(run_dir: Path) -> int:
    """Step of the newest checkpoint: a step that is logged need not be saved yet."""
    whole, _ = manifest.committed(str(run_dir / "checkpoints"))
    return whole[0].step if whole else 0


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """What must be the same to the last bit: every line without the times in it."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def ray_workers(driver: int) -> list[int]:
    """Process ids of the training workers of the Ray cluster that the process `driver` started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"RayTrainWorker" in (folder / "cmdline").read_bytes() and driver in _ancestors(
                int(folder.name)
            ):
                found.append(int(folder.name))
    return sorted(found)


def _ancestors(pid: int) -> list[int]:
    above = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        above.append(pid)
    return above
