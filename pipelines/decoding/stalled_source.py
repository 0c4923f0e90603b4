"""Whether a file can be read at all, asked of the file system itself: where a child waits for a mount that
does not answer (FUSE, NFS), nothing is wrong with its decoder."""

import os
import select
import subprocess
import sys

from pipelines.decoding.endings import end

START_SECONDS = 120.0
READER = """
import os
os.write(1, b".")
size, part = os.fstat(0).st_size, 1 << 20
for place in [*range(0, size, max(part, size // 64)), max(0, size - part)]:
    os.posix_fadvise(0, place, part, os.POSIX_FADV_DONTNEED)
    os.pread(0, part, place)
    os.write(1, b".")
"""
"""Reads some 64 MiB all over the file, however long it is, and none of them from memory: a mount stalls as a
whole. A read that fails ends it, and is an answer, too."""


def is_stalled(descriptor: int, still_seconds: float) -> bool:
    """Whether a read of the file takes longer than `still_seconds`.

    It happens in a process of its own, since nothing interrupts it: that one can be left to the kernel.
    """
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", READER],
        stdin=descriptor,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
    )
    assert reader.stdout is not None
    with reader.stdout as signs:
        seconds, poll = START_SECONDS, select.poll()
        poll.register(signs, select.POLLIN)
        while poll.poll(1000 * seconds):
            if not os.read(signs.fileno(), 1 << 10):
                break
            seconds = still_seconds
        else:
            end(reader)
            return True
    end(reader)
    return False
