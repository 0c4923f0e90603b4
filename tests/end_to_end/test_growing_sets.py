"""Sets that grow, lose sources and mend, as a user does it on real videos with a real Ray."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.shards import ShardSet
from tests.media import make_video

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]
SETTINGS = ("--sampling.span-seconds", "2", "--sampling.clip-frames", "4", "--sampling.stride-frames", "4")
TOO_LITTLE = ("--limits.cpu-seconds", "1")


def reelgpt(*args: str, expect: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "reelgpt", *args, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == expect, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def test_frames_grow_and_their_codes_with_them_and_what_failed_is_tried_again(
    tokenizer_bundle: str, tmp_path: Path
) -> None:
    videos, frames, tokens = tmp_path / "videos", str(tmp_path / "frames"), str(tmp_path / "tokens")
    for number in range(2):
        make_video(videos / f"{number}.mp4", seconds=3)
    extract = ("extract", str(videos), "--out", frames, *SETTINGS, "--num-cpus", "2")
    tokenize = ("tokenize", frames, "--tokenizer", tokenizer_bundle, "--out", tokens, "--num-cpus", "2")
    first = (reelgpt(*extract), reelgpt(*tokenize))
    heavy = "testsrc2=size=3840x2160:rate=120"
    make_video(videos / "2.mp4", seconds=3)
    make_video(videos / "heavy.mp4", seconds=2, source=heavy, options=("-preset", "ultrafast"))
    grown = reelgpt(*extract, *TOO_LITTLE, "--max-failed", "1")
    assert (grown["done_before"], grown["totals"]["sources"]) == (4, 4)
    failed = reelgpt("failures", frames)
    assert failed["classes"].keys() == {"cpu_limit"}
    assert {row["source"] for row in failed["failures"]} == {"heavy.mp4"}
    tokens_grown = reelgpt(*tokenize)
    assert tokens_grown["done_before"] == first[1]["units"]
    retried = reelgpt("failures", frames, "--retry", "cpu_limit", "--limits.cpu-seconds", "200")
    assert retried["retried"] == failed["classes"]["cpu_limit"]
    assert retried["totals"]["failed"] == {}
    assert reelgpt(*extract, "--limits.cpu-seconds", "200")["done_now"] == 0
    split = {row["name"]: row["split"] for row in ShardSet.open(frames).sources().to_pylist()}
    held = [name for name, side in split.items() if side == "validation"]
    fresh = ("extract", str(videos), "--out", str(tmp_path / "fresh"), *SETTINGS, "--validation", *held)
    assert reelgpt(*fresh)["fingerprint"] == retried["fingerprint"]
    codes = reelgpt(*tokenize)
    assert codes["done_before"] == tokens_grown["units"]
    without = reelgpt("tokenize", tokens, "--exclude", "heavy.mp4", "--out", str(tmp_path / "without"))
    assert without["totals"]["sources"] == 3
    assert reelgpt("gc", frames)["files"] > 0
    assert reelgpt(*extract)["done_now"] == 0
    for whole in (frames, tokens, str(tmp_path / "without")):
        assert reelgpt("verify", whole)["whole"]
