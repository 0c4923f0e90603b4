"""A cache shared by processes that may be killed at any moment."""

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.byte_cache import DIGEST_BYTES, ByteCache
from infra.errors import UsageError

pytestmark = pytest.mark.slow

SIZE = 1000
ENTRY = SIZE + DIGEST_BYTES


def content(key: str) -> bytes:
    return (hashlib.sha256(key.encode()).digest() * 40)[:SIZE]


class Source:
    """Where the content is fetched from; counts how often."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def get(self, cache: ByteCache, key: str) -> bytes:
        def fetch() -> bytes:
            self.fetched.append(key)
            return content(key)

        return bytes(cache.get(key, fetch))


def kept(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (folder / "entries").iterdir()}


def test_what_was_fetched_once_is_not_fetched_again_by_anybody(tmp_path: Path) -> None:
    source = Source()
    for _ in range(2):
        cache = ByteCache(str(tmp_path), max_bytes=10 * ENTRY)
        assert [source.get(cache, key) for key in "aba"] == [content(key) for key in "aba"]
    assert source.fetched == ["a", "b"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_noticed_and_fetched_anew(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, source = ByteCache(str(tmp_path), max_bytes=10 * ENTRY), Source()
    source.get(cache, "a")
    path = tmp_path / "entries" / "a"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:400]), "empty": b""}[damage])
    assert source.get(cache, "a") == source.get(cache, "a") == content("a")
    assert source.fetched == ["a", "a"]
    assert f"{path} is damaged; it is fetched anew" in capsys.readouterr().err


def test_it_never_holds_more_than_its_bound_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache, source = ByteCache(str(tmp_path), max_bytes=10 * ENTRY), Source()
    for number in range(100):
        source.get(cache, f"entry-{number}")
        source.get(cache, "wanted")
        assert sum(kept(tmp_path).values()) <= 10 * ENTRY
        time.sleep(0.001)  # file systems tell times in ticks
    assert source.fetched.count("wanted") == 1
    assert len(kept(tmp_path)) >= 8


def test_a_cache_that_is_emptied_under_a_run_fills_again(tmp_path: Path) -> None:
    cache, source = ByteCache(str(tmp_path), max_bytes=10 * ENTRY), Source()
    source.get(cache, "a")
    shutil.rmtree(tmp_path)
    assert source.get(cache, "a") == source.get(cache, "a") == content("a")
    assert source.fetched == ["a", "a"]
    (tmp_path / "locks" / "bytes").write_bytes(b"\xff no number")
    assert source.get(cache, "b") == content("b")


def test_where_no_lock_can_be_had_it_is_read_past(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, source = ByteCache(str(tmp_path / "cache"), max_bytes=10 * ENTRY), Source()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder any more")
    assert source.get(cache, "a") == source.get(cache, "a") == content("a")
    assert source.fetched == ["a", "a"]
    assert "it is read past" in capsys.readouterr().err


def test_what_is_larger_than_the_bound_is_passed_through(tmp_path: Path) -> None:
    cache, source = ByteCache(str(tmp_path), max_bytes=SIZE), Source()
    assert source.get(cache, "a") == source.get(cache, "a") == content("a")
    assert kept(tmp_path) == {}


def test_what_cannot_be_fetched_is_not_kept(tmp_path: Path) -> None:
    cache = ByteCache(str(tmp_path), max_bytes=10 * ENTRY)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: bytes(1 // 0))
    assert kept(tmp_path) == {}
    assert Source().get(cache, "a") == content("a")


def test_a_full_disk_does_not_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, source = ByteCache(str(tmp_path), max_bytes=10 * ENTRY), Source()
    source.get(cache, "a")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, limits[1]))
        assert [source.get(cache, key) for key in "bc"] == [content("b"), content("c")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert capsys.readouterr().err.count("keeps no more") == 1
    assert source.get(cache, "a") == content("a")
    assert source.fetched == ["a", "b", "c"]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a cache"):
        ByteCache(str(tmp_path / "file"), max_bytes=1)


USER = """
import random, sys
from infra.byte_cache import ByteCache
from tests.infra.test_byte_cache import Source, content

folder, max_bytes, seed, rounds = sys.argv[1], *map(int, sys.argv[2:])
cache, source, chance = ByteCache(folder, max_bytes=max_bytes), Source(), random.Random(seed)
for _ in range(rounds):
    key = f"entry-{chance.randrange(40)}"
    assert source.get(cache, key) == content(key), key
print(len(source.fetched))
"""


def use(folder: Path, *, max_bytes: int, seed: int, rounds: int) -> "subprocess.Popen[str]":
    numbers = [str(number) for number in (max_bytes, seed, rounds)]
    command = [sys.executable, "-c", USER, str(folder), *numbers]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)


def test_processes_that_share_it_fetch_everything_once(tmp_path: Path) -> None:
    users = [use(tmp_path, max_bytes=100 * ENTRY, seed=seed, rounds=400) for seed in range(3)]
    fetched = [int(user.communicate(timeout=60)[0]) for user in users]
    assert [user.returncode for user in users] == [0, 0, 0]
    assert sum(fetched) == len(kept(tmp_path)) == 40


@pytest.mark.faults
def test_killed_at_any_moment_it_stays_whole_and_within_its_bound(tmp_path: Path) -> None:
    chance = random.Random(0)
    for seed in range(8):
        users = [use(tmp_path, max_bytes=10 * ENTRY, seed=10 * seed + i, rounds=10**9) for i in range(2)]
        time.sleep(0.3 + chance.uniform(0.0, 0.3))
        for user in users:
            user.kill()
            user.communicate()
        last = use(tmp_path, max_bytes=10 * ENTRY, seed=seed, rounds=200)
        last.communicate(timeout=60)
        assert last.returncode == 0
        assert sum(kept(tmp_path).values()) <= 10 * ENTRY
        assert not [name for name in kept(tmp_path) if name.endswith(".tmp")]
