"""Before Ray Train ends a group that works, to start a larger one, the group saves its state.

Ray Train grows an elastic run without a word to its workers, who would lose the steps since their last save.
Who listens to its controller hears of it as of any end of a group.
"""

import sys
import time
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from infra import storage

PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.2


class SavedFirst(WorkerGroupCallback):
    """Asks a group that is to end in mid-work for a save, and waits for it."""

    def __init__(self, save_file: str) -> None:
        """`save_file`: the wish is told by its existence, and the answer by its deletion."""
        self._save_file = save_file

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        status = worker_group.get_latest_poll_status()
        if status is None or status.finished or status.errors:
            return  # there is nobody who could save, or nothing to be saved
        storage.write(self._save_file, b"")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while storage.exists(self._save_file):
            if time.monotonic() > deadline:
                sys.stderr.write(f"no answer in {PATIENCE_SECONDS:g} s: the group grows from its last save\n")
                break
            time.sleep(POLL_SECONDS)
