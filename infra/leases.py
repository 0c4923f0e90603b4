"""One writer an output: a lease file with its owner and a heartbeat, taken over from the dead.

A dead owner is one whose process is gone (same machine) or whose heartbeat stopped (another machine). A
takeover is itself a create-if-absent, so that of two that see the same dead owner one wins.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from types import TracebackType

from infra import storage
from infra.errors import StorageError, UsageError

HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Owner:
    id: str
    host: str
    pid: int
    started: str
    """When the process started, in the kernel's clock ticks: a reused pid is not the same process."""

    def is_dead(self, last_heartbeat: float, now: float) -> bool:
        if self.host == _host():
            return _process_started(self.pid) != self.started
        return now - last_heartbeat > DEAD_AFTER_SECONDS


class Lease:
    """Held inside a `with` block. Raises UsageError, naming the holder, while somebody else holds it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._owner = Owner(uuid.uuid4().hex, _host(), os.getpid(), _process_started(os.getpid()))
        self._claims: list[str] = []
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        if not storage.create(self._uri, self._record()):
            self._take_over()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._heart.join()
        if self._is_ours():
            storage.delete(self._uri)
        for claim in self._claims:
            storage.delete(claim)

    def _take_over(self) -> None:
        """Claims what the dead holder left; where the claimant died too, what that one left, and so on."""
        place, claimed = self._uri, False
        while not claimed:
            holder = self._dead_holder(place)
            place = f"{self._uri}.after-{holder.id}"
            claimed = storage.create(place, self._record())
            self._claims.append(place)
        storage.write(self._uri, self._record())

    def _dead_holder(self, place: str) -> Owner:
        record = storage.read_json(place)
        holder = Owner(**record["owner"])
        if not holder.is_dead(record["heartbeat"], time.time()):
            raise UsageError(
                f"process {holder.pid} on {holder.host} is writing to {self._uri.rpartition('/')[0]}; "
                f"wait for it, stop it, or give another output"
            )
        return holder

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(StorageError):  # the next beat may get through
                if self._is_ours():
                    storage.write(self._uri, self._record())

    def _is_ours(self) -> bool:
        """False once somebody took it over, as from a machine that was suspended for long."""
        return storage.exists(self._uri) and bool(
            storage.read_json(self._uri)["owner"]["id"] == self._owner.id
        )

    def _record(self) -> bytes:
        return json.dumps({"owner": asdict(self._owner), "heartbeat": time.time()}).encode()


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
