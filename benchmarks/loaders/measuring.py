"""What is measured of one contender of `benchmarks/loader.py`: every figure by processes of its own."""

import json
import os
import socket
import statistics
import subprocess
import sys
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

    @property
    def folder(self) -> str:
        return str(self.scratch / "set")

    def write(self, codes: Path) -> None:
        self._finish(self._start("write", {"codes": str(codes), "folder": self.folder}))

    def read(self, **wanted: Any) -> Answer:
        return self.read_together([wanted])[0]

    def read_together(self, wanted_of_ranks: Sequence[dict[str, Any]]) -> list[Answer]:
        """One process a rank. The answers hold the `ids` that each has read."""
        port, started = _free_port(), []
        for rank, wanted in enumerate(wanted_of_ranks):
            out = str(self.scratch / f"ids-{rank}.npy")
            world = {"rank": rank, "world_size": len(wanted_of_ranks)}
            request = {"global_batch": BATCH} | world | wanted.pop("request", {})
            given = {"folder": self.folder, "request": request, "out": out} | wanted
            started.append((self._start("read", given, port=port, **world), out))
        return [self._finish(process) | {"ids": np.load(out)} for process, out in started]

    def _start(
        self, verb: str, given: dict[str, Any], *, rank: int = 0, world_size: int = 1, port: int = 0
    ) -> "subprocess.Popen[str]":
        launched = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in launched.items()}
        child = str(Path(__file__).with_name("child.py"))
        command = [self.python, "-W", "ignore", child, self.module, verb, json.dumps(given)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)

    def _finish(self, process: "subprocess.Popen[str]") -> Answer:
        try:
            answer, _ = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
        if process.returncode:
            sys.exit(f"{self.module} ended with {process.returncode}; what it said is above")
        return json.loads(answer) if answer else {}


def measure(contender: Contender, *, num_batches: int, turns: int, workers: Sequence[int]) -> Answer:
    """One row of the table. `workers`: numbers of reading processes to try."""
    states = {str(contender.scratch / f"at-{share}"): int(num_batches * share) for share in SHARES}
    epochs: dict[int, list[Answer]] = {
        number: [contender.read(request={"workers": number}, states={}) for _ in range(turns)]
        for number in workers
    }
    speed = {number: _median(answers, "tokens_per_second") for number, answers in epochs.items()}
    fastest = max(speed, key=speed.__getitem__)
    row = {"workers": fastest} | {
        name: _median(epochs[fastest], name) for name in ("tokens_per_second", "cpu_seconds", "peak_mb")
    }
    row["shuffle"] = shuffle_quality(epochs[fastest][0]["ids"])
    return row | resumed(contender, states) | elastic(contender)


def shuffle_quality(ids: NDArray[np.int64]) -> float:
    """Mean distance at which two clips of a batch were written, over that of any two clips."""
    batches = np.sort(ids[: len(ids) // BATCH * BATCH].reshape(-1, BATCH), axis=1)
    weights = 2 * np.arange(BATCH) - (BATCH - 1)  # weighs what is sorted to the sum over all pairs
    num_pairs = BATCH * (BATCH - 1) / 2
    return float((batches @ weights).mean() / num_pairs / (len(ids) / 3))


def resumed(contender: Contender, states: dict[str, int]) -> Answer:
    """Going on at the start and at `states`: seconds to the first batch, and whether what comes is what would
    have come."""
    whole = contender.read(states=states)["ids"]
    seconds, alike = [], []
    for state, at in {None: 0, **states}.items():
        again = contender.read(from_state=state, num_batches=RESUMED_BATCHES)
        seconds.append(again["first_seconds"])
        alike.append(np.array_equal(again["ids"], whole[at * BATCH :][: len(again["ids"])]))
    return {"resume_seconds": seconds, "goes_on_exactly": all(alike)}


def elastic(contender: Contender) -> Answer:
    """Steps of which a run that changes its number of ranks takes the same clips as one of a single rank."""
    state, taken = None, []
    for number, world_size in enumerate(WORLD_SIZES):
        after = str(contender.scratch / f"after-{number}")
        wanted = [
            {
                "from_state": state,
                "num_batches": STEPS_OF_EACH,
                "states": {} if rank else {after: STEPS_OF_EACH},
            }
            for rank in range(world_size)
        ]
        read = [answer["ids"].reshape(STEPS_OF_EACH, -1) for answer in contender.read_together(wanted)]
        taken.append(np.concatenate(read, axis=1))
        state = after
    num_steps = STEPS_OF_EACH * len(WORLD_SIZES)
    whole = contender.read(num_batches=num_steps)["ids"].reshape(num_steps, BATCH)
    alike = (np.sort(np.concatenate(taken), axis=1) == np.sort(whole, axis=1)).all(axis=1)
    repeated = num_steps * BATCH - len(np.unique(np.concatenate(taken)))
    return {"steps_alike": int(alike.sum()), "num_steps": num_steps, "clips_repeated": repeated}


def _median(answers: Sequence[Answer], name: str) -> float:
    return statistics.median(answer[name] for answer in answers)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
