"""Every kind of damage to a shard set is found and named, also where its hashes were made to fit."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra import configs, storage
from infra.errors import UsageError
from pipelines import shards
from pipelines.checking.deep import sample
from pipelines.checking.verify import verify
from pipelines.config import FilterConfig
from pipelines.packing.fingerprints import clip_digests
from pipelines.shards import Manifest, ShardEntry, ShardSet, TableEntry
from pipelines.tables import write_table
from reelgpt.verify import Verify
from tests.rows import build, sources, video_job, writing

Damage = Callable[[ShardSet], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos in several shards, one of them held out."""
    out = tmp_path_factory.mktemp("sets") / "set"
    build(video_job(out), sources(f"video-{k}.mp4" for k in range(5)))
    return out


@pytest.fixture
def sealed(built: Path, tmp_path: Path) -> ShardSet:
    """A set to damage."""
    shutil.copytree(built, tmp_path / "set")
    return ShardSet.open(str(tmp_path / "set"))


def first(of: ShardSet) -> ShardEntry:
    return of.shards("train")[0]


def path_of(of: ShardSet, entry: ShardEntry | TableEntry) -> Path:
    return Path(of.uri) / entry.path


def rewrite(of: ShardSet, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes what the manifest says."""
    place = storage.join(of.uri, shards.MANIFEST)
    values = storage.read_json(place)
    change(values)
    storage.write_json(place, values)


def reseal(of: ShardSet, old: ShardEntry | TableEntry, new: ShardEntry | TableEntry) -> None:
    """Puts `new` in the place of `old` in the manifest."""

    def swap(entry: Any) -> Any:
        return new if entry == old else entry

    manifest = of.manifest
    changed: Manifest = replace(
        manifest,
        shards=tuple(map(swap, manifest.shards)),
        sources=swap(manifest.sources),
        spans=swap(manifest.spans),
    )
    storage.write_json(storage.join(of.uri, shards.MANIFEST), configs.to_dict(changed))


def change_shard(
    of: ShardSet, change: Callable[[list[dict[str, Any]]], Any], *, digests: bool = True
) -> None:
    """Changes the clips of the first shard, with hashes that fit."""
    entry = first(of)
    rows = of.read(entry).to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, shards.clip_schema("tokens"))
    if digests:
        found = pa.array(clip_digests(table, "tokens", entry.split), pa.binary(32))
        table = table.set_column(table.schema.get_field_index("digest"), table.schema.field("digest"), found)
    new = shards.write_shard(of.uri, table, path=entry.path, split=entry.split, rows_per_group=3)
    reseal(of, entry, new)


def change_table(of: ShardSet, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Changes the table of sources or spans, with a hash that fits."""
    entry: TableEntry = getattr(of.manifest, name)
    table = getattr(of, name)()
    rows = table.to_pylist()
    change(rows)
    changed = pa.Table.from_pylist(rows, table.schema)
    size, sha256 = write_table(storage.join(of.uri, entry.path), changed)
    reseal(of, entry, replace(entry, rows=changed.num_rows, bytes=size, sha256=sha256))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


FILES: dict[str, tuple[Damage, str]] = {
    "a flipped bit": (lambda of: flip(path_of(of, first(of))), "{shard} has other bytes than were sealed"),
    "a flipped bit of a table": (lambda of: flip(path_of(of, of.manifest.spans)), "spans.parquet has other"),
    "a truncated file": (lambda of: cut(path_of(of, first(of))), "{shard} has .* bytes, sealed with"),
    "a missing shard": (lambda of: path_of(of, first(of)).unlink(), "{shard} is missing"),
    "a missing table": (lambda of: path_of(of, of.manifest.sources).unlink(), "sources.parquet is missing"),
    "an emptied table": (lambda of: path_of(of, of.manifest.spans).write_bytes(b""), "has 0 bytes"),
    "a foreign shard": (
        lambda of: storage.write(storage.join(of.uri, "shards/train-9x9x9-00000.parquet"), b"x"),
        "shards/train-9x9x9-00000.parquet is not in the manifest",
    ),
    "a damaged manifest": (
        lambda of: storage.write(storage.join(of.uri, shards.MANIFEST), b"{"),
        "manifest.json is damaged",
    ),
}

MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a wrong number of rows": (
        lambda m: m["shards"][0].update(row_groups=[3, 9]),
        "{shard} has 1?[0-9] rows, sealed with 12",
    ),
    "a wrong number of row groups": (
        lambda m: m["shards"][0].update(row_groups=[sum(m["shards"][0]["row_groups"])]),
        "{shard} has row groups of",
    ),
    "another footer": (lambda m: m["shards"][0].update(footer_sha256="0" * 64), "{shard} has another footer"),
    "a wrong number of spans": (
        lambda m: m["spans"].update(rows=99),
        "spans.parquet has 15 rows, sealed with",
    ),
    "wrong totals of clips": (
        lambda m: m["totals"]["clips"].update(train=1),
        "the manifest says clips={'train': 1",
    ),
    "wrong totals of outcomes": (
        lambda m: m["totals"].update(spans={"ok": 14, "failed": 1}),
        "the manifest says spans=.* and there are {'ok': 15}",
    ),
    "wrong hours": (lambda m: m["totals"].update(hours=2.0), "the manifest says hours=2.0"),
    "another fingerprint": (lambda m: m.update(fingerprint="0" * 64), "the fingerprint .* does not follow"),
    "another config": (
        lambda m: m["config"]["rows"]["sampling"].update(fps=9.0),
        "the recipe id .* does not follow",
    ),
    "no config": (lambda m: m.update(config={}), "does not say how the videos were sampled"),
    "a shard twice": (lambda m: m["shards"].append(m["shards"][0]), "stands in the manifest more than once"),
    "a shard elsewhere": (lambda m: m["shards"][0].update(path="../x.parquet"), "../x.parquet is no shard"),
    "the other split": (
        lambda m: m["shards"][0].update(split="validation"),
        "{shard} is no shard of validation clips",
    ),
    "no tokenizer": (lambda m: m.update(tokenizer_fingerprint=None), "does not say which tokenizer"),
}

