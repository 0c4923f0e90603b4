"""`reelgpt submit --follow -- COMMAND` on a cluster of two nodes gives what the same command gives here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters import Cluster
from tests.media import make_bad_files, make_video

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
SETTINGS = ("--sampling.span-seconds", "1", "--sampling.clip-frames", "4", "--sampling.stride-frames", "4")
OVER_BUDGET = 3


def run(*args: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reelgpt", *args],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def last_json(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return found


def test_a_submitted_tokenize_ends_with_the_fingerprint_and_the_exit_code_of_the_local_one(
    cluster: Cluster, tokenizer_bundle: str, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    for number in range(3):
        make_video(videos / f"{number}.mp4", source=f"testsrc2=size=160x120:rate=25,hue=h={50 * number}")
    make_bad_files(videos)
    command = ("tokenize", str(videos), "--tokenizer", tokenizer_bundle, *SETTINGS, "--json")
    here = run(*command, "--out", str(tmp_path / "here"))
    there = run(
        "submit", "--address", cluster.address, "--follow", "--",
        *command, "--out", str(tmp_path / "there"),
        environment=cluster.environment,
    )  # fmt: skip
    assert here.returncode == there.returncode == OVER_BUDGET, there.stdout + there.stderr
    assert last_json(there.stdout)["fingerprint"] == last_json(here.stdout)["fingerprint"]


def test_a_relative_output_is_refused_before_anything_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    refused = run(
        "submit", "--address", cluster.address, "--follow", "--", "extract", str(tmp_path), "--out", "frames",
        environment=cluster.environment,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "is relative" in refused.stderr
    assert "give s3://" in refused.stderr
