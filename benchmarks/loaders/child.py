"""One contender at work, in a process of its own: writes, or reads and tells how long it took.

PYTHON child.py MODULE write|epoch|steps JSON        the answer is the last line, as JSON
"""

import importlib
import json
import os
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parent.parent.parent))

import numpy as np
import torch
from reader import Batch, Request


def main(module: str, verb: str, given: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    torch.set_num_threads(1)
    answer = {"write": write, "epoch": epoch, "steps": steps}[verb](
        importlib.import_module(module), **json.loads(given)
    )
    answers.write(json.dumps(answer) + "\n")


def write(contender: Any, *, codes: str, folder: str) -> None:
    contender.write(np.load(codes, mmap_mode="r"), folder)


def epoch(
    contender: Any, *, folder: str, request: dict[str, Any], states_at: list[int], num_resumed: int, out: str
) -> dict[str, Any]:
    """Reads an epoch, and puts its ids into `out`. Then goes on from its start and from where it stood after
    each of `states_at` batches, for `num_resumed` batches."""
    wanted, ids, states = Request(**request), [], [None]
    begun, cpu_begun, num_codes = time.perf_counter(), _cpu_seconds(), 0
    reader = contender.open_reader(folder, wanted)
    for done, (batch_ids, codes) in enumerate(reader, start=1):
        ids.append(batch_ids)
        num_codes += codes.size
        if done in states_at:
            states.append(pickle.loads(pickle.dumps(reader.state(done))))  # noqa: S301 - ours, as if saved
    seconds = time.perf_counter() - begun
    del reader
    cpu_seconds, whole = _cpu_seconds() - cpu_begun, np.concatenate(ids)
    np.save(out, whole)
    resumed, is_exact = [], True
    for at, state in zip([0, *states_at], states, strict=True):
        took, again = _resumed(contender, folder, Request(**request | {"state": state}), num_resumed)
        resumed.append(took)
        expected = whole[at * wanted.batch :][: num_resumed * wanted.batch]
        is_exact &= np.array_equal(again, expected)
    return {
        "codes_per_second": num_codes / seconds, "cpu_seconds": cpu_seconds, "peak_mb": _peak_mb(),
        "resume_seconds": resumed, "goes_on_exactly": bool(is_exact),
    }  # fmt: skip


def _resumed(contender: Any, folder: str, request: Request, num_batches: int) -> tuple[float, Any]:
    """Seconds to the first batch, and the ids of them all."""
    begun = time.perf_counter()
    batches: Iterator[Batch] = iter(contender.open_reader(folder, request))
    first = [ids for ids, _ in islice(batches, 1)]
    took = time.perf_counter() - begun
    return took, np.concatenate(
        [np.empty(0, np.int64), *first, *(i for i, _ in islice(batches, num_batches - 1))]
    )


def steps(
    contender: Any, *, folder: str, request: dict[str, Any], from_state: str | None, num_batches: int,
    to_state: str, out: str,
) -> None:  # fmt: skip
    """One rank of a run: reads `num_batches` from a state on, and leaves its ids and its state."""
    if request["world_size"] > 1:
        torch.distributed.init_process_group("gloo")
    if from_state:
        request["state"] = pickle.loads(Path(from_state).read_bytes())  # noqa: S301 - a child wrote it
    reader = contender.open_reader(folder, Request(**request))
    np.save(out, np.concatenate([ids for ids, _ in islice(reader, num_batches)]))
    Path(to_state).write_bytes(pickle.dumps(reader.state(num_batches)))


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _peak_mb() -> float:
    """Of this process, and of the largest that it started."""
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(who).ru_maxrss for who in processes) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
