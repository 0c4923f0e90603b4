"""What is wrong with a shard set: every byte is read again, and nothing of what is checked is trusted."""

import pyarrow as pa
import pyarrow.parquet as pq

from infra import hashing, storage
from infra.errors import StorageError
from pipelines.fingerprints import clip_digests, fingerprint_of, span_digests
from pipelines.shards import SPLITS, ShardEntry, ShardSet, TableEntry


def verify(uri: str) -> list[str]:
    """What is wrong with a shard set, a sentence each; empty when every byte is as it was sealed."""
    shard_set = ShardSet.open(uri)
    problems = [
        problem for entry in shard_set.manifest.shards for problem in _file_problems(shard_set, entry)
    ]
    for table_entry in (shard_set.manifest.sources, shard_set.manifest.spans):
        problems += _file_problems(shard_set, table_entry)
    known = {entry.path for entry in shard_set.manifest.shards}
    found = {f"shards/{file.name}" for file in storage.list_files(storage.join(shard_set.uri, "shards"))}
    problems += [f"{path} is not in the manifest" for path in sorted(found - known)]
    if not problems and _recompute(shard_set) != shard_set.manifest.fingerprint:
        problems.append("the clips do not have the fingerprint of the manifest")
    return problems


def _file_problems(shard_set: ShardSet, entry: ShardEntry | TableEntry) -> list[str]:
    try:
        data = storage.read_bytes(storage.join(shard_set.uri, entry.path))
    except StorageError as error:
        return [f"{entry.path} cannot be read: {error}"]
    if len(data) != entry.bytes:
        return [f"{entry.path} has {len(data)} bytes, sealed with {entry.bytes}"]
    if hashing.sha256_bytes(data) != entry.sha256:
        return [f"{entry.path} has other bytes than were sealed"]
    rows = pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows
    return [] if rows == entry.rows else [f"{entry.path} has {rows} rows, sealed with {entry.rows}"]


def _recompute(shard_set: ShardSet) -> str:
    kind = shard_set.manifest.kind
    clips = (clip_digests(table, kind, split) for split in SPLITS for table in shard_set.tables(split))
    return fingerprint_of(clips, span_digests(shard_set.spans()))
