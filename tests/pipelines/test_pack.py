"""Records to a sealed set: what the result depends on, and what it must not."""

import itertools
import json
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra import storage
from infra.errors import ShardError, StorageError, UsageError
from infra.leases import Lease
from pipelines import records, shards
from pipelines.building import claim
from pipelines.building.work import with_split
from pipelines.checking.verify import verify
from pipelines.config import DuplicateConfig, FilterConfig, PackConfig
from pipelines.packing.origins import RowOrigin
from pipelines.packing.pack import Parts, Recipe, pack
from pipelines.selection.verdicts import thresholds_key
from pipelines.shards import ShardSet, codes_of
from pipelines.spans import SOURCE_SCHEMA

SOURCES = [f"source-{k}" for k in range(5)]
SOURCE_TABLE = pa.Table.from_pylist(
    [
        {"source_id": one, "name": f"{one}.mp4", "uri": f"/v/{one}.mp4", "size": 9, "duration_seconds": 180.0}
        for one in SOURCES
    ],
    SOURCE_SCHEMA,
)
CONFIG = {"rows": {"sampling": {"span_seconds": 60.0}}}
RECIPE = Recipe(
    kind="tokens",
    recipe_id=claim.recipe_id(CONFIG, SOURCES),
    config=CONFIG,
    held_out=frozenset({"source-3"}),
    filters=FilterConfig(),
    duplicates=DuplicateConfig(),
    pack=PackConfig(shard_bytes=8 * 16, clips_per_row_group=3),
    tokenizer_fingerprint="f" * 64,
    num_codes=1000,
)


def clip(span_id: str, source_id: str, number: int, shape: tuple[int, ...]) -> dict[str, Any]:
    codes = np.random.default_rng([number, len(span_id)]).integers(0, 1000, shape).astype("<u2")
    return {
        "clip_id": f"{span_id}/{number:04d}",
        "source_id": source_id,
        "source": f"{source_id}.mp4",
        "span_id": span_id,
        "start_seconds": float(number),
        "fps": 8.0,
        "num_frames": shape[0],
        "repeated_frames": 0,
        "scores": [("motion", 0.1)],
        "grid": list(shape),
        "codes": codes.tobytes(),
        "rejected": None,
    }


def record(source_id: str, number: int, *, outcome: str = "ok", seconds: float = 1.0) -> dict[str, Any]:
    span_id = f"{source_id}/{number:05d}"
    clips = [clip(span_id, source_id, k, (2, 2, 2)) for k in range(4)] if outcome == "ok" else []
    if clips and number == 1:
        clips[0] |= {"rejected": "black", "codes": None, "grid": None}
    return {
        "unit_id": span_id,
        "span_id": span_id,
        "source_id": source_id,
        "source": f"{source_id}.mp4",
        "start_seconds": 60.0 * number,
        "outcome": outcome,
        "error_class": None if outcome == "ok" else "corrupt",
        "num_frames": 8,
        "num_clips": sum(not c["rejected"] for c in clips),
        "rejected": [("black", 1)] if number == 1 and clips else [],
        "judged_by": thresholds_key(RECIPE.filters),
        "attempts": 1,
        "decode_cpu_seconds": seconds,
        "tokenize_seconds": seconds,
        "clips": clips,
    }


def all_records() -> list[dict[str, Any]]:
    rows = [record(source_id, number) for source_id in SOURCES for number in range(3)]
    return [*rows[:-1], record(SOURCES[-1], 2, outcome="failed")]


UNITS = {row["unit_id"] for row in all_records()}


def write(out: Path, rows: list[dict[str, Any]], *, rows_per_file: int) -> None:
    for start in range(0, len(rows), rows_per_file):
        chosen = rows[start : start + rows_per_file]
        records.write(place_of(out), pa.Table.from_pylist(chosen, records.record_schema("tokens")))


def place_of(out: Path) -> str:
    return records.place_of(str(out), "tokens", {})


def parts_of(out: Path) -> Parts:
    rows = RowOrigin(place_of(out), UNITS, "tokens", RECIPE.filters)
    return Parts(origins=[rows], sources=with_split(SOURCE_TABLE, RECIPE.held_out))


