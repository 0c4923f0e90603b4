"""What MLflow is told of a run: all that its directory holds, each thing once. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from infra import configs, storage, tracking
from infra.errors import StorageError
from infra.tracking import LoggedStep, RunFacts, ShardSetInput, Status, Tracker
from training.config import RunConfig
from training.metrics_lines import Tail
from training.run_directory import RunDirectory, sampled_step
from training.tracking import tracking_record
from training.tracking.tracking_record import TrackingRecord

if TYPE_CHECKING:
    from training.data import TrainingData

PICTURES = "samples"


class Telling:
    """Makes the MLflow run equal to the files of the run directory, as often as it is asked to.

    Its part alone is new: after trouble it asks MLflow what it has, and begins with the first line.
    """

    def __init__(self, directory: RunDirectory, config: RunConfig, data: "TrainingData") -> None:
        self._directory = directory
        self._config = config
        self._sets = tuple(
            ShardSetInput(uri=s.uri, fingerprint=s.manifest.fingerprint) for s in data.shard_sets
        )
        self._place: _Place | None = None

    def tell(self, status: Status | None = None) -> str:
        """Sends what MLflow does not have; gives the id of its run. `status`: how the run has ended.

        Raises RegistryError where it does not take it all; then all is tried again the next time.
        """
        place, self._place = self._place or self._reach(is_running=status is None), None
        place.tracker.log_steps(map(_logged, place.tail.new_lines()))
        if status is not None:
            place.tracker.finish(status)
        if not place.has_config:
            place.tracker.log_config(configs.to_dict(self._config))
        for step, path in self._samples():
            place.tracker.log_picture(PICTURES, step, path)
        if status is not None:
            tracking_record.remember(self._directory.path, replace(self._record(), status=status))
        self._place = replace(place, has_config=True)
        return place.tracker.run_id

    def _reach(self, *, is_running: bool) -> "_Place":
        record = self._record()
        facts = RunFacts(
            key=record.run_key,
            recipe=self._config.name,
            run_dir=self._directory.path,
            config=configs.to_dict(self._config),
            shard_sets=self._sets,
            resume_count=record.resume_count,
            branched_from=record.branched_from,
        )
        tracker = Tracker.reach(facts, record.mlflow_run_id, is_running=is_running)
        record = replace(
            record,
            mlflow_run_id=tracker.run_id,
            tracking_uri=tracking.store_name(),
            resume_count=tracker.resume_count,
        )
        tracking_record.remember(self._directory.path, record)
        return _Place(tracker, Tail(self._directory.metrics))

    def _record(self) -> TrackingRecord:
        record = tracking_record.recall(self._directory.path)
        if record is None:
            raise StorageError(
                f"{self._directory.path} has lost its {tracking_record.NAME}; repeat the command"
            )
        return record

    def _samples(self) -> Iterator[tuple[int, str]]:
        for file in storage.list_files(self._directory.samples):
            if (step := sampled_step(file.name)) is not None:
                yield step, file.uri


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in both the telling is."""

    tracker: Tracker
    tail: Tail
    has_config: bool = False


def _logged(line: dict[str, float]) -> LoggedStep:
    metrics = {name: value for name, value in line.items() if name not in ("step", "timestamp_ms")}
    return LoggedStep(int(line["step"]), int(line["timestamp_ms"]), metrics)
