"""What is wrong with a shard set: every byte is read again, and nothing that is checked is trusted.

First each file by itself: there, of the size and hash that were sealed, whole Parquet, and with nothing in it
that does not belong there. Where all of them are, the set as a whole: counts, totals, split, fingerprint.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from infra import hashing, storage
from infra.errors import ShardError, StorageError
from pipelines.checking import set_problems
from pipelines.checking.shard_problems import Clips, shard_problems, splits_of
from pipelines.shards import ShardEntry, ShardSet, TableEntry
from pipelines.tables import footer_bytes

OnFile = Callable[[int, int], None]
"""Called with the files that were read and those there are."""
Look = Callable[[pq.ParquetFile], list[str]]
"""What is wrong inside a file."""


def verify(uri: str, on_file: OnFile = lambda *_: None) -> list[str]:
    """What is wrong with a shard set, a sentence each; empty when all is as it was sealed.

    Raises UsageError where there is no set.
    """
    try:
        shard_set = ShardSet.open(uri)
    except ShardError as error:
        return [str(error)]
    manifest = shard_set.manifest
    problems = set_problems.manifest_problems(manifest)
    if problems:
        return problems  # names that lead elsewhere are not followed
    problems = _foreign(shard_set)
    sources = _table(shard_set, manifest.sources, problems)
    spans = _table(shard_set, manifest.spans, problems)
    splits, clips = splits_of(sources), Clips()
    num_files = len(manifest.shards)
    for number, entry in enumerate(manifest.shards, 1):
        look = _looking_at(entry, shard_set, splits, clips)
        problems += _file_problems(shard_set, entry, look)
        on_file(number, num_files)
    if problems or sources is None or spans is None:
        return problems
    return set_problems.whole_problems(manifest, sources, spans, clips)


def _looking_at(entry: ShardEntry, shard_set: ShardSet, splits: dict[str, str] | None, clips: Clips) -> Look:
    return lambda file: shard_problems(file, entry, shard_set.manifest, splits, clips)


def _table(shard_set: ShardSet, entry: TableEntry, problems: list[str]) -> pa.Table | None:
    """The table where its file is whole; else adds to the problems."""
    found: list[pa.Table] = []

    def look(file: pq.ParquetFile) -> list[str]:
        if file.metadata.num_rows != entry.rows:
            return [f"has {file.metadata.num_rows} rows, sealed with {entry.rows}"]
        found.append(file.read(use_threads=False))
        return set_problems.lacking_columns(found[0], entry is shard_set.manifest.sources)

    wrong = _file_problems(shard_set, entry, look)
    problems += wrong
    return None if wrong else found[0]


def _file_problems(shard_set: ShardSet, entry: ShardEntry | TableEntry, look: Look) -> list[str]:
    place = storage.join(shard_set.uri, entry.path)
    try:
        if not storage.exists(place):
            return [f"{entry.path} is missing"]
        data = storage.read_bytes(place)
    except StorageError as error:
        return [f"{entry.path} cannot be read: {error}"]
    if len(data) != entry.bytes:
        return [f"{entry.path} has {len(data)} bytes, sealed with {entry.bytes}"]
    if hashing.sha256_bytes(data) != entry.sha256:
        return [f"{entry.path} has other bytes than were sealed"]
    if isinstance(entry, ShardEntry) and entry.footer_sha256:
        footer = hashing.sha256_bytes(data[-footer_bytes(data) :])
        if footer != entry.footer_sha256:
            return [f"{entry.path} has another footer than the manifest says"]
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            return [f"{entry.path} {problem}" for problem in look(file)]
    except (pa.ArrowException, OSError) as error:
        return [f"{entry.path} is no whole Parquet file: {error}"]


def _foreign(shard_set: ShardSet) -> list[str]:
    known = {entry.path for entry in shard_set.manifest.shards}
    found = {f"shards/{file.name}" for file in storage.list_files(storage.join(shard_set.uri, "shards"))}
    return [
        f"{path} is not in the manifest: left by a packing that was cut off, or put there by somebody; "
        f"`reelgpt gc` removes it"
        for path in sorted(found - known)
    ]
