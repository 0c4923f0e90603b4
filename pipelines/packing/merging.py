"""Many small span files to few larger ones, before a packing reads them several times: each costs a request.

What is merged is written before what it was made of goes. A kill in between leaves rows twice, which agree,
and count once.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from infra import storage
from infra.storage import FileInfo
from pipelines import records
from pipelines.tables import read_table

SMALL_BYTES = 1 << 18
"""Below this, finding and opening a file takes longer than reading it; larger ones are not worth a copy."""
LEAST_FILES = 256
"""Fewer small files are left as they are."""
MERGED_BYTES = 8 << 20
"""Of small files that become one."""
NUM_READERS = 16
"""Files read or deleted at a time: an object store answers late, but many at once."""


def merge_small_files(place: str) -> None:
    """Merges the small files of a folder of span files, whose output's lease is held."""
    small = [file for file in storage.list_files(place) if file.size < SMALL_BYTES]
    if len(small) < LEAST_FILES:
        return
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for group in _groups(small):
            tables = list(pool.map(read_table, group))
            records.write(place, pa.concat_tables(tables, promote_options="default"))
            list(pool.map(storage.delete, group))


def _groups(files: list[FileInfo]) -> Iterator[list[str]]:
    group: list[str] = []
    num_bytes = 0
    for file in files:
        group.append(file.uri)
        num_bytes += file.size
        if num_bytes >= MERGED_BYTES:
            yield group
            group, num_bytes = [], 0
    if len(group) > 1:
        yield group
