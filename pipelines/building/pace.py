"""How fast a graph went: its rates, what the hardware would have allowed, and what kept it from more.

Counts from the first call of a worker to the end of the last: what comes before is the start of Ray and of
its workers, which a long run does not feel, and which is told apart.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage

FILE = "pace.json"
"""Beside the manifest: the pace of the last command that did some of the set's units."""
MEASURED = ("num_clips", "num_frames", "decode_cpu_seconds", "tokenize_seconds", "worker_seconds")
"""Columns of the rows that workers report."""
WAITING = "waiting"
REST = "the rest of the calls"
WORDS = {
    WAITING: "workers wait: few units are left, or Ray has none ready",
    REST: "fetching, scoring and writing, or cores that others use",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """What the graph had to work with."""

    cores: int
    gpus: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Of the units that one command did."""

    devices: Devices
    clips: int
    video_seconds: float
    start_seconds: float
    """From the start of the work to the first call of a worker."""
    working_seconds: float
    """From the first call of a worker to the end of the last."""
    decode_cpu_seconds: float
    tokenize_seconds: float
    """Of cores, or of the GPUs where there are some."""
    worker_seconds: float
    """That the workers which report spent in calls, whatever they waited for."""

    @property
    def limit_seconds(self) -> float:
        """What the hardware needs. Stages that share the cores add up; beside GPUs the slower one counts."""
        decoding, tokenizing = self._device_seconds()
        return max(decoding, tokenizing) if self.devices.gpus else decoding + tokenizing

    @property
    def share_of_limit(self) -> float:
        return self.limit_seconds / self.working_seconds if self.working_seconds else 0.0

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of the working time that each took, if spread over all the devices."""
        decoding, tokenizing = self._device_seconds()
        in_calls = self.worker_seconds / (self.devices.gpus or self.devices.cores)
        rest = max(0.0, in_calls - (tokenizing if self.devices.gpus else decoding + tokenizing))
        waiting = max(
            0.0, self.working_seconds - (max(decoding, in_calls) if self.devices.gpus else in_calls)
        )
        return {"decoding": decoding, "tokenizing": tokenizing, REST: rest, WAITING: waiting}

    @property
    def bottleneck(self) -> str:
        """The stage that takes most of the time: what to speed up first."""
        return max(self.stages, key=lambda stage: self.stages[stage])

    def summary(self) -> dict[str, Any]:
        """For programs: what `--json`, MLflow and the report tell."""
        working = self.working_seconds or float("inf")
        return {
            "clips_per_second": round(self.clips / working, 3),
            "video_hours_per_hour": round(self.video_seconds / working, 3),
            "decode_cpu_seconds": round(self.decode_cpu_seconds, 3),
            "tokenize_seconds": round(self.tokenize_seconds, 3),
            "start_seconds": round(self.start_seconds, 3),
            "working_seconds": round(self.working_seconds, 3),
            "limit_seconds": round(self.limit_seconds, 3),
            "share_of_limit": round(self.share_of_limit, 4),
            "bottleneck": self.bottleneck,
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.stages.items()},
            "cores": self.devices.cores,
            "gpus": self.devices.gpus,
        }

    def _device_seconds(self) -> tuple[float, float]:
        cores, gpus = self.devices.cores, self.devices.gpus
        return self.decode_cpu_seconds / cores, self.tokenize_seconds / (gpus or cores)


@dataclass(kw_only=True, slots=True)
class Meter:
    """Adds up what workers report, as it comes."""

    clock: Callable[[], float] = time.perf_counter
    _asked: float = field(init=False)
    _began: float = field(init=False)
    _ended: float = field(init=False)
    _sums: dict[str, float] = field(init=False, default_factory=lambda: dict.fromkeys(MEASURED, 0.0))

    def __post_init__(self) -> None:
        self._asked = self._began = self._ended = self.clock()

    def add(self, rows: pa.Table) -> None:
        """Rows that have just come from a worker: its call began as long ago as they took."""
        sums = {name: pc.sum(rows.column(name)).as_py() or 0 for name in MEASURED}
        is_first, self._ended = self._ended == self._asked, self.clock()
        began = self._ended - sums["worker_seconds"]
        self._began = max(self._asked, began if is_first else min(self._began, began))
        self._sums = {name: self._sums[name] + sums[name] for name in MEASURED}

    def pace(self, devices: Devices, *, seconds_per_clip: float | None, fps: float) -> Pace:
        """`seconds_per_clip`: from one clip to the next, where the units are clips and not video."""
        clips, frames = int(self._sums["num_clips"]), self._sums["num_frames"]
        return Pace(
            devices=devices,
            clips=clips,
            video_seconds=frames / fps if seconds_per_clip is None else clips * seconds_per_clip,
            start_seconds=self._began - self._asked,
            working_seconds=self._ended - self._began,
            **{name: self._sums[name] for name in MEASURED[2:]},
        )


def record(out: str, pace: Pace) -> None:
    storage.write_json(storage.join(out, FILE), pace.summary())


def recorded(out: str) -> dict[str, Any] | None:
    """The summary of the pace that is recorded beside a set's manifest; None where there is none."""
    place = storage.join(out, FILE)
    found: dict[str, Any] | None = storage.read_json(place) if storage.exists(place) else None
    return found


def sentence(pace: dict[str, Any]) -> str:
    """The summary of a pace in words: how near the limit, and what binds."""
    devices = f"{pace['cores']} cores" + (f" and {pace['gpus']} GPUs" if pace["gpus"] else "")
    bottleneck = pace["bottleneck"]
    binds = f"{bottleneck} ({WORDS[bottleneck]})" if bottleneck in WORDS else bottleneck
    return (
        f"{pace['share_of_limit']:.2f} of what {devices} can do: {pace['decode_cpu_seconds']:,.1f} CPU "
        f"seconds of decoding and {pace['tokenize_seconds']:,.1f} seconds of tokenizing in "
        f"{pace['working_seconds']:,.1f} s; most time goes to {binds}"
    )
