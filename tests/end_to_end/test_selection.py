"""Clips chosen as a user does it: scores first, thresholds moved both ways, copies, facts from a sidecar."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.shards import ShardSet
from tests.media import make_video

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SETTINGS = ("--sampling.span-seconds", "2", "--sampling.clip-frames", "4", "--sampling.stride-frames", "4")
SETTINGS += ("--num-cpus", "2", "--validation", "moving.mp4")
SIDECAR = """source,start_seconds,end_seconds,label,caption
moving.mp4,,,test picture,"moves, all the time"
moving.mp4,1,2,,in its second second
nobody.mp4,,,lost,
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reelgpt", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def reelgpt(*args: str) -> dict[str, Any]:
    done = run(*args, "--json")
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that moves, twice, and one that stands still: three sources of 4 s, 8 clips each."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "moving.mp4", seconds=4)
    make_video(folder / "still.mp4", seconds=4, source="color=c=gray:size=160x120:rate=25")
    shutil.copy(folder / "moving.mp4", folder / "again.mp4")
    return folder


@pytest.fixture(scope="module")
def plain(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run without any choice says; its set is at `out`."""
    out = tmp_path_factory.mktemp("plain") / "frames"
    return reelgpt("extract", str(videos), "--out", str(out), *SETTINGS)


def test_scores_come_first_then_thresholds_move_both_ways_without_decoding(
    videos: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    out, strict = str(tmp_path / "frames"), ("--filters.min-motion", "0.001")
    extract = ("extract", str(videos), "--out", out, *SETTINGS)
    scored = reelgpt(*extract, "--score-only")
    assert scored["totals"]["clips"] == {"train": 0, "validation": 0}
    rejected = scored["totals"]["rejected_clips"]
    assert (rejected["scored"], sum(rejected.values())) == (9, 24)  # of what stands still one clip is left
    motion = scored["scores"]["quantiles"]["motion"]
    assert motion["0.25"] < 0.001 < motion["0.75"]
    assert reelgpt("explain", out)["scores"] == scored["scores"]
    assert "min_motion" in run("explain", out).stdout
    page = tmp_path / "report.html"
    reelgpt("report", "--frames", out, "--out", str(page))
    assert "How the scores lie" in page.read_text()
    kept = reelgpt(*extract, *strict, "--keep-rejected")
    assert kept["totals"]["rejected_clips"] == {"duplicate": 8, "static": 8}
    loose = reelgpt(*extract, "--keep-rejected", "--redo")
    assert (loose["done_now"], loose["totals"]["rejected_clips"]) == (0, {"duplicate": 15})
    tight = reelgpt(*extract, *strict, "--keep-rejected", "--redo")
    assert (tight["done_now"], tight["fingerprint"]) == (0, kept["fingerprint"])
    assert loose["fingerprint"] == plain["fingerprint"]
    assert reelgpt("verify", out)["whole"]


def test_a_sidecar_reaches_clips_and_what_is_wrong_with_it_is_told_before_anything_starts(
    videos: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    sidecar = tmp_path / "facts.csv"
    sidecar.write_text(SIDECAR)
    shutil.copytree(plain["out"], tmp_path / "frames")
    extract = ("extract", str(videos), "--out", str(tmp_path / "frames"), *SETTINGS)
    told = reelgpt(*extract, "--sidecar", str(sidecar), "--redo")
    assert told["done_now"] == 0
    assert told["sidecar"] == {"rows": 3, "unmatched_rows": 1, "unmatched": ["nobody.mp4"]}
    assert told["fingerprint"] != plain["fingerprint"]
    assert told["recipe_id"] != plain["recipe_id"]
    shard_set = ShardSet.open(str(tmp_path / "frames"))
    clips = [row for table in shard_set.tables("validation") for row in table.to_pylist()]
    captions = {row["start_seconds"]: row["caption"] for row in clips if row["source"] == "moving.mp4"}
    assert {row["label"] for row in clips} == {"test picture"}
    assert captions[0.0] == "moves, all the time"
    assert captions[1.0] == captions[1.5] == "in its second second"
    sidecar.write_text(SIDECAR.replace("label", "labels"))
    refused = run(*extract, "--sidecar", str(sidecar), "--redo")
    assert refused.returncode == 2
    assert "has a column 'labels', which means nothing here" in refused.stderr
    assert "Traceback" not in refused.stderr
