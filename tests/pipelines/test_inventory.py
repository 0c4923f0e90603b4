"""What an output knows of its sources: noted while they come, and never of a file that was not to be had."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from infra.storage import FileInfo
from pipelines.building import build, inventory
from pipelines.building.inventory import known_sources, sources_of
from pipelines.building.stages import decoder_of_this_process, inspect_files
from pipelines.config import DecodeLimits
from pipelines.spans import INSPECTED_SCHEMA, list_videos
from tests.media import make_still
from tests.rows import video_job

NAMES = [f"video-{number:03d}.mp4" for number in range(60)]


def files(names: list[str]) -> list[FileInfo]:
    return [FileInfo(f"/videos/{name}", name, 9, "then") for name in names]


def looked_into(listed: pa.Table, *, left: str = "") -> pa.Table:
    rows = [
        {**row, "left": "gone"} if row["name"] == left else {**row, "source_id": f"id-of-{row['name']}"}
        for row in listed.to_pylist()
    ]
    return pa.Table.from_pylist(rows, INSPECTED_SCHEMA)


def by_halves(fresh: pa.Table) -> Iterator[pa.Table]:
    half = fresh.num_rows // 2
    yield looked_into(fresh.slice(0, half))
    yield looked_into(fresh.slice(half))


def noted(out: Path) -> list[str]:
    names: list[str] = known_sources(str(out)).column("name").to_pylist()
    return sorted(names)


def test_what_was_looked_into_is_noted_before_the_rest_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "LEAST_SECONDS", 0.0)
    seen: list[list[str]] = []

    def inspect(fresh: pa.Table) -> Iterator[pa.Table]:
        for found in by_halves(fresh):
            yield found
            seen.append(noted(tmp_path))

    found = sources_of(str(tmp_path), files(NAMES), inspect)
    assert seen[0] == NAMES[:30]
    assert found.sources.column("name").to_pylist() == noted(tmp_path) == NAMES


def test_a_command_that_breaks_off_leaves_only_the_rest_to_be_looked_into(tmp_path: Path) -> None:
    def breaking_off(fresh: pa.Table) -> Iterator[pa.Table]:
        yield next(by_halves(fresh))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources_of(str(tmp_path), files(NAMES), breaking_off)
    asked: list[str] = []

    def rest(fresh: pa.Table) -> Iterator[pa.Table]:
        asked.extend(fresh.column("name").to_pylist())
        yield looked_into(fresh)

    assert sources_of(str(tmp_path), files(NAMES), rest).sources.num_rows == len(NAMES)
    assert asked == NAMES[30:]


def test_notes_take_a_small_part_of_the_time_however_slow_the_store_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "LEAST_SECONDS", 0.0)
    writes, now = list[float](), 0.0

    def slow(place: str, table: pa.Table, write=inventory.write_table) -> None:  # type: ignore[no-untyped-def]
        nonlocal now
        writes.append(now)
        now += 1.0
        write(place, table)

    def inspect(fresh: pa.Table) -> Iterator[pa.Table]:
        nonlocal now
        for start in range(fresh.num_rows):
            yield looked_into(fresh.slice(start, 1))
            now += 0.5

    monkeypatch.setattr(inventory, "write_table", slow)
    sources_of(str(tmp_path), files(NAMES), inspect, lambda: now)
    assert writes == [0.0, 21.0, 32.0]  # one second, 20 without, and at the end what is left
    assert noted(tmp_path) == NAMES


def test_few_files_that_take_long_go_to_workers_from_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        make_still(tmp_path / f"{name}.png")
    listed = pa.Table.from_pylist([asdict(file) for file in list_videos([str(tmp_path)])])
    handed: list[str] = []

    def inspect(rest: pa.Table, limits: DecodeLimits) -> list[pa.Table]:
        handed.extend(rest.column("name").to_pylist())
        return [inspect_files(rest, limits)]

    monkeypatch.setattr(build, "_graph", lambda *_: SimpleNamespace(inspect=inspect))
    monkeypatch.setattr(build, "SECONDS_HERE", 1.0)
    coming = build._inspected(ExitStack(), video_job(tmp_path / "out"), listed, lambda *_: None)
    found = [next(coming)]
    time.sleep(1.0)
    found.extend(coming)
    assert handed == ["b.png", "c.png", "d.png"]
    assert pa.concat_tables(found).column("name").to_pylist() == ["a.png", *handed]
    decoder_of_this_process(DecodeLimits()).close()


def test_a_file_that_is_left_is_told_noted_nowhere_and_looked_into_by_the_next_command(
    tmp_path: Path,
) -> None:
    listed = files(NAMES[:3])
    found = sources_of(str(tmp_path), listed, lambda fresh: [looked_into(fresh, left=NAMES[1])])
    assert found.left == {NAMES[1]: "gone"}
    assert found.sources.column("name").to_pylist() == noted(tmp_path) == [NAMES[0], NAMES[2]]
    again = sources_of(str(tmp_path), listed, lambda fresh: [looked_into(fresh)])
    assert (again.left, again.sources.num_rows) == ({}, 3)
