"""What the child may use: its own limits, set before the first byte of a file is read."""

import ctypes
import math
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def set_for_good(parent: int, memory_mb: int) -> None:
    """Dies with its parent; bounded memory, no core files, nothing written anywhere; and no way back."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    for what, most in (
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        value = _at_most(what, most)
        resource.setrlimit(what, (value, value))


def set_cpu(seconds: float) -> None:
    """From now on; the kernel ends the child with SIGXCPU when they are used up."""
    limit = _at_most(resource.RLIMIT_CPU, math.ceil(cpu_seconds() + seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _at_most(what: int, value: int) -> int:
    hard = resource.getrlimit(what)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)
