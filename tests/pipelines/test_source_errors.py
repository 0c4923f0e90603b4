"""What is said of one source alone, and what of wherever it lies."""

import errno
from pathlib import Path

import pytest

from pipelines.decoding.stalled_source import SourceReader
from pipelines.source_errors import SourceError, failing_disk, not_opened

ENDLESS_BYTES = 4 << 40
"""Of a file of holes, which takes an hour to read."""


@pytest.mark.parametrize(
    ("number", "is_of_one"), [(errno.EIO, True), (errno.ESTALE, True), (errno.ENOTCONN, False)]
)
def test_a_trouble_that_the_next_file_would_meet_as_well_is_not_left_to_one(
    tmp_path: Path, number: int, is_of_one: bool
) -> None:
    (tmp_path / "a.mp4").touch()
    with open(tmp_path / "a.mp4", "rb") as file:
        assert isinstance(failing_disk(file, number, "so"), SourceError) == is_of_one
    assert isinstance(not_opened("a.mp4", OSError(number, "so")), SourceError) == is_of_one


@pytest.mark.timeout(60)
def test_a_long_file_is_read_here_and_there_alone_to_see_whether_it_can_be(tmp_path: Path) -> None:
    with open(tmp_path / "long.mp4", "w+b") as file:
        file.truncate(ENDLESS_BYTES)
        reader = SourceReader()
        assert [reader.is_stalled(file.fileno(), 30.0) for _ in range(2)] == [False, False]
        reader.end()
