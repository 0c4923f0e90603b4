"""Memory of a process and of all that it started, while it runs."""

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

LOOK_SECONDS = 0.25
PAGE = os.sysconf("SC_PAGE_SIZE")


class Watched:
    """A command that runs, and the peak of the summed resident memory of its processes: pages that several
    share count for each."""

    def __init__(self, command: Sequence[str], **options: object) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def wait(self, timeout_seconds: float) -> str:
        """What it printed. Raises CalledProcessError where it failed."""
        try:
            printed, _ = self.process.communicate(timeout=timeout_seconds)
        finally:
            self.process.kill()
            self._ended.set()
            self._thread.join()
        if self.process.returncode:
            raise subprocess.CalledProcessError(self.process.returncode, self.process.args, printed)
        return str(printed)

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, tree(self.process.pid))))


def tree(root: int) -> set[int]:
    """Ids of a process and its descendants."""
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    found, grows = {root}, True
    while grows:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grows = found | more, bool(more)
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0
