"""Three hours of video in one file: every span has its row, and memory does not grow with the length."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipelines.shards import ShardSet
from tests.faults.processes import family, none_left_behind
from tests.faults.runs import Run, summary_of
from tests.media import make_video

HOURS = 3
SECONDS = 600
MOST_BYTES = 4e9
SETTINGS = ("--sampling.fps", "2", "--num-cpus", "2")


def held_bytes(process: subprocess.Popen[bytes]) -> int:
    """Of a process and its descendants; a page that several share is shared out among them."""
    held = 0
    for one in (psutil.Process(process.pid), *family(process.pid)):
        try:
            held += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return held


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.timeout(SECONDS)
def test_three_hours_become_codes_within_the_memory_of_minutes(tmp_path: Path, tokenizer_bundle: str) -> None:
    source = "testsrc2=size=160x120:rate=2"
    video = make_video(
        tmp_path / "long.mp4", seconds=HOURS * 3600, source=source, options=("-preset", "ultrafast")
    )
    run = Run(
        name="tokenize", videos=str(video), out=str(tmp_path / "tokens"), tokenizer=tokenizer_bundle,
        settings=SETTINGS,
    )  # fmt: skip
    log, most = tmp_path / "log", 0
    with none_left_behind(), run.start(log) as process:
        try:
            while process.poll() is None:
                most = max(most, held_bytes(process))
                time.sleep(0.5)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == 0, log.read_text()
    assert most < MOST_BYTES, f"{most / 1e9:.2f} GB"
    clips = summary_of(log)["totals"]["clips"]
    assert sum(clips.values()) == HOURS * 3600 * 2 // 8
    spans = ShardSet.open(run.out).spans().to_pylist()
    assert len(spans) == HOURS * 60
    assert {row["error_class"] for row in spans} == {None}
