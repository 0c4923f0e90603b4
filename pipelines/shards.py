"""The on-disk contract of a shard set: what is written, how it is read, when it is whole.

    SET/shards/train-8x8x8-00000.parquet   clips of one split and one shape, shuffled by the hash of their ids
    SET/sources.parquet                    one row a source
    SET/spans.parquet                      one row a span, whatever its fate
    SET/manifest.json                      written last: it makes the directory a shard set

Knows neither Ray nor a decoder: a training machine reads shard sets through this file alone.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra import configs, hashing, storage
from infra.errors import ConfigError, ShardError, StorageError, UsageError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SOURCES = "sources.parquet"
SPANS = "spans.parquet"

Kind = Literal["frames", "tokens"]
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_CLIP_FIELDS = [
    pa.field("clip_id", pa.string(), nullable=False),
    pa.field("source_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("span_id", pa.string(), nullable=False),
    pa.field("start_seconds", pa.float64(), nullable=False),
    pa.field("fps", pa.float64(), nullable=False),
    pa.field("num_frames", pa.int32(), nullable=False),
    pa.field("repeated_frames", pa.int32(), nullable=False),
    pa.field("scores", pa.map_(pa.string(), pa.float64())),
    pa.field("label", pa.string()),
    pa.field("caption", pa.string()),
]
_PAYLOAD: dict[Kind, tuple[str, str]] = {"frames": ("frames", "shape"), "tokens": ("codes", "grid")}


def clip_schema(kind: Kind) -> pa.Schema:
    """Columns of a clip: who it is, where it comes from, and its frames (T, H, W, 3) or codes (t, h, w)."""
    payload, shape = _PAYLOAD[kind]
    payload_fields = [
        pa.field(shape, pa.list_(pa.int32()), nullable=False),
        pa.field(payload, pa.large_binary(), nullable=False),
    ]
    return pa.schema(_CLIP_FIELDS + payload_fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    path: str
    """Relative to the shard set."""
    split: Split
    shape: tuple[int, ...]
    """Of every clip inside: frames (T, H, W, 3) or codes (t, h, w)."""
    row_groups: tuple[int, ...]
    """Clips in each row group."""
    bytes: int
    sha256: str

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableEntry:
    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    format_version: int
    kind: Kind
    recipe_id: str
    """Hash of what went in: source ids, config, tokenizer fingerprint, format version."""
    fingerprint: str
    """Hash of what came out: clips with their payload, labels and split, and each span's outcome."""
    config: dict[str, Any]
    totals: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    sources: TableEntry
    spans: TableEntry
    tokenizer_fingerprint: str | None = None
    tokenizer: str | None = None
    """Where the tokenizer's bundle was when the codes were made."""
    num_codes: int | None = None
    parents: tuple[str, ...] = ()
    """Fingerprints of the shard sets that this one was made from."""


