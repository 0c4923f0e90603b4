import random
from pathlib import Path

import numpy as np
import pytest

from infra.errors import ShardError
from pipelines import shards
from pipelines.row_groups import RowGroups
from pipelines.shards import ShardEntry, ShardSet
from tests.training.conftest import drifting_codes, moving_squares, write_shard_set


def a_set(folder: Path, kind: shards.Kind = "tokens", count: int = 40) -> ShardSet:
    clips = drifting_codes(count, grid=(4, 8, 8)) if kind == "tokens" else moving_squares(count)
    return write_shard_set(str(folder), kind, {"train": clips})


@pytest.mark.parametrize("kind", ["tokens", "frames"])
def test_it_reads_what_the_shard_set_reads(kind: shards.Kind, tmp_path: Path) -> None:
    shard_set = a_set(tmp_path / "set", kind)
    arrays_of = shards.codes_of if kind == "tokens" else shards.frames_of
    row_groups = RowGroups(shard_set)
    for entry in shard_set.shards("train"):
        for index in range(len(entry.row_groups)):
            table = shard_set.read_row_group(entry, index)
            clips = row_groups.read(entry, index)
            assert [clip_id.decode() for clip_id in clips.ids] == table.column("clip_id").to_pylist()
            np.testing.assert_array_equal(clips.arrays, np.stack(arrays_of(table)))


def test_ids_may_be_of_any_length(tmp_path: Path) -> None:
    a = write_shard_set(str(tmp_path / "set"), "tokens", {"train": drifting_codes(4)})
    entry = a.shards("train")[0]
    table = a.read_row_group(entry, 0)
    ids = ["a", "bbbb", "", "cc"][: table.num_rows]
    table = table.set_column(0, table.schema.field(0), [ids])
    changed = shards.write_shard(a.uri, table, path=entry.path, split="train", rows_per_group=4)
    assert RowGroups(a).read(changed, 0).ids.tolist() == [text.encode() for text in ids]


def test_many_row_groups_have_a_long_footer(tmp_path: Path) -> None:
    a = a_set(tmp_path / "set", count=1200)
    entry = a.shards("train")[0]
    assert len(entry.row_groups) == 150
    assert len(RowGroups(a).read(entry, 149).ids) == 4


@pytest.mark.slow
def test_any_changed_byte_of_the_clips_is_noticed_and_named(tmp_path: Path) -> None:
    shard_set = a_set(tmp_path / "set")
    entry = shard_set.shards("train")[0]
    path, chance = tmp_path / "set" / entry.path, random.Random(0)
    whole = path.read_bytes()
    before = read_or_refuse(shard_set, entry)
    refusals = []
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        after = read_or_refuse(shard_set, entry)
        if isinstance(after, str):
            refusals.append(after)
        else:
            assert after == before  # a byte that no clip depends on, such as another column's
    assert len(refusals) > 30
    assert all(entry.path in refusal for refusal in refusals)


def read_or_refuse(shard_set: ShardSet, entry: ShardEntry) -> list[tuple[list[bytes], bytes]] | str:
    """Ids and codes of every row group; or what is said of the damage."""
    row_groups = RowGroups(shard_set)
    try:
        read = [row_groups.read(entry, index) for index in range(len(entry.row_groups))]
    except ShardError as error:
        return str(error)
    return [(clips.ids.tolist(), clips.arrays.tobytes()) for clips in read]


@pytest.mark.parametrize("change", ["cut", "other"])
def test_a_file_that_is_not_the_one_that_was_sealed_is_named(change: str, tmp_path: Path) -> None:
    shard_set = a_set(tmp_path / "set")
    entry = shard_set.shards("train")[0]
    path = tmp_path / "set" / entry.path
    path.write_bytes(path.read_bytes()[:-100] if change == "cut" else b"x" * entry.bytes)
    with pytest.raises(ShardError, match=rf"row group 0 of {path} is damaged"):
        RowGroups(shard_set).read(entry, 0)
