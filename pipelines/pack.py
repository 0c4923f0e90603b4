"""Span files to a sealed shard set that does not depend on cluster, order or interruptions.

A clip's shard and its place in it come from the hash of its id alone. Clips are spilled to a scratch file a
shard, so that memory holds one shard at a time; the manifest goes last.
"""

import contextlib
import hashlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra import storage
from pipelines import records, shards
from pipelines.config import PackConfig
from pipelines.shards import Kind, Manifest, ShardEntry, Split, TableEntry, clip_schema


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a manifest says of a set beside its content."""

    kind: Kind
    recipe_id: str
    config: dict[str, Any]
    held_out: frozenset[str]
    """Ids of the validation sources."""
    pack: PackConfig
    tokenizer: str | None = None
    tokenizer_fingerprint: str | None = None
    num_codes: int | None = None
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """Clips that may share a shard: one split, one shape."""

    split: Split
    shape: tuple[int, ...]

    def path(self, number: int) -> str:
        return f"{'x'.join(map(str, self.shape))}-{number:05d}"


@dataclass(slots=True)
class Tally:
    """What a first pass over the span files finds."""

    clips: Counter[Bucket] = field(default_factory=Counter)
    decode_cpu_seconds: float = 0.0
    tokenize_seconds: float = 0.0


def pack(out: str, recipe: Recipe, units: Set[str], sources: pa.Table, spans: pa.Table | None) -> Manifest:
    """Seals `out` from the rows of `units`; `spans` are the outcomes where those are not the rows
    themselves."""
    tally, rows = _count(out, recipe, units)
    spans = (rows if spans is None else spans).sort_by("span_id")
    fingerprint = shards.Fingerprint()
    fingerprint.add_spans(spans)
    entries = []
    with _spilled(out, recipe, units, tally) as spilled:
        for (bucket, number), table in spilled:
            fingerprint.add_clips(table, recipe.kind, bucket.split)
            entries.append(_write_shard(out, recipe, bucket, number, table))
    manifest = Manifest(
        format_version=shards.FORMAT_VERSION,
        kind=recipe.kind,
        recipe_id=recipe.recipe_id,
        fingerprint=fingerprint.hexdigest(),
        config=recipe.config,
        totals=_totals(recipe.kind, tally, sources, spans),
        shards=tuple(entries),
        sources=_write_table(out, shards.SOURCES, sources.sort_by("source_id")),
        spans=_write_table(out, shards.SPANS, spans),
        tokenizer_fingerprint=recipe.tokenizer_fingerprint,
        tokenizer=recipe.tokenizer,
        num_codes=recipe.num_codes,
        parents=recipe.parents,
    )
    _delete_strangers(out, manifest)
    shards.seal(out, manifest)
    return manifest


def _delete_strangers(out: str, manifest: Manifest) -> None:
    """Removes shards of an earlier packing that was not sealed, as of other sources."""
    known = {entry.path for entry in manifest.shards}
    for file in storage.list_files(storage.join(out, "shards")):
        if f"shards/{file.name}" not in known:
            storage.delete(file.uri)


def _count(out: str, recipe: Recipe, units: Set[str]) -> tuple[Tally, pa.Table]:
    tally, outcomes = Tally(), []
    for table in records.tables(out, units):
        for clip in (
            records.kept_clips(table, recipe.kind).select(["source_id", _shape_name(recipe.kind)]).to_pylist()
        ):
            tally.clips[_bucket(clip, recipe)] += 1
        tally.decode_cpu_seconds += sum(table.column("decode_cpu_seconds").to_pylist())
        tally.tokenize_seconds += sum(table.column("tokenize_seconds").to_pylist())
        outcomes.append(records.outcomes(table))
    return tally, pa.concat_tables(outcomes)


@contextlib.contextmanager
def _spilled(
    out: str, recipe: Recipe, units: Set[str], tally: Tally
) -> Iterator[Iterator[tuple[tuple[Bucket, int], pa.Table]]]:
    """Gives every shard's clips, one shard at a time, in the order of their hashes."""
    with tempfile.TemporaryDirectory(prefix="reelgpt-pack-") as scratch:
        sinks: dict[tuple[Bucket, int], pa.ipc.RecordBatchStreamWriter] = {}
        for table in records.tables(out, units):
            clips = records.kept_clips(table, recipe.kind)
            for shard, rows in _by_shard(clips, recipe, tally).items():
                if shard not in sinks:
                    sinks[shard] = pa.ipc.new_stream(_scratch_file(scratch, shard), clip_schema(recipe.kind))
                sinks[shard].write_table(clips.take(rows))
        for sink in sinks.values():
            sink.close()
        yield ((shard, _read_sorted(_scratch_file(scratch, shard))) for shard in sorted(sinks))


