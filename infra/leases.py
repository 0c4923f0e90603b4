"""One writer an output: a lease file with its owner, and whoever took over from the dead.

The lease is a chain: the file itself, and for each owner that died a file `.after-OWNER` of the one who took
over. Every link is made by create-if-absent and never written again, so that of two that see the same dead
owner one wins, and a late write of somebody who was suspended changes nothing. The holder is the last link.
What an owner writes again and again, to be known alive, is a file of its own.

An owner is dead when its process is gone (same machine), or when its sign of life has not changed while we
watched for DEAD_AFTER_SECONDS (another machine): the clocks of two machines are never compared.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from types import TracebackType

from infra import storage
from infra.errors import ReelgptError, StorageError, UsageError

HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 60.0
LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Owner:
    id: str
    host: str
    pid: int
    started: str
    """When the process started, in the kernel's clock ticks: a reused pid is not the same process."""

    @property
    def is_here(self) -> bool:
        return self.host == _host()

    @property
    def is_gone(self) -> bool:
        """Of an owner on this machine."""
        return _process_started(self.pid) != self.started


class Lease:
    """Held inside a `with` block. Raises UsageError, naming the holder, while somebody else holds it.

    An owner that was suspended, or cut off from storage, may have been taken for dead: whoever is about to
    commit what others must not have changed calls `require_held` first.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._owner = Owner(uuid.uuid4().hex, _host(), os.getpid(), _process_started(os.getpid()))
        self._place = uri
        self._dead: list[str] = []
        """Ids of those that this one took over from."""
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        while not self._take():
            self._wait_for_death()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._heart.join()
        if self._is_held():
            storage.delete(self._uri)  # first of all: without it the rest says nothing
            for dead in self._dead:
                storage.delete(self._after(dead))
                storage.delete(self._sign(dead))
        storage.delete(self._sign(self._owner.id))

    def require_held(self) -> None:
        """Raises StorageError once somebody took it over: what is there is theirs to write."""
        if not self._is_held():
            raise StorageError(
                f"another command took {self._folder} over, as this one gave no sign of life for "
                f"{DEAD_AFTER_SECONDS:g} s or longer; this one ends, and the other goes on"
            )

    def _take(self) -> bool:
        """Makes our link. False where another was faster, or where the chain ended meanwhile."""
        if not storage.create(self._place, json.dumps(asdict(self._owner)).encode()):
            return False
        if self._place == self._uri or self._is_held():
            return True
        storage.delete(self._place)
        return False

    def _wait_for_death(self) -> None:
        """Makes the next link ours to take once the holder is known to be dead. Raises UsageError if not."""
        holder, chain = self._last()
        if holder is None:
            self._place, self._dead = self._uri, []
            return
        if not self._is_dead(holder):
            raise UsageError(
                f"process {holder.pid} on {holder.host} is writing to {self._folder}; "
                f"wait for it, stop it, or give another output"
            )
        self._place, self._dead = self._after(holder.id), chain

    def _is_dead(self, holder: Owner) -> bool:
        if holder.is_here:
            return holder.is_gone
        sys.stderr.write(f"watching process {holder.pid} on {holder.host} for a sign of life\n")
        sign = self._sign(holder.id)
        before, until = _bytes_at(sign), time.monotonic() + DEAD_AFTER_SECONDS
        while time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            if _bytes_at(sign) != before:
                return False
        return True

    def _last(self) -> tuple[Owner | None, list[str]]:
        """The holder, and the ids from the first owner to it; None where nobody holds it."""
        owner, chain = _read(self._uri), list[str]()
        while owner is not None:
            chain.append(owner.id)
            following = _read(self._after(owner.id))
            if following is None:
                break
            owner = following
        return owner, chain

    def _is_held(self) -> bool:
        return self._last()[0] == self._owner

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(HEARTBEAT_SECONDS):
            count += 1
            with contextlib.suppress(ReelgptError):  # the next one may get through
                storage.write(self._sign(self._owner.id), str(count).encode())

    def _after(self, owner_id: str) -> str:
        return f"{self._uri}.after-{owner_id}"

    def _sign(self, owner_id: str) -> str:
        return f"{self._uri}.alive-{owner_id}"

    @property
    def _folder(self) -> str:
        return self._uri.rpartition("/")[0]


def _read(place: str) -> Owner | None:
    """The owner in a link; None where there is none."""
    data = _bytes_at(place)
    if data is None:
        return None
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        raise StorageError(f"{place} is not a lease of ours; delete it once nobody writes there") from None


def _bytes_at(place: str) -> bytes | None:
    while storage.exists(place):
        try:
            return storage.read_bytes(place)
        except StorageError:
            if storage.exists(place):  # no race with who removes it
                raise
    return None


def _host() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{socket.gethostname()}/{file.read().strip()[:8]}"


def _process_started(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return "gone"
    return "gone" if fields[0] in "ZX" else fields[19]
