"""What ranks leave for the one that commits."""

from pathlib import Path

import pytest

from infra.errors import StorageError
from training.saving import records
from training.saving.manifest import FileRecord


def record(rank: int, name: str) -> FileRecord:
    return FileRecord(name=name, size=rank, sha256="0" * 64, rank=rank)


def test_what_ranks_left_is_found_in_their_order(tmp_path: Path) -> None:
    written = {rank: [record(rank, f"{rank}-{part}.pt") for part in "ab"] for rank in (2, 1)}
    for rank, files in written.items():
        records.leave(str(tmp_path), "step-1", rank, files)
    assert list(records.found(str(tmp_path), "step-1", range(1, 3))) == written[1] + written[2]


def test_a_rank_that_left_nothing_is_named(tmp_path: Path) -> None:
    records.leave(str(tmp_path), "step-1", 1, [record(1, "a.pt")])
    with pytest.raises(StorageError, match=r"rank 2 has written .* --run-dir that all machines share"):
        list(records.found(str(tmp_path), "step-1", range(1, 3)))
