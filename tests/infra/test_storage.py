import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from infra import object_stores, storage
from infra.errors import StorageError, UsageError


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
    for name in ("b/two", "a", f"c.{'0' * 32}.tmp", "my.tmp"):
        storage.write(str(tmp_path / name), b"x")
    names = [(file.name, file.size) for file in storage.list_files(str(tmp_path))]
    assert names == [("a", 1), ("b/two", 1), ("my.tmp", 1)]
    assert storage.list_files(str(tmp_path / "nowhere")) == []


def test_what_goes_wrong_in_a_listing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the name is too long"):
        storage.list_files(str(tmp_path / ("n" * 300)))


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


def test_an_empty_name_is_refused_and_not_taken_for_the_working_directory() -> None:
    with pytest.raises(UsageError, match="a name is empty"):
        storage.list_files("")


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


SIGNS = ("a b", "ä-日本", "#1", "50%25", "a?b", "a*b", "[1]", "a::b", "zip::c", "~d", "d:e", "line\nfeed")


@pytest.mark.parametrize("sign", SIGNS)
def test_every_sign_of_a_local_path_stands_for_itself(tmp_path: Path, sign: str) -> None:
    uri = f"{tmp_path}/{sign}/{sign}.mp4"
    storage.write(uri, b"x")
    assert (tmp_path / sign / f"{sign}.mp4").exists()
    found = storage.describe(uri)
    assert found is not None
    assert (found.uri, found.name) == (uri, f"{sign}.mp4")
    assert [file.uri for file in storage.list_files(f"{tmp_path}/{sign}")] == [uri]
    assert storage.absolute(storage.absolute(uri)) == uri
    storage.delete(uri)
    assert not storage.exists(uri)


def test_a_file_uri_is_decoded_and_a_path_is_not(tmp_path: Path) -> None:
    place = tmp_path / "a b%20c"
    storage.write(place.as_uri(), b"x")
    assert place.read_bytes() == b"x"
    assert (
        storage.absolute(place.as_uri())
        == storage.absolute(f"file://localhost{place.as_uri()[7:]}")
        == str(place)
    )
    assert storage.absolute("a%20b") == os.path.join(os.getcwd(), "a%20b")


def test_a_listing_ends_where_links_go_in_circles_and_passes_over_what_is_no_file(tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/a/b/file", b"x")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "a" / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "linked").symlink_to(tmp_path / "a" / "b")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert [file.name for file in storage.list_files(str(tmp_path))] == ["a/b/file"]
    assert storage.describe(f"{tmp_path}/pipe.mp4") is None
    with pytest.raises(UsageError, match="lead in a circle"):
        storage.read_bytes(f"{tmp_path}/a/self")


def test_what_killed_writers_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    unfinished, theirs = tmp_path / "deep" / f"file.{'0' * 32}.tmp", tmp_path / "mine.tmp"
    for path in (unfinished, theirs):
        storage.write(str(path), b"x")
    assert storage.sweep(str(tmp_path)) == 0
    two_days_ago = time.time() - 2 * 86_400
    for path in (unfinished, theirs):
        os.utime(path, (two_days_ago, two_days_ago))
    assert storage.sweep(str(tmp_path)) == 1
    assert (unfinished.exists(), theirs.exists()) == (False, True)


FILL = """
import sys
from infra import storage
from infra.errors import StorageError
for act in (storage.write, storage.create):
    try:
        act(sys.argv[1] + "/file", bytes(2 << 20))
    except StorageError as error:
        print(error)
open(sys.argv[2] + "/large", "wb").write(bytes(2 << 20))
for act in (storage.upload, storage.fetch):
    try:
        act(sys.argv[2] + "/large", sys.argv[1] + "/file")
    except StorageError as error:
        print(error)
"""


@pytest.mark.faults
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FILL, str(disk), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.stdout.count("no space is left there; free some, or give another place") == 4, done
        assert done.stdout.count(f"{disk}/file cannot be written") == 4
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.faults
def test_a_file_that_may_not_grow_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StorageError, match="may not become that large there"):
            storage.write(f"{tmp_path}/file", bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


ROOT = Path(__file__).parents[2]


class Careless(MemoryFileSystem):
    """A store that takes no notice of conditions."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:  # noqa: ARG002
        super().pipe_file(path, value, **kwargs)


def test_a_store_that_takes_no_notice_of_conditions_is_found_out_and_made_the_best_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(object_stores, "SETTLE_SECONDS", 0.5)
    fsspec.register_implementation("careless", Careless, clobber=True)
    storage.write("careless://bucket/there", b"before")
    assert not storage.create("careless://bucket/there", b"after")
    assert storage.read_bytes("careless://bucket/there") == b"before"
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda n: storage.create("careless://bucket/new", b"%d" % n), range(4)))
    assert won.count(True) == 1
    assert storage.read_bytes("careless://bucket/new") == b"%d" % won.index(True)
    assert "does not say who was first" in capsys.readouterr().err
