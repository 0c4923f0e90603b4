"""Three hours of video in one file: every span has its row, and memory does not grow with the length."""

from pathlib import Path

import pytest

from pipelines.shards import ShardSet
from tests.faults.runs import Run, summary_of
from tests.media import make_video

HOURS = 3
SECONDS = 600
MOST_BYTES = 4e9
SETTINGS = ("--sampling.fps", "2", "--num-cpus", "2")


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
    log = tmp_path / "log"
    most = run.most_held(log)
    assert most < MOST_BYTES, f"{most / 1e9:.2f} GB"
    clips = summary_of(log)["totals"]["clips"]
    assert sum(clips.values()) == HOURS * 3600 * 2 // 8
    spans = ShardSet.open(run.out).spans().to_pylist()
    assert len(spans) == HOURS * 60
    assert {row["error_class"] for row in spans} == {None}
