"""The demo as its user runs it: the whole journey, then once more."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.checking.verify import verify

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