def _by_shard(clips: pa.Table, recipe: Recipe, tally: Tally) -> dict[tuple[Bucket, int], list[int]]:
    rows: dict[tuple[Bucket, int], list[int]] = {}
    for index, clip in enumerate(
        clips.select(["clip_id", "source_id", _shape_name(recipe.kind)]).to_pylist()
    ):
        bucket = _bucket(clip, recipe)
        num_shards = math.ceil(tally.clips[bucket] / _clips_per_shard(bucket, recipe))
        rows.setdefault((bucket, int(_order(clip["clip_id"])[:15], 16) % num_shards), []).append(index)
    return rows


def _read_sorted(path: str) -> pa.Table:
    with pa.memory_map(path) as file:
        table = pa.ipc.open_stream(file).read_all()
    keys = [_order(clip_id) for clip_id in table.column("clip_id").to_pylist()]
    return table.take(sorted(range(len(keys)), key=keys.__getitem__))


def _order(clip_id: str) -> str:
    return hashlib.sha256(clip_id.encode()).hexdigest()


def _bucket(clip: dict[str, Any], recipe: Recipe) -> Bucket:
    split: Split = "validation" if clip["source_id"] in recipe.held_out else "train"
    return Bucket(split, tuple(clip[_shape_name(recipe.kind)]))


def _clips_per_shard(bucket: Bucket, recipe: Recipe) -> int:
    bytes_per_value = 2 if recipe.kind == "tokens" else 1
    return max(1, recipe.pack.shard_bytes // (math.prod(bucket.shape) * bytes_per_value))


def _shape_name(kind: Kind) -> str:
    return "grid" if kind == "tokens" else "shape"


def _scratch_file(scratch: str, shard: tuple[Bucket, int]) -> str:
    bucket, number = shard
    return os.path.join(scratch, f"{bucket.split}-{bucket.path(number)}.arrow")


def _write_shard(out: str, recipe: Recipe, bucket: Bucket, number: int, table: pa.Table) -> ShardEntry:
    path = f"shards/{bucket.split}-{bucket.path(number)}.parquet"
    return shards.write_shard(
        out, table, path=path, split=bucket.split, rows_per_group=recipe.pack.clips_per_row_group
    )


def _write_table(out: str, path: str, table: pa.Table) -> TableEntry:
    num_bytes, sha256 = shards.write_table(storage.join(out, path), table)
    return TableEntry(path=path, rows=table.num_rows, bytes=num_bytes, sha256=sha256)


def _totals(kind: Kind, tally: Tally, sources: pa.Table, spans: pa.Table) -> dict[str, Any]:
    rows = spans.to_pylist()
    clips = {split: sum(n for b, n in tally.clips.items() if b.split == split) for split in shards.SPLITS}
    rejected: Counter[str] = Counter()
    for row in rows:
        rejected.update(dict(row["rejected"] or []))
    totals = {
        "sources": sources.num_rows,
        "hours": sum(s or 0 for s in sources.column("duration_seconds").to_pylist()) / 3600,
        "spans": dict(sorted(Counter(row["outcome"] for row in rows).items())),
        "failed": _count_errors(row for row in rows if row["outcome"] == "failed"),
        "damaged": _count_errors(row for row in rows if row["outcome"] != "failed"),
        "failed_sources": len({row["source_id"] for row in rows if row["outcome"] == "failed"}),
        "rejected_clips": dict(sorted(rejected.items())),
        "clips": clips,
        "decode_cpu_seconds": round(tally.decode_cpu_seconds, 3),
        "tokenize_seconds": round(tally.tokenize_seconds, 3),
    }
    if kind == "tokens":
        totals["codes"] = sum(math.prod(bucket.shape) * count for bucket, count in tally.clips.items())
    return totals


def _count_errors(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(row["error_class"] for row in rows if row["error_class"]).items()))
