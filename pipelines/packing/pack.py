"""Clips to a sealed set that does not depend on cluster, order or interruptions.

The steps: survey (judge and count every clip), drop duplicates, spill the kept ones to a scratch file a
shard, write the shards, seal. A clip's shard and its place in it come from the hash of its id alone. Memory
holds one shard at a time; the manifest goes last.
"""

import contextlib
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra import storage
from infra.leases import Lease
from pipelines import shards, tables
from pipelines.config import DuplicateConfig, FilterConfig, PackConfig
from pipelines.packing import fingerprints, scratch
from pipelines.packing.origins import Origin, shape_name
from pipelines.packing.sidecar import NOTHING, Joined, Sidecar
from pipelines.packing.totals import totals_of
from pipelines.selection.duplicates import COLUMNS, Candidates, Copy
from pipelines.selection.filters import SCORED
from pipelines.selection.verdicts import Changes, changed_outcomes, count_changes, verdicts
from pipelines.shards import Kind, Manifest, ShardEntry, ShardSet, Split, TableEntry, clip_schema

MOST_CLIPS = 1 << 18
"""In a shard, however small: what is known of a clip takes some 1.7 KB of memory beside its codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a manifest says of a set beside its content, and what decides which clips are in it."""

    kind: Kind
    recipe_id: str
    config: dict[str, Any]
    held_out: frozenset[str]
    """Ids of the validation sources."""
    filters: FilterConfig
    duplicates: DuplicateConfig
    pack: PackConfig
    scores_alone: bool = False
    """Whether no clip is packed, and only counted."""
    tokenizer: str | None = None
    tokenizer_fingerprint: str | None = None
    num_codes: int | None = None
    sidecar: Sidecar | None = None
    """What is said of the clips; None leaves to them what they have."""
    parents: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a set is packed from."""

    origins: Sequence[Origin]
    sources: pa.Table
    spans: pa.Table | None = None
    """The outcomes of all spans where they are not those of the origins."""
    former: ShardSet | None = None
    """The sealed set that this one takes the place of."""
    carried: tuple[ShardEntry, ...] = ()
    """Shards of the former set that stay as they are; an origin answers for their spans."""

    def carried_tables(self, columns: Iterable[str]) -> Iterator[pa.Table]:
        former = self.former
        return (former.read(entry, list(columns)) for entry in self.carried) if former else iter(())


@dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """Clips that may share a shard: one split, one shape."""

    split: Split
    shape: tuple[int, ...]

    def path(self, generation: int, number: int) -> str:
        later = f"g{generation}-" if generation else ""
        return f"shards/{self.split}-{'x'.join(map(str, self.shape))}-{later}{number:05d}.parquet"


@dataclass(slots=True)
class Survey:
    """What a pass over the clips without their payloads finds."""

    clips: Counter[Bucket] = field(default_factory=Counter)
    """Kept clips."""
    changes: Changes = field(default_factory=dict)
    copies: Mapping[str, Copy] = field(default_factory=dict)
    """Clip id to what it is a copy of, and left out for."""


def pack(out: str, recipe: Recipe, parts: Parts, lease: Lease) -> Manifest:
    """Seals `out`, whose lease is held, from its parts, or seals it anew in place of the former set."""
    generation = parts.former.manifest.generation + 1 if parts.former else 0
    survey = _survey(parts, recipe)
    entries = list(parts.carried)
    digests = [_carried_digests(parts.former, entry) for entry in entries if parts.former]
    said = None
    if recipe.sidecar is not None:
        recipe.sidecar.copy_to(out)
        said = recipe.sidecar.joined_to(parts.sources)
    with _spilled(parts.origins, recipe, survey, said) as spilled:
        for (bucket, number), table in spilled:
            digests.append(fingerprints.clip_digests(table, recipe.kind, bucket.split))
            table = _with_digests(table, digests[-1])
            lease.require_held()  # a name is the same for every writer: another's may be sealed
            entries.append(_write_shard(out, recipe, bucket, bucket.path(generation, number), table))
    spans = _outcomes(parts, survey).sort_by("span_id")
    manifest = Manifest(
        format_version=shards.FORMAT_VERSION,
        kind=recipe.kind,
        recipe_id=recipe.recipe_id,
        fingerprint=fingerprints.fingerprint_of(digests, fingerprints.span_digests(spans)),
        config=recipe.config,
        totals=_totals(recipe.kind, entries, parts, spans),
        shards=tuple(entries),
        sources=_write_table(out, shards.SOURCES, generation, parts.sources.sort_by("source_id")),
        spans=_write_table(out, shards.SPANS, generation, spans),
        tokenizer_fingerprint=recipe.tokenizer_fingerprint,
        tokenizer=recipe.tokenizer,
        num_codes=recipe.num_codes,
        parents=recipe.parents,
        generation=generation,
        inputs=recipe.inputs,
        sidecar=said.summary() if said and recipe.sidecar is not NOTHING else None,
    )
    lease.require_held()
    _delete_strangers(out, manifest, parts.former)
    lease.require_held()
    shards.seal(out, manifest, replaces=parts.former.manifest if parts.former else None)
    _delete_strangers(out, manifest, None)
    return manifest


def _delete_strangers(out: str, manifest: Manifest, former: ShardSet | None) -> None:
    """Removes shards that are in no manifest: of a packing that was not sealed, or was replaced."""
    known = {entry.path for entry in manifest.shards}
    known |= {entry.path for entry in former.manifest.shards} if former else set()
    for file in storage.list_files(storage.join(out, "shards")):
        if f"shards/{file.name}" not in known:
            storage.delete(file.uri)


def _survey(parts: Parts, recipe: Recipe) -> Survey:
    survey = Survey(copies=_copies(parts, recipe))
    for facts in (table for origin in parts.origins for table in origin.facts()):
        found = _verdicts(facts, recipe, survey.copies)
        count_changes(survey.changes, facts, found)
        survey.clips.update(bucket for bucket in _buckets(facts, found, recipe) if bucket)
    return survey


def _verdicts(clips: pa.Table, recipe: Recipe, copies: Mapping[str, Copy]) -> list[str | None]:
    found = verdicts(clips, recipe.filters, copies)
    return [verdict or SCORED for verdict in found] if recipe.scores_alone else found


def _copies(parts: Parts, recipe: Recipe) -> dict[str, Copy]:
    """Of the clips that the thresholds keep; what is carried counts, and stays."""
    if not recipe.duplicates.is_active:
        return {}
    candidates = Candidates(recipe.duplicates)
    for origin in parts.origins:
        for facts in origin.facts():
            kept = [verdict is None for verdict in verdicts(facts, recipe.filters, {})]
            candidates.add(facts.filter(pa.array(kept, pa.bool_())), stand=origin.stands)
    for table in parts.carried_tables(COLUMNS):
        candidates.add(table, stand=True)
    return candidates.copies()


def _buckets(clips: pa.Table, found: list[str | None], recipe: Recipe) -> Iterator[Bucket | None]:
    """Where each clip belongs; None for a rejected one."""
    columns = (clips.column(name).to_pylist() for name in ("source_id", shape_name(recipe.kind)))
    for verdict, source_id, shape in zip(found, *columns, strict=True):
        split: Split = "validation" if source_id in recipe.held_out else "train"
        yield None if verdict else Bucket(split, tuple(shape))


@contextlib.contextmanager
def _spilled(
    origins: Iterable[Origin], recipe: Recipe, survey: Survey, said: Joined | None
) -> Iterator[Iterator[tuple[tuple[Bucket, int], pa.Table]]]:
    """Gives every shard's clips, one shard at a time, in the order of their hashes."""
    schema = clip_schema(recipe.kind)
    with scratch.many_files(), scratch.folder() as folder:
        sinks: dict[tuple[Bucket, int], pa.ipc.RecordBatchStreamWriter] = {}
        for clips in (table for origin in origins for table in origin.clips()):
            for shard, rows in _by_shard(clips, recipe, survey).items():
                kept = clips.take(rows).select(schema.names).cast(schema)
                kept = said.applied_to(kept) if said else kept
                with scratch.explained(folder):
                    if shard not in sinks:
                        sinks[shard] = pa.ipc.new_stream(_scratch_file(folder, shard), schema)
                    sinks[shard].write_table(kept)
        with scratch.explained(folder):
            for sink in sinks.values():
                sink.close()
        yield ((shard, _read_sorted(_scratch_file(folder, shard))) for shard in sorted(sinks))