CLIPS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "another code": (lambda rows: rows[0].update(codes=bytes(16)), "the fingerprint .* does not follow"),
    "another caption": (lambda rows: rows[0].update(caption="a cat"), "the fingerprint .* does not follow"),
    "a code beyond the codebook": (
        lambda rows: rows[0].update(codes=b"\xff" * 16),
        "{shard} has 1 clips that have codes beyond the 1,000",
    ),
    "too few codes": (lambda rows: rows[0].update(codes=bytes(8)), "have more or less data than their shape"),
    "another grid": (lambda rows: rows[1].update(grid=[1, 2, 4]), "that are not of the shape 2x2x2"),
    "clips out of place": (
        lambda rows: rows.reverse(),
        "that are out of their place, such as id-of-video",
    ),
    "a clip of another span": (
        lambda rows: rows[0].update(span_id="id-of-video-9.mp4/00000"),
        "have ids of another span or source than theirs",
    ),
    "a clip of a held-out source": (
        lambda rows: rows[0].update(source_id="id-of-nobody"),
        "are of a source that the set does not have",
    ),
    "a clip twice": (lambda rows: rows.insert(0, rows[0]), "{shard} has 1 clips that are out of their place"),
    "a clip less": (lambda rows: rows.pop(), "say another number of clips than are there"),
}

