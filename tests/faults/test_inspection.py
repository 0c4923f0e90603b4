"""Files that are being looked into while something goes wrong: a kill costs seconds, a file on a bad disk
itself alone."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import StorageError
from pipelines.building.inventory import INVENTORY, known_sources, sources_of
from pipelines.building.stages import DecodeSpans, decoder_of_this_process, inspect_files
from pipelines.config import DecodeLimits, ExtractConfig
from pipelines.spans import list_videos, span_table
from tests.faults.faulty_mount import FaultyMount, faulty_mount
from tests.faults.faulty_python import python_with_all_faults
from tests.faults.processes import none_left_behind
from tests.faults.runs import SECONDS, Run
from tests.media import make_still

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
LIMITS = DecodeLimits()
NUM_SLOW = 140
"""More than are looked into without Ray."""
FAILING = {
    "reads fail": r"lost\.png cannot be read to its end on .*: Input/output error behind byte 0; mend",
    "opening fails": r"lost\.png cannot be opened: Stale file handle; mend that, and repeat the command",
}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two that are well, and room for a third."""
    (tmp_path / "videos").mkdir()
    for name in ("a", "z"):
        make_still(tmp_path / "videos" / f"{name}.png")
    return tmp_path / "videos"


@pytest.fixture
def lost(tmp_path: Path, videos: Path) -> Iterator[FaultyMount]:
    """A third one between them, on a disk of its own."""
    content = make_still(tmp_path / "content.png")
    with faulty_mount(tmp_path / "mount", "lost.png", content) as mount:
        (videos / "lost.png").symlink_to(mount.path)
        yield mount


def listed(videos: Path) -> pa.Table:
    return pa.Table.from_pylist([asdict(file) for file in list_videos([str(videos)])])


@pytest.mark.parametrize("way", FAILING)
def test_a_file_on_a_bad_disk_is_left_by_itself_wherever_it_turns_bad(
    videos: Path, lost: FaultyMount, way: str
) -> None:
    spans = span_table(inspect_files(listed(videos), LIMITS), 60.0)
    lost.serve(way)
    inspected = inspect_files(listed(videos), LIMITS).to_pylist()
    rows = list(DecodeSpans(ExtractConfig(limits=LIMITS))(spans))
    decoder_of_this_process(LIMITS).close()
    assert [row["source_id"] is None for row in inspected] == [False, True, False]
    assert [row["outcome"] for row in rows] == ["ok", "left", "ok"]
    for said in (inspected[1]["left"], rows[1]["error"]):
        assert re.search(FAILING[way], said), said


@pytest.mark.exhaustive
@pytest.mark.timeout(60)
def test_a_mount_that_stalls_before_a_span_is_begun_ends_the_run_as_well(
    videos: Path, lost: FaultyMount
) -> None:
    impatient = DecodeLimits(still_seconds=1)
    spans = span_table(inspect_files(listed(videos), impatient), 60.0)
    lost.serve("reads stall")
    with pytest.raises(StorageError, match=r"lost\.png cannot be read on .*: no answer for 1 s from where"):
        list(DecodeSpans(ExtractConfig(limits=impatient))(spans))
    decoder_of_this_process(impatient).close()


@pytest.mark.ray
@pytest.mark.exhaustive
def test_a_file_that_cannot_be_looked_into_is_named_once_all_others_are_done(
    tmp_path: Path, videos: Path, lost: FaultyMount
) -> None:
    run = Run(name="extract", videos=str(videos), out=str(tmp_path / "out"), tokenizer="")
    lost.serve("reads fail")
    with none_left_behind(), run.start(tmp_path / "log") as process:
        assert process.wait(SECONDS) == StorageError.exit_code
    said = json.loads((tmp_path / "log").read_text().splitlines()[-1])["error"]
    assert f"{videos}/lost.png cannot be read to its end" in said
    assert "All is done but for 1 such sources: lost.png;" in said
    assert not (tmp_path / "out" / "manifest.json").exists()
    without = replace(run, options=("--exclude", "lost.png")).finish(tmp_path / "log")
    assert (without["done_before"], without["done_now"], without["pace"]) == (2, 0, None)


@pytest.mark.ray
@pytest.mark.exhaustive
def test_a_command_that_is_killed_while_it_looks_into_files_looks_into_the_rest_when_it_is_repeated(
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    content = make_still(tmp_path / "content.png")
    for number in range(NUM_SLOW):
        shutil.copy(content, folder / f"slow-{number:03d}.png")
    python = str(python_with_all_faults(tmp_path / "python"))
    run = Run(name="extract", videos=str(folder), out=str(out), tokenizer="")
    with run.start(tmp_path / "log", python) as command:
        wait_until((out / INVENTORY).exists, lambda: command.poll() is None)
        command.kill()
    noted = known_sources(str(out)).column("name").to_pylist()
    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        sources_of(str(out), list_videos([str(folder)]), interrupted(asked))
    assert 0 < len(noted) < NUM_SLOW
    assert sorted(noted + asked) == sorted(path.name for path in folder.iterdir())


def interrupted(asked: list[str]) -> Callable[[pa.Table], list[pa.Table]]:
    """Notes what it is to look into, and does not."""

    def inspect(fresh: pa.Table) -> list[pa.Table]:
        asked.extend(fresh.column("name").to_pylist())
        raise KeyboardInterrupt

    return inspect


def wait_until(holds: Callable[[], bool], goes_on: Callable[[], bool]) -> None:
    while not holds():
        assert goes_on()
        time.sleep(0.02)
