"""A real mount of one file, which fails or stops answering when it is told to, and answers again.

It is served over FUSE by a process of its own: one that waited for a mount which it serves itself would wait
for ever, and so would the kernel before it lets it end.
"""

import contextlib
import ctypes
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

MNT_FORCE, MNT_DETACH = 1, 2
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 14, 15, 18, 25  # linux/fuse.h
INIT, INTERRUPT = 26, 36
ASYNC_READ = 1
BATCH_FORGET = 42
ENOENT, EIO, ENOSYS, ESTALE = 2, 5, 38, 116
ROOT, FILE = 1, 2
HEADER_BYTES = 40
REQUEST_BYTES = 1 << 17
MOST_SECONDS = 240.0
"""Of a mount: a test that waits for one in the kernel has no other end."""
WAYS = ("well", "reads fail", "opening fails", "reads stall")


class FaultyMount:
    """`path` has the content given, and serves it in one of WAYS."""

    def __init__(self, path: Path, server: subprocess.Popen[str]) -> None:
        self.path, self._server = path, server

    def serve(self, way: str) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(way + "\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == way + "\n"


@contextlib.contextmanager
def faulty_mount(
    folder: Path, name: str, content: Path, *, reads_ahead: bool = True
) -> Iterator[FaultyMount]:
    """Mounts `content` as FOLDER/NAME; skips the test where this user may not. Whoever still waits at the end
    is answered with an error.

    Who waits for a kernel that reads ahead (ASYNC_READ) seems to wait for a disk (state D, as with NFS); else
    it sleeps (S).
    """
    folder.mkdir()
    flags = ASYNC_READ if reads_ahead else 0
    command = [sys.executable, __file__, str(folder), name, str(content), str(flags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        if said != "mounted\n":
            pytest.skip(f"this user may not mount: {said}")
        yield FaultyMount(folder / name, server)


class Server:
    def __init__(self, folder: str, name: str, content: bytes, flags: int) -> None:
        self._folder, self._name, self._content, self._flags = folder, name.encode(), content, flags
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._device = os.open("/dev/fuse", os.O_RDWR)
        self.way = WAYS[0]
        self._waiting: list[bytes] = []

    def mount(self) -> None:
        options = f"fd={self._device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
        if self._libc.mount(b"faulty", self._folder.encode(), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount")

    def unmount(self) -> None:
        self._libc.umount2(self._folder.encode(), MNT_FORCE | MNT_DETACH)

    def answer_all(self) -> None:
        while True:
            try:
                request = os.read(self._device, REQUEST_BYTES)
            except OSError:  # unmounted
                return
            opcode = struct.unpack_from("<II", request)[1]
            if opcode in (READ, FLUSH) and self.way == "reads stall":
                self._waiting.append(request)
            elif opcode not in (FORGET, BATCH_FORGET, INTERRUPT):
                self._answer_one(request)

    def go_on(self, way: str) -> None:
        self.way = way
        while way != "reads stall" and self._waiting:
            self._answer_one(self._waiting.pop())

    def _answer_one(self, request: bytes) -> None:
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        answer = self._answer(opcode, node, request[HEADER_BYTES:])
        error, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(self._device, struct.pack("<IiQ", 16 + len(data), error, unique) + data)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """The body of the answer, or an errno."""
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, self._flags, 1, 1, 1 << 16, 1, 1, 0, 0)
        if opcode == LOOKUP:
            known = body.rstrip(b"\0") == self._name
            return struct.pack("<QQQQII", FILE, 0, 0, 0, 0, 0) + self._attributes(FILE) if known else ENOENT
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return EIO if self.way == "reads fail" else self._content[offset : offset + size]
        if opcode == OPEN:
            return ESTALE if self.way == "opening fails" else bytes(16)
        return b"" if opcode == RELEASE else ENOSYS

    def _attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
        size = 0 if node == ROOT else len(self._content)
        return struct.pack("<QQQ24xIIIIIIIIII", node, size, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def leave(server: Server) -> None:
    server.unmount()
    os._exit(0)


def main() -> None:
    """FOLDER NAME CONTENT FLAGS; each line of stdin is a way to go on, its end the end."""
    folder, name, content, flags = sys.argv[1:]
    for end in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # those that end the tests, too
        signal.signal(end, signal.SIG_IGN)
    try:
        server = Server(folder, name, Path(content).read_bytes(), int(flags))
        server.mount()
    except OSError as error:
        sys.exit(str(error))
    threading.Thread(target=server.answer_all, daemon=True).start()
    overdue = threading.Timer(MOST_SECONDS, leave, [server])
    overdue.daemon = True
    overdue.start()
    say("mounted")
    for line in sys.stdin:
        server.go_on(line.strip())
        say(server.way)
    leave(server)


if __name__ == "__main__":
    main()
