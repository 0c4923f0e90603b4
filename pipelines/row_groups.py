"""One row group of a shard as arrays: its bytes in one request, the checksum of every page verified.

A remote row group goes through a cache of this machine, if one is given, so that its processes fetch it once.
Whole files are not fetched: training visits row groups in a shuffled order over all shards, and would move a
file for each. Knows neither Ray nor a decoder.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra import hashing, storage
from infra.byte_cache import ByteCache, Bytes
from infra.errors import ShardError
from infra.seekable import Seekable
from pipelines.shards import PAYLOAD, ShardEntry, ShardSet
from pipelines.tables import footer_bytes

FOOTER_BYTES = 1 << 16
"""What is read of a file's end at first; a longer footer takes a second request."""
MAGIC = b"PAR1"
NUM_FOOTERS = 1024
"""Footers kept in memory."""


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips of one shape."""

    ids: NDArray[np.bytes_]
    """(N,)"""
    arrays: NDArray[np.integer[Any]]
    """Codes (N, t, h, w) uint16 or frames (N, T, H, W, 3) uint8."""


class RowGroups:
    """The row groups of a shard set. Any number of threads may read."""

    def __init__(self, shard_set: ShardSet, cache: ByteCache | None = None) -> None:
        self._uri = shard_set.uri
        self._cache = None if storage.is_local(shard_set.uri) else cache
        kind = shard_set.manifest.kind
        self._columns = ["clip_id", PAYLOAD[kind][0]]
        self.dtype = np.dtype("<u2" if kind == "tokens" else "u1")
        self._footer = lru_cache(maxsize=NUM_FOOTERS)(self._read_footer)

    def read(self, entry: ShardEntry, index: int) -> Clips:
        """Raises ShardError, naming the shard and the row group, where a byte of it has changed."""
        with self._named(entry, f"row group {index}"):
            footer = self._footer(entry)
            start, end = _extent(footer.row_group(index), self._columns)

            def decode(data: Bytes) -> pa.Table:
                part = _Part(data, start, entry.bytes)
                with pq.ParquetFile(
                    part, metadata=footer, pre_buffer=False, page_checksum_verification=True
                ) as file:
                    return file.read_row_group(index, columns=self._columns, use_threads=False)

            table = decode(self._bytes(entry, start, end, decode))
            if table.num_rows != entry.row_groups[index]:
                raise pa.ArrowInvalid(f"{table.num_rows} clips, sealed with {entry.row_groups[index]}")
            ids, payload = (_values(table.column(name)) for name in self._columns)
            return Clips(ids.view(f"S{ids.shape[1]}")[:, 0], self._arrays(payload, entry))

    def _arrays(self, payload: NDArray[np.uint8], entry: ShardEntry) -> NDArray[np.integer[Any]]:
        return payload.view(self.dtype).reshape(len(payload), *entry.shape)

    def _read_footer(self, entry: ShardEntry) -> pq.FileMetaData:
        def parse(data: Bytes) -> pq.FileMetaData | None:
            """None: there is more of it. What is damaged must not get to Arrow, which may end the process."""
            if bytes(data[-4:]) != MAGIC:
                raise pa.ArrowInvalid("it does not end as a Parquet file does")
            size = footer_bytes(data)
            if size > len(data):
                return None
            if entry.footer_sha256 not in (None, hashing.sha256_bytes(data[-size:])):
                raise pa.ArrowInvalid("its footer has changed since it was sealed")
            return pq.read_metadata(_Part(data, entry.bytes - len(data), entry.bytes))

        data = self._bytes(entry, max(0, entry.bytes - FOOTER_BYTES), entry.bytes, parse)
        if footer_bytes(data) > len(data):
            data = self._bytes(entry, max(0, entry.bytes - footer_bytes(data)), entry.bytes, parse)
        footer = parse(data)
        if footer is None:
            raise pa.ArrowInvalid("its footer would be longer than the file")
        return footer

    def _bytes(self, entry: ShardEntry, start: int, end: int, decode: Callable[[Bytes], Any]) -> Bytes:
        """A part of a file. The cache keeps only what can be decoded."""

        def fetch() -> bytes:
            data = storage.read_range(storage.join(self._uri, entry.path), start, end)
            if len(data) < end - start:
                raise pa.ArrowInvalid(f"it ends before byte {end}")
            return data

        def fetch_whole() -> bytes:
            data = fetch()
            decode(data)
            return data

        return self._cache.get(f"{entry.sha256}-{start}-{end}", fetch_whole) if self._cache else fetch()

    @contextlib.contextmanager
    def _named(self, entry: ShardEntry, what: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ShardError(
                f"{what} of {storage.join(self._uri, entry.path)} is damaged ({error}); `reelgpt verify "
                f"{self._uri}` says what else is: copy the shard from where it is whole, or make the set anew"
            ) from None


class _Part(Seekable):
    """A file of which only one part is there."""

    def __init__(self, data: Bytes, start: int, file_bytes: int) -> None:
        super().__init__(file_bytes)
        self._data = memoryview(data)
        self._start = start

    def read(self, size: int = -1) -> Any:
        first = self._position - self._start
        if first < 0 or first + size > len(self._data):
            raise OSError(f"it refers to bytes from {self._position} on, which are not its own")
        self._position += size
        return self._data[first : first + size]


def _extent(group: pq.RowGroupMetaData, columns: list[str]) -> tuple[int, int]:
    """Where the columns of a row group begin and end in the file."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema in columns]
    starts = [
        min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
        for chunk in chunks
    ]
    return min(starts), max(
        start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)
    )


def _values(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Strings or bytes as rows (N, bytes) of the longest's length; without a copy where all are as long."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    wide = pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type)
    _, offsets_buffer, data = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64 if wide else np.int32)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    longest = int(np.diff(offsets).max())
    if len(values) == len(array) * longest:
        return values.reshape(len(array), longest)
    padded = np.zeros((len(array), longest), np.uint8)
    padded[np.arange(longest) < np.diff(offsets)[:, None]] = values
    return padded
