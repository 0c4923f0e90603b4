"""What a launcher of the user's announced to this process: torchrun, deepspeed and srun start one a worker.

torchrun and deepspeed speak torch's words (RANK, WORLD_SIZE, MASTER_ADDR ...); Slurm's are put into them.
"""

import os
import re
from collections.abc import MutableMapping

from infra.errors import UsageError

FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""For Slurm, which names none: every job takes one of its own, the same on all its nodes."""
STEPS_PER_JOB = 97
"""Job steps at once on one node that shall not meet at a port."""


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Puts srun's words into torch's. Does nothing where a launcher has spoken, or where nobody has."""
    if is_worker(environment) or not _under_srun(environment):
        return
    words = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": _first_node(environment),
        "MASTER_PORT": str(_port(environment)),
    }
    for name, value in words.items():
        environment.setdefault(name, value)


def is_worker(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether a launcher of the user's started this process as one of several."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def looks_after_itself(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether nobody ends this worker where another one has refused: torchrun and deepspeed would."""
    has_place = "MASTER_ADDR" in environment and "MASTER_PORT" in environment
    is_looked_after = "TORCHELASTIC_RUN_ID" in environment or "CROSS_RANK" in environment
    is_one_of_several = is_worker(environment) and environment["WORLD_SIZE"] != "1"
    return is_one_of_several and has_place and not is_looked_after


def rank(environment: MutableMapping[str, str] = os.environ) -> int:
    return int(environment.get("RANK", "0"))


def world_size(environment: MutableMapping[str, str] = os.environ) -> int:
    """Of a worker."""
    return int(environment["WORLD_SIZE"])


def _under_srun(environment: MutableMapping[str, str]) -> bool:
    """A batch script has a task's words too, and is none: srun starts those."""
    if "SLURM_PROCID" not in environment or environment.get("SLURM_NTASKS", "1") == "1":
        return False
    return environment.get("ENVIRONMENT") != "BATCH" or "SLURM_STEP_ID" in environment


def _first_node(environment: MutableMapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if nodes:
        return first_host(nodes)
    if environment.get("SLURM_NNODES", "1") == "1":
        return "127.0.0.1"
    raise UsageError(
        f"srun started {environment['SLURM_NTASKS']} tasks on {environment['SLURM_NNODES']} nodes and names "
        f"none of them (SLURM_JOB_NODELIST); set MASTER_ADDR to the first one"
    )


def first_host(nodes: str) -> str:
    """Of Slurm's shorthand: `node[007-012,30],login` begins with node007."""
    match = re.match(r"([^\[,]*)(?:\[([^\]]*)\])?([^,\[]*)", nodes)
    assert match is not None
    before, ranges, after = match.groups()
    first = re.split(r"[,-]", ranges)[0] if ranges else ""
    return f"{before}{first}{after}"


def _port(environment: MutableMapping[str, str]) -> int:
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (job * STEPS_PER_JOB + step) % NUM_PORTS
