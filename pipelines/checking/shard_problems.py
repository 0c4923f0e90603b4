"""What is wrong inside a shard: its rows and row groups; the place, shape, payload and split of each clip."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.packing.fingerprints import clip_digests
from pipelines.shards import PAYLOAD, Manifest, ShardEntry, clip_schema

Complaint = tuple[str, str]
"""What is wrong with a clip, and its id."""


@dataclass(slots=True)
class Clips:
    """What the shards of a set hold, as far as the whole needs it: some 100 bytes a clip."""

    digests: list[list[bytes]] = field(default_factory=list)
    ids: list[pa.ChunkedArray] = field(default_factory=list)
    span_ids: list[pa.ChunkedArray] = field(default_factory=list)


def splits_of(sources: pa.Table | None) -> dict[str, str] | None:
    """The split of each source, by its id."""
    if sources is None:
        return None
    columns = (sources.column(name).to_pylist() for name in ("source_id", "split"))
    return dict(zip(*columns, strict=True))


def shard_problems(
    file: pq.ParquetFile,
    entry: ShardEntry,
    manifest: Manifest,
    splits: dict[str, str] | None,
    clips: Clips,
) -> list[str]:
    """Reads a row group at a time, and adds what it finds to `clips`. Without `splits` (the table of sources
    is damaged) clips are not compared with their sources."""
    if not file.schema_arrow.equals(clip_schema(manifest.kind)):
        return [f"has other columns than shards of {manifest.kind}"]
    found = tuple(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))
    if found != entry.row_groups:
        return [_other_groups(found, entry.row_groups)]
    complaints: dict[str, list[str]] = {}
    last = ""
    for index in range(file.num_row_groups):
        table = file.read_row_group(index, use_threads=False)
        digests = clip_digests(table, manifest.kind, entry.split)
        for what, clip_id in _complaints(table, digests, entry, manifest, splits):
            complaints.setdefault(what, []).append(clip_id)
        ids = table.column("clip_id")
        last = _check_order(ids.to_pylist(), last, complaints)
        clips.digests.append(digests)
        clips.ids.append(ids)
        clips.span_ids.append(table.column("span_id"))
    return [f"has {len(ids)} clips that {what}, such as {ids[0]}" for what, ids in complaints.items()]


def _other_groups(found: tuple[int, ...], sealed: tuple[int, ...]) -> str:
    if sum(found) != sum(sealed):
        return f"has {sum(found)} rows, sealed with {sum(sealed)}"
    return f"has row groups of {list(found)} rows, sealed with {list(sealed)}"


def _complaints(
    table: pa.Table,
    digests: list[bytes],
    entry: ShardEntry,
    manifest: Manifest,
    splits: dict[str, str] | None,
) -> Iterator[Complaint]:
    payload, shape = PAYLOAD[manifest.kind]
    facts = table.select(["clip_id", "span_id", "source_id", "digest", shape]).to_pylist()
    for row, data, digest in zip(facts, table.column(payload), digests, strict=True):
        clip_id = row["clip_id"]
        if row["digest"] != digest:
            yield "do not have the digest of their content", clip_id
        if not clip_id.startswith(f"{row['span_id']}/") or not row["span_id"].startswith(
            f"{row['source_id']}/"
        ):
            yield "have ids of another span or source than theirs", clip_id
        if tuple(row[shape]) != entry.shape:
            yield f"are not of the shape {'x'.join(map(str, entry.shape))}", clip_id
        elif problem := _payload_problem(data.as_buffer(), manifest, entry):
            yield problem, clip_id
        if splits is not None and (problem := _split_problem(row, splits, entry)):
            yield problem, clip_id


def _payload_problem(data: pa.Buffer, manifest: Manifest, entry: ShardEntry) -> str | None:
    is_codes = manifest.kind == "tokens"
    if data.size != math.prod(entry.shape) * (2 if is_codes else 1):
        return "have more or less data than their shape"
    if is_codes and manifest.num_codes and int(np.frombuffer(data, "<u2").max()) >= manifest.num_codes:
        return f"have codes beyond the {manifest.num_codes:,} of the tokenizer"
    return None


def _split_problem(row: dict[str, Any], splits: dict[str, str], entry: ShardEntry) -> str | None:
    split = splits.get(row["source_id"])
    if split is None:
        return "are of a source that the set does not have"
    return None if split == entry.split else f"are among {entry.split}, though their source is {split}"


def _check_order(ids: list[str], last: str, complaints: dict[str, list[str]]) -> str:
    """Clips lie in the order of the hashes of their ids. Gives the last hash, to go on from."""
    for clip_id in ids:
        key = hashlib.sha256(clip_id.encode()).hexdigest()
        if key <= last:
            complaints.setdefault("are out of their place", []).append(clip_id)
        last = key
    return last
