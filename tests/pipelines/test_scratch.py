"""What a packing that is killed leaves in TMPDIR, and who clears it away."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.packing import scratch

HOLDER = """
import sys
from pipelines.packing import scratch
with scratch.folder() as place:
    print(place, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has a folder, with a file in it, for some minutes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        place = Path(process.stdout.readline().strip())
        (place / "shard").write_text("clips")
        os.utime(place, (time.time() - 600, time.time() - 600))
        yield process, place
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_next_packing_removes_what_a_killed_one_left(temporary: Path) -> None:
    with holder(temporary) as (process, left):
        process.kill()
        process.wait()
        with scratch.folder() as place:
            assert not left.exists()
            assert Path(place).is_dir()
    assert list(temporary.iterdir()) == []


def test_what_a_living_one_uses_or_has_just_made_stays(temporary: Path) -> None:
    young = temporary / "reelgpt-pack-young"
    young.mkdir()
    with holder(temporary) as (_, used), scratch.folder():
        assert (used / "shard").read_text() == "clips"
        assert young.exists()
