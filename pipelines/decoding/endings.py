"""The end of a process that may wait for a mount, where the kernel keeps it until that answers."""

import contextlib
import subprocess

LEAVING_SECONDS = 1.0
"""For one that was killed."""
_KEPT: list[subprocess.Popen[bytes]] = []
"""Killed, and kept by the kernel: their ends are asked for until they come."""


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills it, and does not wait for what the kernel keeps."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LEAVING_SECONDS)
    _KEPT[:] = [one for one in (*_KEPT, process) if one.poll() is None]
