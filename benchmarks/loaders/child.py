"""One contender at work, in a process of its own: writes, or reads and tells how long it took.

PYTHON child.py MODULE write|read JSON        the answer is the last line, as JSON
"""

import importlib
import json
import os
import pickle
import resource
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parent.parent.parent))

import numpy as np
import torch


def main(module: str, verb: str, given: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    torch.set_num_threads(1)
    contender, options = importlib.import_module(module), json.loads(given)
    if verb == "write":
        contender.write(np.load(options["codes"], mmap_mode="r"), options["folder"])
        return
    answers.write(json.dumps(read(contender, **options)) + "\n")


def read(
    contender: Any, *, folder: str, request: dict[str, Any], out: str, from_state: str | None = None,
    num_batches: int | None = None, states: dict[str, int] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Reads `num_batches`, or all that there are. Puts the ids into `out`, and each of `states`, a path, once
    so many batches have been read."""
    reader_module = importlib.import_module("reader")
    if from_state:
        request["state"] = pickle.loads(Path(from_state).read_bytes())  # noqa: S301 - a child wrote it
    if request["world_size"] > 1:
        torch.distributed.init_process_group("gloo")
    wanted, ids, first_seconds, first_cpu, num_tokens = (
        {at: path for path, at in (states or {}).items()},
        [],
        0.0,
        0.0,
        0,
    )
    begun = time.perf_counter()
    reader = contender.open_reader(folder, reader_module.Request(**request))
    for done, (batch_ids, codes) in enumerate(islice(reader, num_batches), start=1):
        if done == 1:
            first_seconds, first_cpu = time.perf_counter() - begun, _cpu_seconds()
        else:
            num_tokens += codes.size
        ids.append(batch_ids)
        if done in wanted:
            Path(wanted[done]).write_bytes(pickle.dumps(reader.state(done)))
    seconds = time.perf_counter() - begun - first_seconds
    np.save(out, np.concatenate([np.empty(0, np.int64), *ids]))  # it may have found nothing left
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "first_seconds": first_seconds, "seconds": seconds, "tokens_per_second": num_tokens / seconds,
        "cpu_seconds": _cpu_seconds() - first_cpu, "peak_mb": peak / 1024,
    }  # fmt: skip


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main(*sys.argv[1:])
