"""A folder of hundreds of files of every sort: each is accounted for, and nothing is left running."""

import os
from pathlib import Path

import pytest

from pipelines.checking.verify import verify
from pipelines.error_classes import ERROR_CLASSES
from pipelines.shards import ShardSet
from tests.faults.matrix import SEED
from tests.faults.odd_files import gather
from tests.faults.processes import none_left_behind
from tests.faults.runs import SECONDS, Run, summary_of

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]
SETTINGS = ("--sampling.clip-frames", "2", "--sampling.stride-frames", "2", "--sampling.size", "64")
SHARE = 0.5
"""Of all that could be made; CI has no time for more."""


def test_hundreds_of_odd_files_are_each_accounted_for(tokenizer_bundle: str, tmp_path: Path) -> None:
    folder, log = tmp_path / "files", tmp_path / "log"
    gather(folder, seed=SEED, share=SHARE)
    files = {
        name.decode(errors="backslashreplace")
        for name in os.listdir(os.fsencode(folder))
        if not os.path.isdir(os.fsencode(folder) + b"/" + name)
    }
    assert len(files) >= 300
    run = Run(
        name="tokenize",
        videos=f"{folder}/*",
        out=str(tmp_path / "out"),
        tokenizer=tokenizer_bundle,
        settings=SETTINGS,
    )
    with none_left_behind(), run.start(log) as process:
        code = process.wait(SECONDS)
    assert code in (0, 3), log.read_text()
    shard_set = ShardSet.open(run.out)
    spans, sources = shard_set.spans().to_pylist(), shard_set.sources().to_pylist()
    assert {row["source"] for row in spans} == {row["name"] for row in sources} == files
    assert {row["error_class"] for row in spans} <= {None, *ERROR_CLASSES}
    unreadable = {row["source"] for row in spans if row["error_class"] == "unreadable"}
    assert unreadable == {"dangling.mp4", "loop.mp4", "pipe.mp4"}
    assert {"ok", "failed"} <= {row["outcome"] for row in spans}
    assert not [row for row in spans if row["error_class"] in ("decoder_crash", "decoder_hang", "cpu_limit")]
    assert summary_of(log)["totals"]["sources"] == len(files)
    assert verify(run.out) == []
