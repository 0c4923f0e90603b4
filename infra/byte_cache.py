"""Bytes fetched once a machine: a folder that all its processes share, bounded, checked on every read.

What is under a key never changes: keys name immutable content. Every entry carries its SHA-256 and is
verified whenever it is read; one that is damaged or cut off counts as missing. Locks are the kernel's, so
they die with their holder; a kill leaves at most an unfinished file, which the next clearing removes. The
least recently used entries go first. A cache cannot fail a run: what it cannot keep, it does not.
"""

import contextlib
import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import UsageError
from infra.file_locks import locked

NUM_LOCKS = 64
DIGEST_BYTES = 32
KEPT_SHARE = 0.9
"""Of the bound, after a clearing: so that not every entry needs one."""
UNFINISHED = ".tmp"

Bytes = bytes | memoryview


class ByteCache:
    def __init__(self, folder: str, *, max_bytes: int) -> None:
        """Raises UsageError where there can be no such folder."""
        self._entries, self._locks = Path(folder) / "entries", Path(folder) / "locks"
        self._max_bytes = max_bytes
        self._is_full = False
        try:
            self._make_folders()
        except OSError as error:
            raise UsageError(f"{folder} cannot be a cache: {error}; give another folder") from None

    def get(self, key: str, fetch: Callable[[], bytes]) -> Bytes:
        """What is kept under `key` (a file name), or else what `fetch` brings. Of several processes that miss
        it at once, one fetches."""
        kept = self._read(key)
        if kept is not None:
            return kept
        with self._turn(key):
            kept = self._read(key)
            if kept is None:
                kept = fetch()
                self._keep(key, kept)
            return kept

    def _make_folders(self) -> None:
        for place in (self._entries, self._locks):
            place.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _turn(self, key: str) -> Iterator[None]:
        """One process at a time; all at once where there can be no lock."""
        with contextlib.ExitStack() as held:
            try:
                self._make_folders()  # somebody may have emptied the cache
                held.enter_context(locked(self._locks / f"key-{zlib.crc32(key.encode()) % NUM_LOCKS}"))
            except OSError as error:
                self._say(error)
            yield

    def _read(self, key: str) -> Bytes | None:
        path = self._entries / key
        try:
            entry = memoryview(path.read_bytes())
        except OSError:
            return None
        if hashlib.sha256(entry[DIGEST_BYTES:]).digest() != entry[:DIGEST_BYTES]:
            sys.stderr.write(f"{path} is damaged; it is fetched anew\n")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry[DIGEST_BYTES:]

    def _keep(self, key: str, data: bytes) -> None:
        size = DIGEST_BYTES + len(data)
        if size > self._max_bytes:
            return
        try:
            with locked(self._locks / "size"):
                self._make_room(size)
                arriving = self._entries / f"{key}{UNFINISHED}"
                with open(arriving, "wb") as file:
                    file.writelines((hashlib.sha256(data).digest(), data))
                arriving.rename(self._entries / key)
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self._is_full:
            sys.stderr.write(f"{self._entries} keeps no more ({error}); it is read past\n")
        self._is_full = True

    def _make_room(self, size: int) -> None:
        """Books `size` bytes before they are written, so that a kill in between can only overcount."""
        book = self._locks / "bytes"
        booked = book.read_text(errors="replace") if book.exists() else ""
        total = int(booked) if booked.isdecimal() else self._max_bytes  # cut off, or new: count them
        if total + size > self._max_bytes:
            total = self._clear(min(int(KEPT_SHARE * self._max_bytes), self._max_bytes - size))
        book.write_text(str(total + size))

    def _clear(self, wanted_bytes: int) -> int:
        """Deletes the least recently used until `wanted_bytes` are left; gives how many are.

        Who writes holds the same lock as who clears: what is unfinished was left by a kill.
        """
        found: list[tuple[int, int, str]] = []
        for entry in os.scandir(self._entries):
            if entry.name.endswith(UNFINISHED):
                os.remove(entry)
            else:
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= wanted_bytes:
                break
            os.remove(path)
            total -= size
        return total
