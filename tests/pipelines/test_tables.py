"""Many files of remote storage: in their order, and several at a time, since each answer takes a while."""

import threading
from collections.abc import Iterator
from typing import IO

import fsspec
import pyarrow as pa
import pytest

from infra import storage
from infra.errors import ShardError
from pipelines.tables import read_tables, write_table

FOLDER = "memory://tables"
NUM_FILES = 40
AT_A_TIME = 8


@pytest.fixture
def files() -> Iterator[list[str]]:
    uris = [f"{FOLDER}/{number:02d}.parquet" for number in range(NUM_FILES)]
    for number, uri in enumerate(uris):
        write_table(uri, pa.table({"number": [number], "other": ["x"]}))
    yield uris
    fsspec.filesystem("memory").rm("/tables", recursive=True)


def test_remote_files_are_read_some_at_a_time_and_come_in_their_order(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, together = storage.open_input, threading.Barrier(AT_A_TIME, timeout=60)

    def late(uri: str) -> IO[bytes]:
        """Answers once others are asked too."""
        together.wait()
        return prompt(uri)

    monkeypatch.setattr(storage, "open_input", late)
    numbers = [table.column("number")[0].as_py() for table in read_tables(files, ["number"])]
    assert numbers == list(range(NUM_FILES))


def test_all_columns_come_too_and_a_damaged_file_is_named(files: list[str]) -> None:
    assert [table.column_names for table in read_tables(files)] == [["number", "other"]] * NUM_FILES
    storage.write(files[7], b"PAR1 and no more")
    with pytest.raises(ShardError, match=r"07.parquet is no whole Parquet file"):
        list(read_tables(files, ["number"]))


def test_no_file_is_no_table() -> None:
    assert list(read_tables([])) == []
