"""Copies of remote sources: fetched once a node, bounded, and clear of what a killed process left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from infra import storage
from infra.errors import StorageError
from pipelines.decoding import source_cache
from pipelines.decoding.source_cache import SourceCache, UnreadableError, opened_locally
from pipelines.source_errors import SourceError

ROOT = Path(__file__).parents[2]
FETCHER = """
import sys, time
from infra import storage
import fsspec
from pipelines.decoding.source_cache import SourceCache

fsspec.filesystem("memory").pipe_file("/bucket/a.mp4", b"video" * 1000)
def fetch(uri, path, fetch=storage.fetch):
    open(sys.argv[2], "a").write("fetched\\n")
    time.sleep(float(sys.argv[3]))
    fetch(uri, path)
storage.fetch = fetch
print("ready", flush=True)
copy = SourceCache(sys.argv[1]).copy_of("memory://bucket/a.mp4")
print(len(copy.read()), flush=True)
sys.stdin.read()
"""
"""A process of a node. Each has a memory file system of its own, in which the same object lies."""


def fetcher(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCHER, str(folder), str(log), str(seconds)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    return process.communicate("", timeout=60)[0]


@pytest.fixture
def bucket() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def put(uri: str, data: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(uri.removeprefix("memory:/"), data)


def copies(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if ".copy" in name]


def test_processes_of_a_node_fetch_a_source_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [fetcher(tmp_path / "copies", log, 0.5) for _ in range(3)]
    assert [finish(process) for process in processes] == ["ready\n5000\n"] * 3
    assert log.read_text() == "fetched\n"
    assert copies(tmp_path / "copies") == []  # the last to leave has cleared them


def test_a_fetch_killed_in_its_middle_is_taken_over_and_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = fetcher(tmp_path / "copies", log, 60)
    while not log.exists():
        time.sleep(0.05)
    other = fetcher(tmp_path / "copies", log, 0)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert finish(other) == "ready\n5000\n"
    assert log.read_text() == "fetched\n" * 2
    assert copies(tmp_path / "copies") == []


def test_copies_are_bounded_and_an_evicted_one_stays_readable_where_it_is_open(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_cache.SourceCache, "_most_bytes", lambda *_: 25_000)
    first, second = SourceCache(str(tmp_path)), SourceCache(str(tmp_path))
    for name in "abc":
        put(f"{bucket}/{name}", name.encode() * 10_000)
    opened = first.copy_of(f"{bucket}/a")
    second.copy_of(f"{bucket}/b")
    second.copy_of(f"{bucket}/c")
    assert sum(path.stat().st_size for path in tmp_path.glob("*.copy")) == 20_000
    assert opened.read() == b"a" * 10_000
    first.close()
    second.close()
    assert copies(tmp_path) == []


def test_what_a_killed_process_left_goes_when_the_next_one_comes(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "0123.copy.4567.tmp").write_bytes(b"half")
    put(f"{bucket}/a", b"video")
    cache = SourceCache(str(tmp_path))
    assert cache.copy_of(f"{bucket}/a").read() == b"video"
    assert len(copies(tmp_path)) == 1
    cache.close()


def test_a_source_that_changed_is_fetched_anew(tmp_path: Path, bucket: str) -> None:
    one, other = SourceCache(str(tmp_path)), SourceCache(str(tmp_path))
    put(f"{bucket}/a", b"video")
    assert one.copy_of(f"{bucket}/a").read() == b"video"
    put(f"{bucket}/a", b"another")
    assert other.copy_of(f"{bucket}/a").read() == b"another"
    assert one.copy_of(f"{bucket}/a").read() == b"video"
    one.close()
    other.close()


def test_what_is_no_regular_file_is_unreadable_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    for path in tmp_path.iterdir():
        with pytest.raises(UnreadableError), opened_locally(str(path)):
            pass


def test_a_source_that_goes_while_it_is_fetched_is_lost_alone(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(uri: str, path: str, fetch=storage.fetch) -> None:  # type: ignore[no-untyped-def]
        storage.delete(uri)
        fetch(uri, path)

    cache = SourceCache(str(tmp_path))
    put(f"{bucket}/a", b"video")
    put(f"{bucket}/b", b"video")
    monkeypatch.setattr(storage, "fetch", too_late)
    with pytest.raises(SourceError, match=r"nothing at memory://.*/a; it was there a moment ago"):
        cache.copy_of(f"{bucket}/a")
    cache.close()


def test_a_source_that_is_gone_is_a_fault_of_storage(tmp_path: Path, bucket: str) -> None:
    cache = SourceCache(str(tmp_path / "copies"))
    put(f"{bucket}/other", b"")
    with pytest.raises(StorageError, match="there is nothing at"):
        cache.copy_of(f"{bucket}/gone")
    with pytest.raises(StorageError, match="there is nothing at"), opened_locally(str(tmp_path / "gone.mp4")):
        pass
    cache.close()