class ShardSet:
    """A whole shard set, opened by its manifest."""

    def __init__(self, uri: str, manifest: Manifest) -> None:
        self.uri = uri
        self.manifest = manifest

    @classmethod
    def open(cls, uri: str) -> "ShardSet":
        """Raises UsageError where nothing was ever written, ShardError where a set is not whole or too
        new."""
        uri = storage.absolute(uri)
        place = storage.join(uri, MANIFEST)
        if not storage.exists(place):
            raise _not_a_shard_set(uri)
        values = _read_manifest(place)
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ShardError(
                f"{uri} has shard format {version}, this build reads {FORMAT_VERSION}; "
                f"update reelgpt or make it anew"
            )
        try:
            return cls(uri, configs.from_dict(Manifest, values))
        except ConfigError as error:
            raise _damaged(place, error) from None

    def shards(self, split: Split) -> list[ShardEntry]:
        return [entry for entry in self.manifest.shards if entry.split == split]

    def num_clips(self, split: Split) -> int:
        return sum(entry.rows for entry in self.shards(split))

    def read_row_group(self, entry: ShardEntry, index: int, columns: list[str] | None = None) -> pa.Table:
        place = storage.join(self.uri, entry.path)
        with _parquet(place) as file:
            return file.read_row_group(index, columns=columns, use_threads=False)

    def tables(self, split: Split, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every row group of a split, in the order of the manifest."""
        for entry in self.shards(split):
            for index in range(len(entry.row_groups)):
                yield self.read_row_group(entry, index, columns)

    def find_clip(self, clip_id: str) -> tuple[dict[str, Any], Split]:
        """The row of one clip with its split. Raises UsageError where the set has no such clip."""
        for entry in self.manifest.shards:
            for index in range(len(entry.row_groups)):
                ids = self.read_row_group(entry, index, ["clip_id"]).column("clip_id").to_pylist()
                if clip_id in ids:
                    row = self.read_row_group(entry, index).slice(ids.index(clip_id), 1)
                    return row.to_pylist()[0], entry.split
        raise UsageError(
            f"{self.uri} has no clip {clip_id!r}; `reelgpt explain {self.uri}` lists some that it has"
        )

    def sources(self) -> pa.Table:
        return read_table(storage.join(self.uri, self.manifest.sources.path))

    def spans(self) -> pa.Table:
        return read_table(storage.join(self.uri, self.manifest.spans.path))


def codes_of(table: pa.Table) -> list[np.ndarray]:
    """Codes of each clip, (t, h, w) uint16."""
    return _arrays(table, "tokens", np.dtype("<u2"))


def frames_of(table: pa.Table) -> list[np.ndarray]:
    """Frames of each clip, (T, H, W, 3) uint8."""
    return _arrays(table, "frames", np.dtype("u1"))


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    with _parquet(uri) as file:
        return file.read(columns=columns, use_threads=False)


def write_table(uri: str, table: pa.Table, *, rows_per_group: int = 65_536) -> tuple[int, str]:
    """Puts one Parquet file at `uri`, complete or absent; gives its size in bytes and its SHA-256."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows_per_group, compression="zstd")
    data = memoryview(sink.getvalue())
    storage.write(uri, data)
    return len(data), hashing.sha256_bytes(data)


def write_shard(uri: str, table: pa.Table, *, path: str, split: Split, rows_per_group: int) -> ShardEntry:
    """Writes clips of one shape, in the order given, as `uri`/`path`."""
    shape = table.column("grid" if "grid" in table.column_names else "shape")[0].as_py()
    num_bytes, sha256 = write_table(storage.join(uri, path), table, rows_per_group=rows_per_group)
    starts = range(0, table.num_rows, rows_per_group)
    row_groups = tuple(min(rows_per_group, table.num_rows - start) for start in starts)
    return ShardEntry(
        path=path, split=split, shape=tuple(shape), row_groups=row_groups, bytes=num_bytes, sha256=sha256
    )


def seal(uri: str, manifest: Manifest) -> None:
    """Writes the manifest, which makes the directory a shard set. Raises ShardError where another is
    there."""
    data = json.dumps(configs.to_dict(manifest), indent=1).encode()
    if not storage.create(storage.join(uri, MANIFEST), data):
        there = ShardSet.open(uri).manifest
        if there.fingerprint != manifest.fingerprint:
            raise ShardError(
                f"{uri} was sealed by somebody else as {there.fingerprint[:12]}, not as "
                f"{manifest.fingerprint[:12]}; give another output"
            )


class Fingerprint:
    """Order-independent hash of a shard set's content, built clip by clip and span by span."""

    def __init__(self) -> None:
        self._clips: list[tuple[str, str]] = []
        self._spans: list[tuple[str, str]] = []

    def add_clips(self, table: pa.Table, kind: Kind, split: Split) -> None:
        payload, shape = _PAYLOAD[kind]
        columns = table.select(["clip_id", "label", "caption", shape]).to_pylist()
        for row, data in zip(columns, table.column(payload), strict=True):
            facts = [row["clip_id"], split, row["label"], row["caption"], row[shape]]
            content = hashlib.sha256(data.as_buffer()).hexdigest()
            self._clips.append((row["clip_id"], hashing.digest([*facts, content])))

    def add_spans(self, spans: pa.Table) -> None:
        for row in spans.select(["span_id", "outcome", "error_class"]).to_pylist():
            self._spans.append((row["span_id"], row["error_class"] or row["outcome"]))

    def hexdigest(self) -> str:
        return hashing.digest([sorted(self._clips), sorted(self._spans)])


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
    fingerprint = Fingerprint()
    for split in SPLITS:
        for table in shard_set.tables(split):
            fingerprint.add_clips(table, shard_set.manifest.kind, split)
    fingerprint.add_spans(shard_set.spans())
    return fingerprint.hexdigest()


def _arrays(table: pa.Table, kind: Kind, dtype: np.dtype) -> list[np.ndarray]:
    payload, shape = _PAYLOAD[kind]
    shapes = table.column(shape).to_pylist()
    return [
        np.frombuffer(data.as_buffer(), dtype).reshape(shape)
        for data, shape in zip(table.column(payload), shapes, strict=True)
    ]


@contextlib.contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """The file at `uri`, read in this thread: at exit, Arrow's own threads would still hold the stream."""
    try:
        with storage.open_input(uri) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ShardError(
            f"{uri} is no whole Parquet file ({error}); in a sealed set `reelgpt verify` says what else is "
            f"damaged, a span file may be deleted: repeating the command does its spans again"
        ) from None


def _read_manifest(place: str) -> dict[str, Any]:
    try:
        values = storage.read_json(place)
    except StorageError as error:
        raise _damaged(place, error) from None
    if not isinstance(values, dict):
        raise _damaged(place, "it holds no object")
    return values


def _damaged(place: str, problem: object) -> ShardError:
    return ShardError(
        f"{place} is damaged ({problem}); delete it and repeat the command that made the set: its span files "
        f"are still there"
    )


def _not_a_shard_set(uri: str) -> Exception:
    if not storage.list_files(uri):
        return UsageError(
            f"there is no shard set at {uri}; `reelgpt extract` and `reelgpt tokenize` make one"
        )
    if storage.exists(storage.join(uri, "spans")):
        return ShardError(f"the shard set at {uri} is not sealed yet; repeat the command that makes it")
    return UsageError(f"{uri} is not a shard set: it has no {MANIFEST}")
