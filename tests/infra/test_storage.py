import os
from pathlib import Path

import pytest

from infra import storage
from infra.errors import StorageError


def test_a_write_is_complete_or_absent_and_replaces(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "file")
    storage.write(uri, b"one")
    storage.write(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert os.listdir(tmp_path / "deep") == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    storage.write(uri, b"one")
    with pytest.raises(TypeError):
        storage.write(uri, "not bytes")  # type: ignore[arg-type]
    assert storage.read_bytes(uri) == b"one"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("scheme", ["", "memory://created/"])
def test_only_one_creator_wins(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}{tmp_path}/only"
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_files_are_listed_by_relative_name_without_unfinished_writes(tmp_path: Path) -> None:
    for name in ("b/two", "a", "c.tmp"):
        storage.write(str(tmp_path / name), b"x")
    assert [(file.name, file.size) for file in storage.list_files(str(tmp_path))] == [("a", 1), ("b/two", 1)]
    assert storage.list_files(str(tmp_path / "nowhere")) == []


def test_a_glob_names_files_relative_to_its_fixed_part(tmp_path: Path) -> None:
    for name in ("day-1/a.mp4", "day-2/a.mp4", "day-2/b.txt"):
        storage.write(str(tmp_path / name), b"x")
    found = storage.matching(f"{tmp_path}/day-*/*.mp4")
    assert [file.name for file in found] == ["day-1/a.mp4", "day-2/a.mp4"]


def test_what_is_missing_or_of_an_unknown_scheme_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is nothing at"):
        storage.read_bytes(str(tmp_path / "nothing"))
    with pytest.raises(StorageError, match="cannot be opened"):
        storage.read_bytes("gopher://host/file")


def test_broken_json_says_so(tmp_path: Path) -> None:
    storage.write(str(tmp_path / "x.json"), b"{")
    with pytest.raises(StorageError, match="not JSON"):
        storage.read_json(str(tmp_path / "x.json"))


def test_upload_and_fetch_copy_whole_files(tmp_path: Path) -> None:
    here, there, back = (str(tmp_path / name) for name in ("here", "far/there", "near/back"))
    storage.write(here, b"bytes")
    storage.upload(here, there)
    storage.fetch(there, back)
    assert storage.read_bytes(back) == b"bytes"
    assert [file.name for file in storage.list_files(str(tmp_path))] == ["far/there", "here", "near/back"]