def _by_shard(clips: pa.Table, recipe: Recipe, survey: Survey) -> dict[tuple[Bucket, int], list[int]]:
    rows: dict[tuple[Bucket, int], list[int]] = {}
    found = _verdicts(clips, recipe, survey.copies)
    ids = clips.column("clip_id").to_pylist()
    for index, bucket in enumerate(_buckets(clips, found, recipe)):
        if bucket:
            num_shards = math.ceil(survey.clips[bucket] / _clips_per_shard(bucket, recipe))
            rows.setdefault((bucket, int(_order(ids[index])[:15], 16) % num_shards), []).append(index)
    return rows


def _read_sorted(path: str) -> pa.Table:
    with pa.memory_map(path) as file:
        table = pa.ipc.open_stream(file).read_all()
    keys = [_order(clip_id) for clip_id in table.column("clip_id").to_pylist()]
    return table.take(sorted(range(len(keys)), key=keys.__getitem__))


def _order(clip_id: str) -> str:
    return hashlib.sha256(clip_id.encode()).hexdigest()


def _clips_per_shard(bucket: Bucket, recipe: Recipe) -> int:
    return max(1, min(MOST_CLIPS, recipe.pack.shard_bytes // _clip_bytes(bucket, recipe)))


def _clip_bytes(bucket: Bucket, recipe: Recipe) -> int:
    bytes_per_value = 2 if recipe.kind == "tokens" else 1
    return math.prod(bucket.shape) * bytes_per_value


def _scratch_file(folder: str, shard: tuple[Bucket, int]) -> str:
    bucket, number = shard
    return os.path.join(folder, os.path.basename(bucket.path(0, number)))


def _carried_digests(former: ShardSet, entry: ShardEntry) -> list[bytes]:
    digests: list[bytes] = former.read(entry, ["digest"]).column("digest").to_pylist()
    return digests


def _with_digests(table: pa.Table, digests: list[bytes]) -> pa.Table:
    place = table.schema.get_field_index("digest")
    return table.set_column(place, table.schema.field(place), pa.array(digests, pa.binary(32)))


def _write_shard(out: str, recipe: Recipe, bucket: Bucket, path: str, table: pa.Table) -> ShardEntry:
    rows = recipe.pack.rows_per_group(_clip_bytes(bucket, recipe))
    return shards.write_shard(out, table, path=path, split=bucket.split, rows_per_group=rows)


def _write_table(out: str, name: str, generation: int, table: pa.Table) -> TableEntry:
    path = name.replace(".", f"-g{generation}.") if generation else name
    num_bytes, sha256 = tables.write_table(storage.join(out, path), table)
    return TableEntry(path=path, rows=table.num_rows, bytes=num_bytes, sha256=sha256)


def _outcomes(parts: Parts, survey: Survey) -> pa.Table:
    """Of every span of the set, once the clips are judged."""
    found = [parts.spans] if parts.spans is not None else [origin.outcomes() for origin in parts.origins]
    return changed_outcomes(pa.concat_tables(found), survey.changes)


def _totals(kind: Kind, entries: Sequence[ShardEntry], parts: Parts, spans: pa.Table) -> dict[str, Any]:
    took = [origin.seconds() for origin in parts.origins]
    decoding, tokenizing = (sum(seconds) for seconds in zip(*took, strict=True))
    return totals_of(
        kind, entries, parts.sources, spans, decode_cpu_seconds=decoding, tokenize_seconds=tokenizing
    )
