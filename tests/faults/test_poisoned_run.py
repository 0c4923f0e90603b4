"""A run with poison among its videos, which hangs, crashes or fills the decoder that opens it."""

import shutil
from pathlib import Path

import pytest

from pipelines.shards import ShardSet
from tests.faults.faulty_python import python_with_all_faults
from tests.faults.processes import none_left_behind
from tests.faults.runs import SECONDS, Run, make_videos

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]
POISON = {"hang": "decoder_hang", "loop": "cpu_limit", "crash": "decoder_crash", "grow": "memory_limit"}
LIMITS = ("--limits.cpu-seconds", "3", "--limits.still-seconds", "2", "--limits.memory-mb", "1024")
OVER_BUDGET = 3


def test_poison_costs_its_own_spans_and_nothing_else(tokenizer_bundle: str, tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", count=2, seconds=2.0)
    for word in POISON:
        shutil.copy(videos / "0.mp4", videos / f"{word}.mp4")
    python, log = python_with_all_faults(tmp_path / "python"), tmp_path / "log"
    run = Run(
        name="tokenize", videos=str(videos), out=str(tmp_path / "out"), tokenizer=tokenizer_bundle,
        options=LIMITS,
    )  # fmt: skip
    with none_left_behind(), run.start(log, str(python)) as process:
        code = process.wait(SECONDS)
    assert code == OVER_BUDGET, log.read_text()
    rows = ShardSet.open(run.out).spans().to_pylist()
    poisoned = {(row["source"], row["error_class"]) for row in rows if row["outcome"] == "failed"}
    assert poisoned == {(f"{word}.mp4", error_class) for word, error_class in POISON.items()}
    assert {row["source"] for row in rows if row["outcome"] == "ok"} == {"0.mp4", "1.webm"}
