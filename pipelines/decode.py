"""A span to frames, in a child process that can be killed.

decord can loop for ever holding the interpreter's lock, crash, or grow without bound: only another process
bears that. This file starts the child, hands it open files, watches it, and turns each end it can come to
into a `Decoded` with one of the closed list of error classes. Faults of storage raise instead: they say
nothing of the file.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

import numpy as np

from infra import storage
from infra.errors import ClusterError, UsageError
from pipelines.config import DecodeLimits

ERROR_CLASSES = {
    "empty": "the file has no bytes",
    "not_media": "no demuxer knows the file",
    "no_video": "the file has no video stream",
    "truncated": "the file was cut off before the part that is needed",
    "corrupt": "the video stream cannot be decoded",
    "cpu_limit": "decoding used more CPU seconds than it may",
    "memory_limit": "decoding needed more memory than it may use",
    "decoder_crash": "the decoder crashed each time it was tried",
    "decoder_hang": "the decoder stood still without using the CPU",
}
"""Every way in which a span can fail, and what it means."""

SPANS_PER_CHILD = 200
"""A child is replaced after this many requests, so that what a decoder leaks stays small."""
ANSWER_HEADER = "<QQ"
"""Bytes of the JSON answer and of the frames that follow it; as in `pipelines.decoding_child`."""
MOST_KILLS = 5
"""SIGKILLs from outside, as by a kernel without memory, on one span: they are no fault of the file."""
POLL_SECONDS = 5.0
START_SECONDS = 120.0
STILL_POLLS = 6
"""Polls in a row without any CPU use after which a sleeping child counts as hanging."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What became of a span: frames, or the class of the error and a sentence."""

    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    """(N, H, W, 3) uint8, shown at start + j / fps; H x W is one of the sizes asked for."""
    indices: tuple[int, ...] = ()
    """Which distinct picture each frame is; equal neighbours are repeats."""
    width: int = 0
    """Of the source, upright and in square pixels; 0 where it cannot be opened."""
    height: int = 0
    decoder: str | None = None
    num_source_frames: int = 0
    num_damaged: int = 0
    last_frame_seconds: float = 0.0
    duration_seconds: float | None = None
    cpu_seconds: float = 0.0
    attempts: int = 1
    error_class: str | None = None
    error: str | None = None


