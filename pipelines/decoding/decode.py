"""A span to frames, whatever the file does to the decoder.

decord can loop for ever holding the interpreter's lock, crash, or grow without bound: only another process
bears that. This file asks such a child, tries again what ended it, and gives each end that it can come to as
a `Decoded` with one of `error_classes`. Faults of the machine raise instead: they say nothing of the file.
"""

import itertools
import socket
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from infra.errors import ClusterError, UsageError
from pipelines.config import DecodeLimits
from pipelines.decoding.decoding_process import DecodingProcess
from pipelines.decoding.source_cache import opened_locally
from pipelines.source_errors import failing_disk, stalled

SPANS_PER_CHILD = 200
"""A child is replaced after this many requests, so that what a decoder leaks stays small."""
MOST_KILLS = 5
"""SIGKILLs from outside, as by a kernel without memory, on one span: they are no fault of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What became of a span: frames, or the class of the error and a sentence. With both, only a part of it
    was lost."""

    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    """(N, H, W, 3) uint8, shown at start + j / fps; H x W is one of the sizes asked for."""
    indices: tuple[int, ...] = ()
    """Which distinct picture each frame is; equal neighbours are repeats."""
    width: int = 0
    """Of the source, upright and in square pixels; 0 where it cannot be opened."""
    height: int = 0
    source_seconds: float | None = None
    """Duration of the whole source; None where it is unknown."""
    decoder: str | None = None
    num_source_frames: int = 0
    cpu_seconds: float = 0.0
    attempts: int = 1
    error_class: str | None = None
    error: str | None = None


class Decoder:
    """One decoding child, started when it is first needed, reused, and replaced after a crash or many
    spans."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._child: DecodingProcess | None = None

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
        """`duration_seconds` (None where unknown), or `error_class` and `error`."""
        return self._ask(file, {"verb": "probe"})[0]

    def start(self) -> None:
        """The child, before it is needed."""
        self._ready_child()

    def child_pid(self) -> int | None:
        return self._child.pid if self._child else None

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _ask(self, file: IO[bytes], request: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
        request["cpu_seconds"] = self._limits.cpu_seconds
        failures = kills = 0
        for attempt in itertools.count(1):
            child = self._ready_child()
            was_fresh = child.num_requests == 0
            answer, payload = child.ask(file.fileno(), request)
            answer["attempts"] = attempt
            if "disk_error" in answer:
                raise failing_disk(file, *answer["disk_error"])
            if "stalled" in answer:
                self.close()
                raise stalled(file, answer["stalled"])
            is_out_of_memory = answer.get("error_class") == "memory_limit"
            if not child.has_ended() and not is_out_of_memory:
                return answer, payload
            self.close()
            if child.was_killed:
                kills += 1
                self._check_kills(kills)
                continue
            failures += was_fresh  # what an old child dies of may be what earlier files left in it
            if failures >= (1 if is_out_of_memory else self._limits.attempts):
                return answer, payload
        raise AssertionError("counts without end")

    def _ready_child(self) -> DecodingProcess:
        if self._child is None or self._child.num_requests >= SPANS_PER_CHILD:
            self.close()
            self._child = DecodingProcess(self._limits)
        return self._child

    def _check_kills(self, kills: int) -> None:
        if kills >= MOST_KILLS:
            raise ClusterError(
                f"something kills the decoding children on {socket.gethostname()} ({kills} times for one "
                f"span); it may be out of memory: free some, or lower --num-cpus, and repeat the command"
            )


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
    if decoded.error_class and not len(decoded.frames):
        raise UsageError(f"{uri} cannot be decoded ({decoded.error_class}): {decoded.error}")
    if len(decoded.frames) < num_frames:
        raise UsageError(
            f"{uri} has {len(decoded.frames)} frames at {fps:g} a second from {start_seconds:g} s on, "
            f"{num_frames} are needed; give a longer video or an earlier start"
        )
    return decoded.frames[:num_frames]