TABLES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Any], str]] = {
    "another split of a source": (
        "sources",
        lambda rows: [row.update(split="train") for row in rows],
        "validation-.* that are among validation, though their source is train",
    ),
    "a split of no name": (
        "sources",
        lambda rows: [row.update(split="test") for row in rows],
        "though their source is test",
    ),
    "a span without a row": ("spans", lambda rows: rows.pop(), "1 spans have no row, such as id-of-video"),
    "a row of no span": (
        "spans",
        lambda rows: rows.append(rows[0] | {"span_id": "id-of-nobody/00000"}),
        "1 rows are of no span of the sources, such as id-of-nobody/00000",
    ),
    "a span twice": ("spans", lambda rows: rows.append(rows[0]), "1 spans are there more than once"),
    "a wrong number of clips": (
        "spans",
        lambda rows: rows[0].update(num_clips=9),
        "say another number of clips",
    ),
    "another outcome": (
        "spans",
        lambda rows: rows[0].update(outcome="failed"),
        "say an outcome that does not",
    ),
    "an error of no class": (
        "spans",
        lambda rows: rows[0].update(error_class="odd"),
        "error of no known class",
    ),
}


def assert_named(of: ShardSet, sentence: str) -> None:
    problems = verify(of.uri)
    expected = sentence.replace("{shard}", re.escape(of.manifest.shards[0].path))
    assert any(re.search(expected, problem) for problem in problems), problems
    outcome = Verify(target=of.uri).run()
    assert (outcome.exit_code, outcome.summary["whole"]) == (1, False)
    assert outcome.summary["problems"] == problems


def test_what_was_sealed_is_whole(sealed: ShardSet) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(sealed.uri, lambda *counts: seen.append(counts)) == []
    assert seen[-1] == (len(sealed.manifest.shards),) * 2
    assert Verify(target=sealed.uri).run().exit_code == 0


@pytest.mark.parametrize("damage", FILES)
def test_a_damaged_file_is_named_and_nothing_else(sealed: ShardSet, damage: str) -> None:
    harm, sentence = FILES[damage]
    harm(sealed)
    assert len(verify(sealed.uri)) == 1
    assert_named(sealed, sentence)


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_manifest_that_does_not_follow_from_what_is_there_is_told(sealed: ShardSet, damage: str) -> None:
    change, sentence = MANIFESTS[damage]
    rewrite(sealed, change)
    assert_named(sealed, sentence)


@pytest.mark.parametrize("damage", CLIPS)
def test_clips_that_do_not_belong_are_found_though_every_hash_fits(sealed: ShardSet, damage: str) -> None:
    change, sentence = CLIPS[damage]
    change_shard(sealed, change)
    assert_named(sealed, sentence)


@pytest.mark.parametrize("damage", TABLES)
def test_rows_that_disagree_with_the_clips_are_found_though_every_hash_fits(
    sealed: ShardSet, damage: str
) -> None:
    name, change, sentence = TABLES[damage]
    change_table(sealed, name, change)
    assert_named(sealed, sentence)


def test_a_digest_that_is_not_of_its_clip_is_found(sealed: ShardSet) -> None:
    change_shard(sealed, lambda rows: rows[0].update(codes=bytes(16)), digests=False)
    assert_named(sealed, "1 clips that do not have the digest of their content")


def test_a_shard_of_other_columns_is_found(sealed: ShardSet) -> None:
    entry = first(sealed)
    table = sealed.read(entry).drop_columns(["perceptual_hash"])
    new = shards.write_shard(sealed.uri, table, path=entry.path, split=entry.split, rows_per_group=3)
    reseal(sealed, entry, new)
    assert_named(sealed, "has other columns than shards of tokens")


def test_all_that_is_damaged_is_told_at_once(sealed: ShardSet) -> None:
    victims = sealed.manifest.shards[:3]
    for entry in victims:
        flip(path_of(sealed, entry))
    problems = verify(sealed.uri)
    assert [problem.partition(" ")[0] for problem in problems] == [entry.path for entry in victims]


def test_a_folder_that_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no shard set"):
        verify(str(tmp_path))


def test_a_set_in_which_everything_failed_is_whole_too(tmp_path: Path) -> None:
    errors = {f"id-of-a.mp4/{number:05d}": "corrupt" for number in range(3)}
    build(video_job(tmp_path / "set"), sources(["a.mp4"]), writing(FilterConfig(), errors))
    assert verify(str(tmp_path / "set")) == []
    assert sample(ShardSet.open(str(tmp_path / "set")), 9, seed=0) == []
