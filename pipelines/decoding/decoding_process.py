"""The decoding child seen from its parent: started, asked, watched, and its end explained.

A hang is told by stillness (for `still_seconds` no thread of the child runs or waits for a disk, and none
used the CPU), never by how long a request takes: on a busy machine everything is slow. An endless loop uses
the CPU, and ends at its limit. Whoever stands still may wait for a mount: then another process reads the
file, too, and only a child that stands still after that hangs.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast

from infra.errors import ClusterError
from pipelines.config import DecodeLimits
from pipelines.decoding.child import protocol
from pipelines.decoding.endings import end
from pipelines.decoding.stalled_source import SourceReader
from pipelines.error_classes import ERROR_CLASSES

ROOT = str(Path(__file__).parents[2])
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from pipelines.decoding.child.main import main; main()"
)
"""Isolated (-I), with this checkout's packages in reach, whatever else is installed."""
START_SECONDS = END_SECONDS = 120.0
POLLS = 6
"""Looks at a child that does not answer, without a sign of life, before it counts as hanging."""
LAST_WORDS_BYTES = 1 << 16
OUT_OF_MEMORY = ("bad_alloc", "Cannot allocate memory", "MemoryError")
"""In the last words of a child whose native code ended the process instead of telling."""

Answer = dict[str, Any]
Signs = list[tuple[str, ...]]


class DecodingProcess:
    """One child. After `ask`, `has_ended` says whether it can be asked again."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._socket, theirs = socket.socketpair()
        self._complaints, their_complaints = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        arguments = [ROOT, str(os.getpid()), str(limits.memory_mb), str(self._complaints)]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-I", "-c", PROGRAM, *arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=their_complaints,
                pass_fds=[self._complaints],
                env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                cwd="/",
            )

        try:
            self._process = _starting_thread(os.getpid()).submit(start).result()
            self._reader = SourceReader()
        except OSError as error:
            raise _cannot_start(error) from None
        finally:
            theirs.close()
            os.close(their_complaints)
        self.num_requests = 0
        self.was_killed = False
        """By somebody else, with SIGKILL."""
        self._await_ready()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, descriptor: int, request: Answer) -> tuple[Answer, memoryview]:
        """The child's answer, or one that says how the child ended."""
        self.num_requests += 1
        nothing = memoryview(b"")
        try:
            protocol.send_request(self._socket, request, descriptor)
            header = self._receive(protocol.HEADER.size, descriptor)
            answer_bytes, payload_bytes = protocol.HEADER.unpack(header)
            answer = cast(Answer, json.loads(bytes(self._receive(answer_bytes, descriptor))))
            return answer, self._receive(payload_bytes, descriptor)
        except _StalledError:
            return {"stalled": self._limits.still_seconds}, nothing
        except _HangingError:
            self._process.kill()
            return self._explain_end(was_hanging=True), nothing
        except (ConnectionError, BrokenPipeError):
            return self._explain_end(), nothing

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        end(self._process)
        self._reader.end()
        self._socket.close()
        os.close(self._complaints)

    def _await_ready(self) -> None:
        """Raises ClusterError where the child cannot even start: a fault of the machine, not of a file."""
        self._socket.settimeout(START_SECONDS)
        try:
            ready = self._socket.recv(1)
        except (TimeoutError, ConnectionError):
            ready = b""
        self._socket.settimeout(self._limits.still_seconds / POLLS)
        if ready or self._was_killed_at_start():
            return  # of the latter, whoever asks it is told
        reason = (self._last_words().strip().splitlines() or ["no word why"])[-1]
        self.kill()
        raise _cannot_start(reason)

    def _was_killed_at_start(self) -> bool:
        try:
            return self._process.wait(1.0) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def _explain_end(self, *, was_hanging: bool = False) -> Answer:
        """Of a process that was killed or has left; one that does not end is kept by a file system."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return {"stalled": END_SECONDS}
        if was_hanging:
            return _failed("decoder_hang")
        self.was_killed = code == -signal.SIGKILL
        if code == -signal.SIGXCPU:
            return _failed("cpu_limit")
        if any(sign in self._last_words() for sign in OUT_OF_MEMORY):
            return _failed("memory_limit")
        return _failed("decoder_crash", signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def _last_words(self) -> str:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._complaints, LAST_WORDS_BYTES).decode(errors="replace")
        return ""

    def _receive(self, num_bytes: int, descriptor: int) -> memoryview:
        """Writable, so that arrays over it are too. Raises _StalledError where the file itself does not
        answer, _HangingError, or ConnectionError at the end."""
        data = memoryview(bytearray(num_bytes))
        view, still_polls, used = data, 0, self._signs_of_life()
        while view:
            try:
                received = self._socket.recv_into(view)
            except TimeoutError:
                before, used = used, self._signs_of_life()
                still_polls = still_polls + 1 if used == before else 0
                self._explain_stillness(still_polls, descriptor, used)
                continue
            if received == 0:
                raise ConnectionResetError
            view = view[received:]
        return data

    def _explain_stillness(self, num_polls: int, descriptor: int, signs: Signs) -> None:
        """At the first poll after the file was read a child that waited for its mount stands still no more. A
        slow disk is none of either."""
        is_due = num_polls and num_polls % POLLS == 0
        if is_due and self._reader.is_stalled(descriptor, self._limits.still_seconds):
            raise _StalledError
        if num_polls > POLLS and not any(state == "D" for _, state, *_ in signs):
            raise _HangingError

    def _signs_of_life(self) -> Signs:
        """State and CPU time of each thread; nothing of the child is alike twice while one runs."""
        signs: Signs = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in sorted(os.listdir(f"/proc/{self.pid}/task")):
                with open(f"/proc/{self.pid}/task/{thread}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                now = str(time.monotonic_ns()) if fields[0] == "R" else ""
                signs.append((thread, fields[0], *fields[11:13], now))
        return signs


class _HangingError(Exception):
    pass


class _StalledError(Exception):
    pass


def _cannot_start(reason: object) -> ClusterError:
    return ClusterError(
        f"the decoding child cannot start on {socket.gethostname()}: {reason}; install reelgpt's "
        f"dependencies there anew, or give it more memory (--limits.memory-mb)"
    )


def _failed(error_class: str, how: str = "") -> Answer:
    sentence = ERROR_CLASSES[error_class] + (f" ({how})" if how else "")
    return {"error_class": error_class, "error": sentence}


@cache
def _starting_thread(_: int) -> ThreadPoolExecutor:
    """The thread that starts children, for as long as this process (by its id, as forks have none of it)
    lives: the kernel ends a child with the *thread* that started it."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoding-children")
