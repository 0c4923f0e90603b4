"""Whether a file can be read at all, asked of the file system itself: where a child waits for a mount that
does not answer (FUSE, NFS), nothing is wrong with its decoder."""

import contextlib
import os
import threading

READ_AT_ONCE = 1 << 20


def is_stalled(descriptor: int, still_seconds: float) -> bool:
    """Reads the file to its end; true where one read takes longer than `still_seconds`. A read that fails is
    an answer, too.

    It happens in a thread, which is left behind where it waits: nothing interrupts such a read.
    """
    position, copy = 0, os.dup(descriptor)

    def read() -> None:
        nonlocal position
        with contextlib.suppress(OSError):
            while part := os.pread(copy, READ_AT_ONCE, position):
                position += len(part)
        os.close(copy)

    thread, before = threading.Thread(target=read, daemon=True), -1
    thread.start()
    while thread.is_alive() and position > before:
        before = position
        thread.join(still_seconds)
    return thread.is_alive()
