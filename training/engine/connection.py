"""How a worker joins the others, and leaves them: the process group, and DeepSpeed's hands on it.

Nothing is compiled: gloo without DeepSpeed's shared-memory extension, which would have to be.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from training.engine.kept_memory import keep_freed_memory
from training.engine.rendezvous import meet
from training.engine.withheld import withheld
from training.ranks import Ranks

if not torch.cuda.is_available():
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # before the import, which otherwise looks for one and warns
with withheld("mlflow"):  # for DeepSpeed's autotuner: it would bring a web server along
    import deepspeed
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator

__all__ = ["connect", "deepspeed", "disconnect", "without_barriers"]
"""DeepSpeed is had from here, where its accelerator was chosen before it was imported."""

HANG_TIMEOUT = timedelta(minutes=30)
"""For a word at torch's store."""
COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Behind the watchdog, which knows how long a step takes and says who is missing; torch ends who waits."""


def connect() -> Ranks:
    """Joins the other workers: those that a launcher announced in the environment, or nobody."""
    _compile_no_extensions()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch.distributed"
    )  # of DeepSpeed's calls
    if not torch.cuda.is_available():
        # DeepSpeed wants a CPU with fast fp16; torch computes it on every one, so that a run can be tried
        get_accelerator().is_fp16_supported = lambda: True
    keep_freed_memory()
    if not torch.distributed.is_initialized():
        _join()
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if world_size == 1:
        comm.comm.cdb.all_reduce = _leave_as_it_is
        return Ranks()
    group = torch.distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    return Ranks(rank=rank, world_size=world_size, group=group)


def disconnect() -> None:
    """Leaves the group, so that the process can join another."""
    comm.destroy_process_group()
    comm.comm.cdb = None  # or DeepSpeed takes the next group for this one


def _join() -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # a batch script may say the latter alone
        store, rank, world_size = meet()
        store.set_timeout(HANG_TIMEOUT)
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
        )
    else:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def _compile_no_extensions() -> None:
    """DeepSpeed asks whether it could compile the one for shared memory; to know that of all that it has, it
    would first run a compiler."""
    known: dict[str, bool] = vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    known["deepspeed_shm_comm"] = False


class _Done:
    def wait(self) -> None:
        pass


@contextmanager
def without_barriers() -> Iterator[None]:
    """Inside, nobody waits for the others where DeepSpeed would have all ranks do so, as it does around the
    files of a checkpoint that it writes itself."""
    backend = comm.comm.cdb
    barrier, backend.barrier = backend.barrier, _wait_for_nobody
    try:
        yield
    finally:
        backend.barrier = barrier


def _wait_for_nobody(*_: Any, **__: Any) -> None:
    pass


def _leave_as_it_is(tensor: torch.Tensor, *_: Any, async_op: bool = False, **__: Any) -> Any:
    """The sum, mean or maximum over one rank: DeepSpeed would send it round at every step."""
    return _Done() if async_op else tensor
