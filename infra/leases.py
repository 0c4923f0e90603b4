"""One writer an output: a lease file with its owner and a heartbeat, taken over from the dead.

A dead owner is one whose process is gone (same machine) or whose heartbeat stopped (another machine). A
takeover is itself a create-if-absent, so that of two that see the same dead owner one wins.
"""

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from types import TracebackType

from infra import storage
from infra.errors import UsageError

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
        self._claim: str | None = None
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
        storage.delete(self._uri)
        if self._claim:
            storage.delete(self._claim)

    def _take_over(self) -> None:
        record = storage.read_json(self._uri)
        holder = Owner(**record["owner"])
        if not holder.is_dead(record["heartbeat"], time.time()):
            raise UsageError(
                f"process {holder.pid} on {holder.host} is writing to {self._uri.rpartition('/')[0]}; "
                f"wait for it, stop it, or give another output"
            )
        claim = f"{self._uri}.after-{holder.id}"
        if not storage.create(claim, self._record()):
            raise UsageError(
                f"another command is taking over {self._uri.rpartition('/')[0]} from a dead one; try again"
            )
        self._claim = claim
        storage.write(self._uri, self._record())

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            storage.write(self._uri, self._record())

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
