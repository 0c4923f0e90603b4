"""What is measured of one contender of `benchmarks/loader.py`, by processes of its own."""

import json
import os
import socket
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 64
"""Clips a step."""
SHARES = (0.5, 0.9)
"""Of an epoch, at which reading is gone on with."""
RESUMED_BATCHES = 5
WORLD_SIZES = (2, 1, 4)
STEPS_OF_EACH = 20
PATIENCE_SECONDS = 300.0

Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    module: str
    """In `benchmarks/loaders`."""
    python: str
    scratch: Path

    def write(self, codes: Path) -> None:
        self._finish(self._start("write", {"codes": str(codes)}))

    def epoch(self, *, workers: int, states_at: Sequence[int]) -> Answer:
        """With the `ids` of all clips, in their order."""
        out = str(self.scratch / "epoch.npy")
        request = {"global_batch": BATCH, "workers": workers}
        given = {"request": request, "states_at": states_at, "num_resumed": RESUMED_BATCHES, "out": out}
        return self._finish(self._start("epoch", given)) | {"ids": np.load(out)}

    def steps(self, *, world_size: int, from_state: str | None, to_state: str) -> NDArray[np.int64]:
        """The clips of each step, over all ranks (steps, BATCH); rank 0's state is the one that is kept."""
        port, started = _free_port(), []
        for rank in range(world_size):
            request = {"global_batch": BATCH, "rank": rank, "world_size": world_size}
            given = {
                "request": request, "from_state": from_state, "num_batches": STEPS_OF_EACH,
                "to_state": f"{to_state}-{rank}" if rank else to_state,
                "out": str(self.scratch / f"steps-{rank}.npy"),
            }  # fmt: skip
            started.append(
                (self._start("steps", given, rank=rank, world_size=world_size, port=port), given["out"])
            )
        for process, _ in started:
            self._finish(process)
        return np.concatenate([np.load(out).reshape(STEPS_OF_EACH, -1) for _, out in started], axis=1)

    def _start(
        self, verb: str, given: dict[str, Any], *, rank: int = 0, world_size: int = 1, port: int = 0
    ) -> "subprocess.Popen[str]":
        launched = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in launched.items()}
        child, folder = str(Path(__file__).with_name("child.py")), {"folder": str(self.scratch / "set")}
        command = [self.python, "-W", "ignore", child, self.module, verb, json.dumps(folder | given)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)

    def _finish(self, process: "subprocess.Popen[str]") -> Answer:
        try:
            answer, _ = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
        if process.returncode:
            raise ChildProcessError(f"{self.module} ended with {process.returncode}; what it said is above")
        return json.loads(answer) or {}


def measure(contender: Contender, *, num_batches: int, turns: int, workers: Sequence[int]) -> Answer:
    """One row of the table. `workers`: numbers of reading processes to try; with the first it resumes."""
    states_at = [int(num_batches * share) for share in SHARES]
    epochs = {
        number: [contender.epoch(workers=number, states_at=states_at if number == workers[0] else [])
                 for _ in range(turns)]
        for number in workers
    }  # fmt: skip
    fastest = max(workers, key=lambda number: _median(epochs[number], "codes_per_second"))
    columns = ("codes_per_second", "cpu_seconds", "peak_mb")
    in_one = epochs[workers[0]][0]
    return (
        {"workers": fastest, "shuffle": shuffle_quality(epochs[fastest][0]["ids"])}
        | {name: _median(epochs[fastest], name) for name in columns}
        | {name: in_one[name] for name in ("resume_seconds", "goes_on_exactly")}
        | elastic(contender, in_one["ids"])
    )


def shuffle_quality(ids: NDArray[np.int64]) -> float:
    """Mean distance at which two clips of a batch were written, over that of any two clips."""
    batches = np.sort(ids[: len(ids) // BATCH * BATCH].reshape(-1, BATCH), axis=1)
    weights = 2 * np.arange(BATCH) - (BATCH - 1)  # weighs what is sorted to the sum over all pairs
    num_pairs = BATCH * (BATCH - 1) / 2
    return float((batches @ weights).mean() / num_pairs / (len(ids) / 3))


def elastic(contender: Contender, ids: NDArray[np.int64]) -> Answer:
    """Steps of which a run that changes its number of ranks takes the same clips as one of a single rank,
    whose `ids` those are."""
    state, taken = None, []
    for number, world_size in enumerate(WORLD_SIZES):
        after = str(contender.scratch / f"after-{number}")
        try:
            taken.append(contender.steps(world_size=world_size, from_state=state, to_state=after))
        except ChildProcessError as error:
            return {"changed_ranks": f"refused ({error})"}
        state = after
    changed = np.concatenate(taken)  # (steps, BATCH)
    whole = ids[: changed.size].reshape(changed.shape)
    alike = (np.sort(changed, axis=1) == np.sort(whole, axis=1)).all(axis=1)
    repeated = changed.size - len(np.unique(changed))
    return {"changed_ranks": f"{alike.sum()} of {len(changed)}, {repeated}"}


def _median(answers: Sequence[Answer], name: str) -> float:
    return statistics.median(answer[name] for answer in answers)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
