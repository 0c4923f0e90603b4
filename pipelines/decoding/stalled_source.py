"""Whether a file can be read at all, asked of the file system itself: where a child waits for a mount that
does not answer (FUSE, NFS), nothing is wrong with its decoder."""

import contextlib
import socket
import subprocess
import sys

from pipelines.decoding.endings import end

PROGRAM = """
import os, socket
def read(file, channel):
    size, part = os.fstat(file).st_size, 1 << 20
    for place in [*range(0, size, max(part, size // 64)), max(0, size - part)]:
        os.posix_fadvise(file, place, part, os.POSIX_FADV_DONTNEED)
        os.pread(file, part, place)
        channel.sendall(b".")
channel = socket.socket(fileno=0)
while (received := socket.recv_fds(channel, 1, 1))[0]:
    try:
        read(received[1][0], channel)
    except OSError:
        pass
    os.close(received[1][0])
    channel.sendall(b"!")
"""
"""Reads some 64 MiB all over the file, however long it is, and none of them from memory: a mount stalls as a
whole. A read that fails is an answer, too."""


class SourceReader:
    """A process that reads where nothing interrupts a read, and can be left to the kernel.

    It is there before it is needed: whoever starts a process closes its own files in it, which may wait for
    the same mount.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", PROGRAM],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )

    def is_stalled(self, descriptor: int, still_seconds: float) -> bool:
        """Whether a read of the file takes longer than `still_seconds`."""
        self._socket.settimeout(still_seconds)
        with contextlib.suppress(ConnectionError):  # somebody killed it
            socket.send_fds(self._socket, [b"?"], [descriptor])
            try:
                while self._socket.recv(1) == b".":
                    pass
            except TimeoutError:
                return True
        return False

    def end(self) -> None:
        self._socket.close()
        end(self._process)
