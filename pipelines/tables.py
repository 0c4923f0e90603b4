"""Parquet files of ours: complete or absent, compressed, with checksums of their pages, read in this thread.

What the columns mean is others' matter.
"""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from infra import hashing, storage
from infra.errors import ShardError

REPEATED = ("source_id", "source", "span_id", "label")
"""Columns whose values recur from row to row."""
BULKY = ("frames", "codes")
"""Columns without statistics: those would hold clips."""
NUM_READERS = 16
NUM_READERS_OF_ALL = 2
"""Files read at a time from remote storage: a few columns of them, or all, which may be large."""


def empty_table(schema: pa.Schema) -> pa.Table:
    """What `schema.empty_table()` gives, which imports pandas first: too long for a refusal to wait for."""
    return pa.Table.from_batches([], schema)


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    with opened(uri) as file:
        return file.read(columns=columns, use_threads=False)


def read_tables(uris: Sequence[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Many files in their order; of remote storage, which answers late, several at a time."""
    if not uris or storage.is_local(uris[0]):
        yield from (read_table(uri, columns) for uri in uris)
        return
    most = NUM_READERS if columns else NUM_READERS_OF_ALL
    coming: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(most) as pool:
        for uri in uris:
            coming.append(pool.submit(read_table, uri, columns))
            if len(coming) == most:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def write_table(uri: str, table: pa.Table, *, rows_per_group: int = 65_536) -> tuple[int, str]:
    """Puts one Parquet file at `uri`, complete or absent; gives its size in bytes and its SHA-256."""
    data = parquet_bytes(table, rows_per_group)
    storage.write(uri, data)
    return len(data), hashing.sha256_bytes(data)


def footer_bytes(end_of_file: bytes | memoryview) -> int:
    """What a Parquet file says of its footer's length, with that number and the magic word."""
    return int.from_bytes(end_of_file[-8:-4], "little") + 8


def parquet_bytes(table: pa.Table, rows_per_group: int) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression="zstd",
        use_dictionary=[name for name in REPEATED if name in table.column_names],
        write_statistics=[name for name in table.column_names if name not in BULKY],  # it would hold clips
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


@contextlib.contextmanager
def opened(uri: str) -> Iterator[pq.ParquetFile]:
    """The file at `uri`, read in this thread: at exit, Arrow's own threads would still hold the stream."""
    try:
        with storage.open_input(uri) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ShardError(
            f"{uri} is no whole Parquet file ({error}); in a sealed set `reelgpt verify` says what else is "
            f"damaged, a span file may be deleted: repeating the command does its spans again"
        ) from None
