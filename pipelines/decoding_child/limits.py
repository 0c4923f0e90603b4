"""What the child may use: its own limits, set before the first byte of a file is read."""

import ctypes
import math
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def set_for_good(parent: int, memory_mb: int) -> None:
    """Dies with its parent; bounded memory, no core files, nothing written anywhere."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    _limit(resource.RLIMIT_AS, memory_mb << 20)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)


def set_cpu(seconds: float) -> None:
    """From now on; the kernel ends the child with SIGXCPU when they are used up."""
    _limit(resource.RLIMIT_CPU, math.ceil(cpu_seconds() + seconds))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
