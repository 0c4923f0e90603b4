"""Steps that repeat to the last bit.

Those of a CPU do by themselves. On a GPU the fastest kernels add up in whatever order their parts are done,
such as attention's for its gradient.
"""

import os

import torch


def choose_kernels(*, deterministic: bool) -> None:
    """For the whole process; before it has computed anything on a GPU."""
    if not torch.cuda.is_available():
        return
    if deterministic == torch.are_deterministic_algorithms_enabled():
        return  # to ask for what is there would bring torch's compiler along
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses matrix products without it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for debugging
    torch.use_deterministic_algorithms(deterministic)
