"""Before Ray Train ends a group that works, to start a larger one, the group saves its state.

Ray Train grows an elastic run without a word to its workers, who would lose the steps since their last save.
A callback of its controller is told before any group ends. Its base class is one of Ray's inner ones, which
must be there when this file is read: `under_ray` imports it late.
"""

import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from infra import storage

PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.5
LOG = logging.getLogger(__name__)
"""The controller's log files: what it prints, nobody sees."""


class SavedFirst(WorkerGroupCallback):
    """Asks a group that is to end in mid-work for a save, and waits for it."""

    def __init__(self, save_file: str, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """`save_file`: the wish is told by its existence, and the answer by its deletion."""
        self._save_file = save_file
        self._patience_seconds = patience_seconds

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Whatever goes wrong here, the group ends, and goes on from its last save."""
        status = worker_group.get_latest_poll_status()
        if status is None or status.finished or status.errors:
            return
        try:
            self._wait_for_save([worker.actor for worker in worker_group.get_workers()])
        except Exception as error:  # noqa: BLE001 - Ray Train would end the run by it
            LOG.warning("no save before the group ends: %s", error)

    def _wait_for_save(self, workers: list[Any]) -> None:
        storage.write(self._save_file, b"")
        deadline = time.monotonic() + self._patience_seconds
        while storage.exists(self._save_file):
            if time.monotonic() > deadline or not _are_at_work(workers):
                storage.delete(self._save_file)
                LOG.warning("no save before the group ends: its workers do not answer")
                return
            time.sleep(POLL_SECONDS)


def _are_at_work(workers: list[Any]) -> bool:
    """False once one of them is known to have ended; who does not answer at once may be busy."""
    answered, _ = ray.wait(
        [worker.poll_status.remote() for worker in workers], num_returns=len(workers), timeout=POLL_SECONDS
    )
    try:
        return all(status.running for status in ray.get(answered))
    except RayError:
        return False
