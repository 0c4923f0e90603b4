"""The demo as its user runs it: the whole journey, then once more; and what becomes of bad files."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.checking.verify import verify
from pipelines.shards import ShardSet
from pipelines.video_writer import write_video
from tests.reelgpt.conftest import moving_square

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = ["--tokenizer-steps", "20", "--gpt-steps", "10"]


def reelgpt(*args: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the summary, and stderr of a command in the working directory."""
    command = [sys.executable, "-m", "reelgpt", *args, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.deepspeed
@pytest.mark.timeout(420)
def test_the_demo_makes_a_registered_model_and_a_report_and_repeating_it_does_nothing_again() -> None:
    code, made, _ = reelgpt("demo", *STEPS)
    assert code == 0
    assert made["extract"]["done_now"] == 4
    assert made["train_tokenizer"]["steps_done"] == 20
    assert made["train_gpt"]["steps_done"] == 10
    assert made["generate"]["predicted_frames"] == 6
    assert made["generate"]["input"].endswith("bikes.mp4")
    assert not verify("demo/frames") + verify("demo/tokens")
    page = Path("demo/report.html").read_text()
    assert "bikes.mp4" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)

    code, again, _ = reelgpt("demo", *STEPS)
    assert code == 0
    assert again["extract"]["done_now"] == again["tokenize"]["done_now"] == 0
    assert again["train_tokenizer"]["was_finished"]
    assert again["train_gpt"]["was_finished"]
    assert again["generate"]["done_before"]
    assert again["tokenize"]["fingerprint"] == made["tokenize"]["fingerprint"]

    check_the_registry_knows_where_it_came_from(made)


def check_the_registry_knows_where_it_came_from(made: dict[str, Any]) -> None:
    code, listed, _ = reelgpt("models", "list")
    assert code == 0
    gpt = next(version for version in listed["versions"] if version["kind"] == "gpt")
    lineage = gpt["lineage"]
    assert lineage["shard_set"]["fingerprint"] == made["tokenize"]["fingerprint"]
    assert lineage["tokenizer"]["fingerprint"] == made["train_tokenizer"]["fingerprint"]
    assert lineage["run"]["mlflow_run_id"] == made["train_gpt"]["mlflow_run_id"]
    assert {source["name"] for source in lineage["sources"]} == {
        "bigbuckbunny.mp4",
        "bikes.mp4",
        "carphone_pristine.mp4",
        "cityCC0.mpg",
    }


def test_bad_files_are_told_in_the_report_and_the_rest_goes_through(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        write_video(str(folder / f"{number}.mp4"), moving_square(40 + number, size=128), fps=8.0)
    (folder / "words.mp4").write_text("no video at all")
    (folder / "empty.mp4").write_bytes(b"")
    code, made, _ = reelgpt("extract", str(folder), "--out", "frames")
    assert code == 3
    assert made["totals"]["failed_sources"] == 2
    classes = {row["source"]: row["error_class"] for row in ShardSet.open("frames").spans().to_pylist()}
    assert classes == {
        "0.mp4": None,
        "1.mp4": None,
        "2.mp4": None,
        "empty.mp4": "empty",
        "words.mp4": "not_media",
    }
    code, _, _ = reelgpt("report", "--frames", "frames", "--out", "report.html")
    assert code == 0
    page = Path("report.html").read_text()
    assert "words.mp4" in page
    assert "not_media" in page
