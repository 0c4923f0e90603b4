"""`reelgpt extract` and `reelgpt tokenize` on a few videos, disturbed or not; what makes two sets equal."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import shards
from pipelines.shards import ShardSet
from tests.faults.processes import most_held_bytes, none_left_behind
from tests.media import make_video

SETTINGS = (
    "--sampling.span-seconds", "1", "--sampling.clip-frames", "4", "--sampling.stride-frames", "4",
    "--sampling.size", "64", "--spans-per-file", "2", "--num-cpus", "2",
)  # fmt: skip
SECONDS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A command on `videos`, into `out`."""

    name: str
    videos: str
    out: str
    tokenizer: str
    settings: tuple[str, ...] = SETTINGS
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, log: Path, python: str = sys.executable) -> subprocess.Popen[bytes]:
        """In the background; what it says goes into a file."""
        tokenizer = ("--tokenizer", self.tokenizer) if self.name == "tokenize" else ()
        arguments = (
            self.name,
            self.videos,
            "--out",
            self.out,
            *self.settings,
            *tokenizer,
            *self.options,
            "--json",
        )
        with open(log, "wb") as said:
            return subprocess.Popen(
                [python, "-m", "reelgpt", *arguments],
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            )

    def finish(self, log: Path) -> dict[str, Any]:
        """To its end, which must be a good one; gives its summary."""
        with self.start(log) as process:
            code = process.wait(SECONDS)
        assert code == 0, log.read_text()
        return summary_of(log)

    def most_held(self, log: Path, *, code: int = 0) -> int:
        """Bytes that it held at a time, to its end: with this exit code, and nobody left behind."""
        with none_left_behind(), self.start(log) as process:
            most = most_held_bytes(process)
        assert process.returncode == code, log.read_text()
        return most


def summary_of(log: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return found


def make_videos(folder: Path, *, count: int = 6, seconds: float = 6.0) -> Path:
    """Of several formats, no two alike."""
    suffixes = ("mp4", "webm", "mpg", "avi")
    for number in range(count):
        source = f"testsrc2=size=160x120:rate=25,hue=h={40 * number}"
        make_video(folder / f"{number}.{suffixes[number % 4]}", seconds=seconds, source=source)
    return folder


@dataclass(frozen=True, slots=True)
class Content:
    """All that two equal sets have in common."""

    fingerprint: str
    rows: list[dict[str, Any]]
    spans: list[dict[str, Any]]

    @classmethod
    def of(cls, out: str) -> "Content":
        shard_set = ShardSet.open(out)
        rows = [
            row for split in shards.SPLITS for table in shard_set.tables(split) for row in table.to_pylist()
        ]
        return cls(
            shard_set.manifest.fingerprint,
            sorted(rows, key=lambda row: str(row["clip_id"])),
            sorted(shard_set.spans().to_pylist(), key=lambda row: str(row["span_id"])),
        )