def seal(out: Path) -> ShardSet:
    with Lease(str(out / "lease.json")) as lease:
        pack(str(out), RECIPE, parts_of(out), lease)
    return ShardSet.open(str(out))


def take_over(link: Path) -> None:
    """As another machine does that takes the holder for dead."""
    owner = json.loads(link.read_text())
    after = link.with_name(f"{link.name}.after-{owner['id']}")
    after.write_text(json.dumps(owner | {"id": "another"}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sealed(tmp_path: Path) -> ShardSet:
    write(tmp_path / "set", all_records(), rows_per_file=4)
    return seal(tmp_path / "set")


def test_the_set_does_not_depend_on_the_order_or_the_files_of_the_records(
    tmp_path: Path, sealed: ShardSet
) -> None:
    rows = all_records()
    random.Random(7).shuffle(rows)
    write(tmp_path / "other", rows, rows_per_file=1)
    other = seal(tmp_path / "other")
    assert other.manifest.fingerprint == sealed.manifest.fingerprint
    assert other.manifest.shards == sealed.manifest.shards


def test_every_kept_clip_is_there_once_on_its_side_of_the_split(sealed: ShardSet) -> None:
    ids = {
        split: [clip_id for table in sealed.tables(split) for clip_id in table.column("clip_id").to_pylist()]
        for split in shards.SPLITS
    }
    assert len(ids["train"]) == len(set(ids["train"])) == 40
    assert len(ids["validation"]) == 11
    assert all(clip_id.startswith("source-3/") for clip_id in ids["validation"])
    assert not any(clip_id.endswith("00001/0000") for clip_id in ids["train"])


def test_clips_are_shuffled_and_come_back_with_their_codes(sealed: ShardSet) -> None:
    tables = list(sealed.tables("train"))
    ids = [clip_id for table in tables for clip_id in table.column("clip_id").to_pylist()]
    assert ids != sorted(ids)
    for table in tables:
        for row, codes in zip(table.to_pylist(), codes_of(table), strict=True):
            expected = clip(row["span_id"], row["source_id"], int(row["clip_id"][-4:]), (2, 2, 2))["codes"]
            assert codes.tobytes() == expected


def test_two_rows_of_a_span_may_differ_in_their_timings_alone(tmp_path: Path, sealed: ShardSet) -> None:
    again = tmp_path / "again"
    write(again, [*all_records(), record("source-1", 0, seconds=9.0)], rows_per_file=2)
    assert seal(again).manifest.fingerprint == sealed.manifest.fingerprint
    contradiction = record("source-1", 0)
    contradiction["clips"][0]["codes"] = bytes(16)
    write(again, [contradiction], rows_per_file=1)
    with pytest.raises(ShardError, match="two tries of source-1/00000"):
        RowOrigin(place_of(again), UNITS, "tokens", RECIPE.filters)


@pytest.mark.slow
def test_rows_of_a_damaged_span_that_disagree_cost_no_output_and_one_is_chosen_whatever_their_order(
    tmp_path: Path,
) -> None:
    rows = [record("source-1", 0) for _ in range(3)]
    for number, row in enumerate(rows[:2]):
        row["error_class"], row["error"] = "corrupt", "signs of damage"
        row["clips"][0]["codes"] = bytes([number] * 16)
    fingerprints = set()
    for number, order in enumerate(itertools.permutations(rows)):
        out = tmp_path / str(number)
        others = [row for row in all_records() if row["unit_id"] != "source-1/00000"]
        write(out, [*others, *order], rows_per_file=1)
        fingerprints.add(seal(out).manifest.fingerprint)
    assert len(fingerprints) == 1


def test_rows_of_other_units_stay_outside_and_so_do_shards_of_an_earlier_packing(
    tmp_path: Path, sealed: ShardSet
) -> None:
    other = tmp_path / "other"
    write(other, [*all_records(), record("source-gone", 0)], rows_per_file=4)
    storage.write(str(other / "shards" / "train-9x9x9-00000.parquet"), b"of other sources")
    assert seal(other).manifest.fingerprint == sealed.manifest.fingerprint
    assert verify(str(other)) == []


@pytest.mark.parametrize("rows", [all_records(), []], ids=["some_clips", "no_clip"])
def test_a_writer_whose_lease_was_taken_over_writes_and_deletes_no_shard(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    out = tmp_path / "set"
    write(out, rows, rows_per_file=4)
    shard = out / "shards" / "train-2x2x2-00000.parquet"
    storage.write(str(shard), b"of the new owner")
    storage.write(str(shard.with_name("train-9x9x9-00000.parquet")), b"of the new owner")
    with Lease(str(out / "lease.json")) as lease:
        take_over(out / "lease.json")
        before = contents(out / "shards")
        with pytest.raises(StorageError, match="another command took"):
            pack(str(out), RECIPE, parts_of(out), lease)
        assert contents(out / "shards") == before
    assert not (out / shards.MANIFEST).exists()


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
        assert resource.getrlimit(what) == (most, hard)
    finally:
        resource.setrlimit(what, (soft, hard))


def test_a_temporary_folder_without_room_is_one_sentence_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    write(out, all_records(), rows_per_file=4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        Lease(str(out / "lease.json")) as lease,
        limited(resource.RLIMIT_FSIZE, 500),
        pytest.raises(StorageError, match=rf"in {tmp_path}/reelgpt-pack-.*: File too large; set TMPDIR to"),
    ):
        pack(str(out), RECIPE, parts_of(out), lease)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_may_have_more_shards_than_files_may_be_open_at_first(tmp_path: Path) -> None:
    out, recipe = tmp_path / "set", replace(RECIPE, pack=PackConfig(shard_bytes=16))
    write(out, all_records(), rows_per_file=4)
    open_now = max(int(name) for name in os.listdir("/proc/self/fd"))
    with Lease(str(out / "lease.json")) as lease, limited(resource.RLIMIT_NOFILE, open_now + 15):
        assert len(pack(str(out), recipe, parts_of(out), lease).shards) > 25


def test_a_damaged_manifest_or_shard_is_one_sentence_with_the_remedy(sealed: ShardSet) -> None:
    shard = storage.join(sealed.uri, sealed.manifest.shards[0].path)
    storage.write(shard, storage.read_bytes(shard)[:-9])
    with pytest.raises(ShardError, match="no whole Parquet file"):
        sealed.find_clip("nobody")
    for content in (b"[]", b"{", b'{"format_version": 2}'):
        storage.write(storage.join(sealed.uri, shards.MANIFEST), content)
        with pytest.raises(ShardError, match=r"manifest.json is damaged .* delete it and repeat"):
            ShardSet.open(sealed.uri)


def test_the_fingerprint_sees_a_code_an_outcome_and_the_split(tmp_path: Path, sealed: ShardSet) -> None:
    changed_code, changed_outcome = all_records(), all_records()
    changed_code[0]["clips"][0]["codes"] = bytes(16)
    changed_outcome[-1]["error_class"] = "cpu_limit"
    fingerprints = {sealed.manifest.fingerprint}
    for name, rows in (("code", changed_code), ("outcome", changed_outcome)):
        write(tmp_path / name, rows, rows_per_file=4)
        fingerprints.add(seal(tmp_path / name).manifest.fingerprint)
    assert len(fingerprints) == 3


def test_a_set_without_a_manifest_is_no_set(tmp_path: Path) -> None:
    write(tmp_path / "set", all_records(), rows_per_file=4)
    with pytest.raises(ShardError, match="not sealed yet; repeat the command"):
        ShardSet.open(str(tmp_path / "set"))
    with pytest.raises(UsageError, match="there is no shard set at"):
        ShardSet.open(str(tmp_path / "nowhere"))


def test_a_set_of_another_format_is_refused(sealed: ShardSet) -> None:
    place = storage.join(sealed.uri, shards.MANIFEST)
    storage.write_json(place, storage.read_json(place) | {"format_version": 99})
    with pytest.raises(ShardError, match="format 99"):
        ShardSet.open(sealed.uri)


def test_one_clip_is_found_by_its_id(sealed: ShardSet) -> None:
    row, split = sealed.find_clip("source-3/00002/0001")
    assert (row["source"], row["start_seconds"], split) == ("source-3.mp4", 1.0, "validation")
    with pytest.raises(UsageError, match="has no clip 'nobody'"):
        sealed.find_clip("nobody")
