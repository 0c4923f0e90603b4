"""The on-disk contract of a shard set: what is written, how it is read, when it is whole.

    SET/shards/train-8x8x8-00000.parquet   clips of one split and one shape, shuffled by the hash of their ids
    SET/sources.parquet                    one row a source
    SET/spans.parquet                      one row a span, whatever its fate
    SET/manifest.json                      written last: it makes the directory a shard set

A sealed file never changes. What is appended to a set, or replaced in it, has files of its own, with the
generation in their names, and a new manifest that takes the place of the old one at once.

Knows neither Ray nor a decoder: a training machine reads shard sets through this file alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra import configs, hashing, storage
from infra.errors import ConfigError, ShardError, StorageError, UsageError
from pipelines import tables

FORMAT_VERSION = 2
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
    pa.field("content_hash", pa.string()),
    pa.field("perceptual_hash", pa.string()),
    pa.field("label", pa.string()),
    pa.field("caption", pa.string()),
    pa.field("action", pa.list_(pa.int32())),
    pa.field("digest", pa.binary(32)),
]
PAYLOAD: dict[Kind, tuple[str, str]] = {"frames": ("frames", "shape"), "tokens": ("codes", "grid")}
"""The column of the clips themselves, and that of their shape."""


def clip_schema(kind: Kind) -> pa.Schema:
    """Columns of a clip: who it is, where it comes from, and its frames (T, H, W, 3) or codes (t, h, w).

    `digest` is what the set's fingerprint takes of it, so that appending need not read payloads again.
    """
    payload, shape = PAYLOAD[kind]
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
    footer_sha256: str | None = None
    """Of the file's end, from which readers take where everything lies; pages have checksums of their own."""

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
    """Fingerprints of the sets that this one was made from: what it was before each appending, oldest first,
    then the set whose frames or clips it took."""
    generation: int = 0
    """How often the set was sealed anew: appended to, or replaced in part."""
    inputs: tuple[str, ...] = ()
    """SHA-256 of the frame shards whose codes are here; empty where videos were decoded."""
    sidecar: dict[str, Any] | None = None
    """Of what was joined to the clips: its rows, and how many match no source, with some of their names."""


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

    def read(self, entry: ShardEntry, columns: list[str] | None = None) -> pa.Table:
        return tables.read_table(storage.join(self.uri, entry.path), columns)

    def read_row_group(self, entry: ShardEntry, index: int, columns: list[str] | None = None) -> pa.Table:
        place = storage.join(self.uri, entry.path)
        with tables.opened(place) as file:
            return file.read_row_group(index, columns=columns, use_threads=False)

    def tables(self, split: Split, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every row group of a split, in the order of the manifest."""
        for entry in self.shards(split):
            for index in range(len(entry.row_groups)):
                yield self.read_row_group(entry, index, columns)

    def shards_of(self, spans: pa.Table) -> list[ShardEntry]:
        """The shards with a clip of any of these spans."""
        filled = spans.filter(pc.greater(spans.column("num_clips"), 0)).column("span_id").combine_chunks()
        if not len(filled):
            return []
        return [
            entry
            for entry in self.manifest.shards
            if pc.any(pc.is_in(self.read(entry, ["span_id"]).column("span_id"), filled)).as_py()
        ]

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
        return tables.read_table(storage.join(self.uri, self.manifest.sources.path))

    def spans(self) -> pa.Table:
        return tables.read_table(storage.join(self.uri, self.manifest.spans.path))


def codes_of(table: pa.Table) -> list[np.ndarray]:
    """Codes of each clip, (t, h, w) uint16."""
    return _arrays(table, "tokens", np.dtype("<u2"))


def frames_of(table: pa.Table) -> list[np.ndarray]:
    """Frames of each clip, (T, H, W, 3) uint8."""
    return _arrays(table, "frames", np.dtype("u1"))


def write_shard(uri: str, table: pa.Table, *, path: str, split: Split, rows_per_group: int) -> ShardEntry:
    """Writes clips of one shape, in the order given, as `uri`/`path`."""
    shape = table.column("grid" if "grid" in table.column_names else "shape")[0].as_py()
    data = tables.parquet_bytes(table, rows_per_group)
    storage.write(storage.join(uri, path), data)
    starts = range(0, table.num_rows, rows_per_group)
    row_groups = tuple(min(rows_per_group, table.num_rows - start) for start in starts)
    return ShardEntry(
        path=path,
        split=split,
        shape=tuple(shape),
        row_groups=row_groups,
        bytes=len(data),
        sha256=hashing.sha256_bytes(data),
        footer_sha256=hashing.sha256_bytes(data[-tables.footer_bytes(data) :]),
    )


def seal(uri: str, manifest: Manifest, *, replaces: Manifest | None = None) -> None:
    """Writes the manifest, which makes the directory a shard set, or this another one at once.

    Raises ShardError where another manifest is there than the one it `replaces`.
    """
    place, data = storage.join(uri, MANIFEST), json.dumps(configs.to_dict(manifest), indent=1).encode()
    if replaces is not None and ShardSet.open(uri).manifest == replaces:
        storage.write(place, data)
    elif not storage.create(place, data):
        there = ShardSet.open(uri).manifest
        if there.fingerprint != manifest.fingerprint:
            raise ShardError(
                f"{uri} was sealed by somebody else as {there.fingerprint[:12]}, not as "
                f"{manifest.fingerprint[:12]}; give another output"
            )


def _arrays(table: pa.Table, kind: Kind, dtype: np.dtype) -> list[np.ndarray]:
    payload, shape = PAYLOAD[kind]
    shapes = table.column(shape).to_pylist()
    return [
        np.frombuffer(data.as_buffer(), dtype).reshape(shape)
        for data, shape in zip(table.column(payload), shapes, strict=True)
    ]


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