class Decoder:
    """One decoding child, started when it is first needed, reused, and replaced after a crash or many
    spans."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._child: _Child | None = None

    def decode(
        self,
        file: IO[bytes],
        *,
        start_seconds: float,
        end_seconds: float | None,
        fps: float,
        sizes: tuple[tuple[int, int], ...],
    ) -> Decoded:
        """Frames of [start, end) seconds of an open local file, at the one of `sizes` (height, width) that is
        nearest in aspect ratio; `end_seconds` None means up to its end."""
        answer, payload = self._ask(
            file, {"verb": "decode", "start": start_seconds, "end": end_seconds, "fps": fps, "sizes": sizes}
        )
        if "shape" in answer:
            answer["frames"] = np.frombuffer(payload, np.uint8).reshape(answer.pop("shape"))
            answer["indices"] = tuple(answer["indices"])
        return Decoded(**answer)

    def probe(self, file: IO[bytes]) -> dict[str, Any]:
        """What the container promises: `duration_seconds` (None where unknown), or `error_class` and
        `error`."""
        return self._ask(file, {"verb": "probe"})[0]

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _ask(self, file: IO[bytes], request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        request["cpu_seconds"] = self._limits.cpu_seconds
        failures = kills = 0
        while True:
            child = self._ready_child()
            answer, payload = child.ask(file, request)
            answer["attempts"] = failures + kills + 1
            if not child.has_ended():
                return answer, payload
            self.close()
            failures += not child.was_killed
            kills += child.was_killed
            if kills >= MOST_KILLS:
                raise ClusterError(
                    f"something kills the decoding children on {socket.gethostname()} ({kills} times for one "
                    f"span); it may be out of memory: free some, or lower --num-cpus, and repeat the command"
                )
            if failures >= self._limits.attempts:
                return answer, payload

    def _ready_child(self) -> "_Child":
        if self._child is None or self._child.num_requests >= SPANS_PER_CHILD:
            self.close()
            self._child = _Child(self._limits.memory_mb)
        return self._child


class _Child:
    def __init__(self, memory_mb: int) -> None:
        ours, theirs = socket.socketpair()
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "decoding_child.py")
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", program, str(os.getpid()), str(memory_mb)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
                env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                cwd="/",
            )
        self._socket = ours
        self.num_requests = 0
        self.was_killed = False
        """By somebody else, with SIGKILL."""
        self._await_ready()

    def _await_ready(self) -> None:
        """Raises ClusterError where the child cannot even start: a fault of the machine, not of a file."""
        self._socket.settimeout(START_SECONDS)
        try:
            ready = self._socket.recv(1)
        except (TimeoutError, ConnectionError):
            ready = b""
        self._socket.settimeout(POLL_SECONDS)
        if ready:
            return
        self._complaints.seek(0)
        last_words = self._complaints.read().decode(errors="replace").strip().splitlines()[-1:]
        self.kill()
        raise ClusterError(
            f"the decoding child cannot start on {socket.gethostname()}: "
            f"{' '.join(last_words) or 'no word why'}; install reelgpt's dependencies there anew"
        )

    def ask(self, file: IO[bytes], request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The child's answer, or one that says how the child ended."""
        self.num_requests += 1
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], [file.fileno()])
            answer_bytes, payload_bytes = struct.unpack(
                ANSWER_HEADER, self._receive(struct.calcsize(ANSWER_HEADER))
            )
            answer = cast(dict[str, Any], json.loads(self._receive(answer_bytes)))
            return answer, self._receive(payload_bytes)
        except _HangingError:
            self._process.kill()
            self._process.wait()
            return {"error_class": "decoder_hang", "error": ERROR_CLASSES["decoder_hang"]}, b""
        except (ConnectionError, BrokenPipeError):
            return self._explain_end(), b""

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._complaints.close()

    def _explain_end(self) -> dict[str, Any]:
        try:
            code = self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error_class": "decoder_hang", "error": ERROR_CLASSES["decoder_hang"]}
        self.was_killed = code == -signal.SIGKILL
        if code == -signal.SIGXCPU:
            return {"error_class": "cpu_limit", "error": ERROR_CLASSES["cpu_limit"]}
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"error_class": "decoder_crash", "error": f"{ERROR_CLASSES['decoder_crash']} ({how})"}

    def _receive(self, num_bytes: int) -> bytes:
        data = bytearray(num_bytes)
        view, still_polls, used = memoryview(data), 0, self._cpu_ticks()
        while view:
            try:
                received = self._socket.recv_into(view)
            except TimeoutError:
                still_polls = still_polls + 1 if self._cpu_ticks() == used else 0
                used = self._cpu_ticks()
                if still_polls >= STILL_POLLS:
                    raise _HangingError from None
                continue
            if received == 0:
                raise ConnectionResetError
            view = view[received:]
        return bytes(data)

    def _cpu_ticks(self) -> tuple[str, ...]:
        """User and system time of the child, with its state while that is not sleeping: a busy machine is no
        hang."""
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{self._process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            return (*fields[11:13], "" if fields[0] == "S" else os.urandom(4).hex())
        return ("gone",)


class _HangingError(Exception):
    pass


@contextlib.contextmanager
def opened_locally(uri: str) -> Iterator[IO[bytes]]:
    """A source as an open local file: itself where it is local, else a copy kept until the next one."""
    if storage.is_local(uri):
        with storage.open_input(uri) as file:
            yield file
        return
    yield REMOTE_COPY.of(uri)


class RemoteCopy:
    """A local copy of the last remote source, without a name: it is gone with the process, in any end."""

    def __init__(self) -> None:
        self._uri: str | None = None
        self._file: IO[bytes] | None = None

    def of(self, uri: str) -> IO[bytes]:
        if self._file is None or self._uri != uri:
            self.close()
            with tempfile.TemporaryDirectory(prefix="reelgpt-source-") as folder:
                path = os.path.join(folder, "copy")
                storage.fetch(uri, path)
                self._uri, self._file = uri, open(path, "rb")  # noqa: SIM115 - kept for the next span
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


REMOTE_COPY = RemoteCopy()
"""Of this process: the spans of a source follow each other."""


def read_frames(
    uri: str, *, size: int, fps: float, num_frames: int, start_seconds: float = 0.0
) -> np.ndarray:
    """`num_frames` frames from `start_seconds` on, (T, size, size, 3) uint8, sampled at `fps`.

    Raises UsageError where the file cannot be decoded or is too short.
    """
    decoder = Decoder(DecodeLimits())
    end_seconds = start_seconds + num_frames / fps
    try:
        with opened_locally(uri) as file:
            decoded = decoder.decode(
                file, start_seconds=start_seconds, end_seconds=end_seconds, fps=fps, sizes=((size, size),)
            )
    finally:
        decoder.close()
    if decoded.error_class:
        raise UsageError(f"{uri} cannot be decoded ({decoded.error_class}): {decoded.error}")
    if len(decoded.frames) < num_frames:
        raise UsageError(
            f"{uri} has {len(decoded.frames)} frames at {fps:g} a second from {start_seconds:g} s on, "
            f"{num_frames} are needed; give a longer video or an earlier start"
        )
    return decoded.frames[:num_frames]
