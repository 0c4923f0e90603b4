"""The MLflow run that a run is shown as, where MLflow is installed; rank 0's matter. Imports no torch.

The files of the run directory hold all that MLflow is told. While it does not answer, training goes on.
"""

import os
import re
import sys
from typing import TYPE_CHECKING

from infra import configs, storage, tracking
from infra.errors import RegistryError, StorageError
from infra.tracking import ShardSetInput, Status, Tracker
from training.run_directory import RunDirectory, read_lines

if TYPE_CHECKING:
    from training.run import Run

SAMPLE = re.compile(r"step-(\d+)\.png")


class Tracking:
    """Tells MLflow of every logged step, once; what it missed is sent at the next evaluation."""

    def __init__(self, run: "Run") -> None:
        """Raises RegistryError, on all ranks, where MLflow is installed and cannot be reached."""
        self._run = run
        self._directory = run.directory
        self._tracker: Tracker | None = None
        self._is_behind = False
        is_on = run.config.track and tracking.available()
        self.run_id = run.ranks.on_first(self._start) if is_on else None

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if self._tracker is None or not metrics:
            return
        if self._is_behind and not self._run.config.is_evaluated(step):
            return
        try:
            self._tell(self._tracker, step, metrics)
        except RegistryError as error:
            self._is_behind = True
            _warn(f"{error}; metrics wait in {self._directory.metrics} and are sent later")

    def log_last(self, step: int, metrics: dict[str, float]) -> None:
        """What was measured once all steps are done, after whatever MLflow has missed."""
        if self._tracker is not None:
            self._catch_up(self._tracker)
            self._tracker.log_metrics(step, metrics)

    def finish(self, status: Status) -> None:
        """How the run ended is not MLflow's to change: where it is away, it is told by the next command."""
        if self._tracker is None:
            return
        try:
            if self._run.attempt.is_newest():
                self._tracker.finish(status)
                _remember(self._directory, self._tracker.run_id, status)
        except (RegistryError, StorageError) as error:
            _warn(f"{error}; repeat the command to tell MLflow how the run ended")

    def _start(self) -> str:
        data, known = self._run.data.shard_set, _recall(self._directory)
        self._tracker = Tracker.start(
            known["run_id"] if known else None,
            recipe=self._run.config.name,
            run_dir=self._directory.path,
            config=configs.to_dict(self._run.config),
            shard_set=ShardSetInput(uri=data.uri, fingerprint=data.manifest.fingerprint),
        )
        _remember(self._directory, self._tracker.run_id, "RUNNING")
        self._catch_up(self._tracker)
        return self._tracker.run_id

    def _tell(self, tracker: Tracker, step: int, metrics: dict[str, float]) -> None:
        if self._is_behind:
            self._catch_up(tracker)
            self._is_behind = False
        tracker.log_metrics(step, metrics)
        picture = self._directory.sample(step)
        if os.path.exists(picture):
            tracker.log_picture("samples", step, picture)

    def _catch_up(self, tracker: Tracker) -> None:
        """Sends all that the files hold and MLflow does not."""
        for line in read_lines(self._directory.metrics):
            rest = {name: value for name, value in line.items() if name not in ("step", "timestamp_ms")}
            tracker.log_metrics(int(line["step"]), rest, int(line["timestamp_ms"]))
        for file in storage.list_files(self._directory.samples):
            if drawn := SAMPLE.fullmatch(file.name):
                tracker.log_picture("samples", int(drawn[1]), file.uri)


def mend_status(directory: RunDirectory) -> None:
    """Tells MLflow that the finished run is finished, where a kill or an outage came in between."""
    known = _recall(directory)
    if known is None or known.get("status") == "FINISHED" or not tracking.available():
        return
    try:
        tracking.mend_status(known["run_id"], "FINISHED")
        _remember(directory, known["run_id"], "FINISHED")
    except RegistryError as error:
        _warn(f"{error}; repeat the command once it answers")


def _recall(directory: RunDirectory) -> dict[str, str] | None:
    known: dict[str, str] | None = None
    if storage.exists(directory.tracking):
        known = storage.read_json(directory.tracking)
    return known


def _remember(directory: RunDirectory, run_id: str, status: str) -> None:
    record = {"run_id": run_id, "tracking_uri": tracking.store_name(), "status": status}
    storage.write_json(directory.tracking, record)


def _warn(message: str) -> None:
    sys.stderr.write(f"{message}\n")
