"""A run is a directory: what is where in it, and who may write there. Imports no torch.

config.json     the resolved config, the data and the commit of the newest command, and that command's
                attempt; and what the run has gone back to
metrics.jsonl   a line a logged step; floats are written exactly
checkpoints/    committed states to go on from
hangs/          every worker's stack, where a step hung
samples/        pictures drawn while it trained
bundles/        what it was at evaluations: a model each, ready to be used
model/          the bundle it became
result.json     written last: the run is finished
tracking.json   its own name, and the MLflow run that it is shown as: see `training.tracking.tracking_record`

A command that launches holds the lease and begins an attempt: see `training.going_on`, and for what a run
forgets `training.forgetting`. Workers of an attempt can outlive its command for seconds, so they ask before
they write whether theirs is still the newest.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

from infra import storage
from infra.errors import NotJsonError, StorageError, TrainingError, UsageError
from infra.leases import Lease
from model.bundle import MODEL_OF_A_RUN, RECORD
from training.config import RunConfig
from training.metrics_lines import read_lines
from training.saving import manifest
from training.saving.copies import Copies

SUMMARY_TEXTS = ("bundle", "fingerprint")
SUMMARY = {"measured", "model_version", "mlflow_run_id"}
SAMPLE = re.compile(r"step-(\d+)\.png")
BUNDLE = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    path: str

    @classmethod
    def at(cls, uri: str) -> "RunDirectory":
        if not storage.is_local(uri):
            raise UsageError(
                f"--run-dir {uri} is not on a file system; give a folder that every worker can reach"
            )
        return cls(storage.absolute(uri))

    @property
    def config(self) -> str:
        return storage.join(self.path, "config.json")

    @property
    def metrics(self) -> str:
        return storage.join(self.path, "metrics.jsonl")

    @property
    def checkpoints(self) -> str:
        return storage.join(self.path, "checkpoints")

    @property
    def samples(self) -> str:
        return storage.join(self.path, "samples")

    @property
    def bundle(self) -> str:
        return storage.join(self.path, MODEL_OF_A_RUN)

    @property
    def bundles(self) -> str:
        return storage.join(self.path, "bundles")

    @property
    def result(self) -> str:
        return storage.join(self.path, "result.json")

    def hangs(self, attempt: str) -> str:
        """Of one attempt: see `training.launching.watchdog`."""
        return storage.join(self.path, "hangs", attempt)

    def sample(self, step: int) -> str:
        return storage.join(self.samples, f"step-{step:08d}.png")

    def bundle_of(self, step: int) -> str:
        return storage.join(self.bundles, f"step-{step:08d}")

    def lease(self) -> Lease:
        """One writer a run."""
        return Lease(storage.join(self.path, "lease.json"))

    def copies(self, config: RunConfig) -> Copies | None:
        """Raises UsageError where they would lie among what they are copies of, or in no folder."""
        copy_to = config.checkpoints.copy_to
        if copy_to and storage.is_local(copy_to):
            place = storage.absolute(copy_to)
            if _lies_in(place, self.path):
                raise UsageError(
                    f"--checkpoints.copy-to {copy_to} lies in the run directory itself; give a second place"
                )
            _require_folder(place)
        return None if copy_to is None else Copies(self.path, copy_to)

    def require_folders(self) -> None:
        """Raises UsageError where something else lies in the place of a folder that the run writes into."""
        for place in self._folders:
            _require_folder(place)

    def require_writable(self) -> None:
        """Raises UsageError where what would be found once there is something to save can be known now."""
        for place in filter(os.path.isdir, self._folders):
            if not os.access(place, os.W_OK | os.X_OK):
                raise UsageError(f"{place} may not be written to; check its permissions and its mount")

    @property
    def _folders(self) -> tuple[str, ...]:
        return self.checkpoints, self.samples, self.bundles, self.bundle

    def record(self) -> dict[str, Any]:
        """Of the newest command. Raises UsageError where `config.json` is not ours, StorageError where it
        cannot be read."""
        try:
            record = storage.read_json(self.config)
        except NotJsonError:
            raise self.foreign() from None
        if not isinstance(record, dict):
            raise self.foreign()
        return record

    def foreign(self) -> UsageError:
        return UsageError(f"{self.path} holds something that is not a training run; give an empty --run-dir")

    def has_files(self) -> bool:
        return any(file.name.partition(".")[0] != "lease" for file in storage.list_files(self.path))

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run that has done all its steps. Raises TrainingError where it was changed."""
        try:
            summary: Any = storage.read_json(self.result)
        except NotJsonError:
            summary = None
        except StorageError:  # asked first whether it is there, it could be gone by now: see `going_on.begin`
            if storage.exists(self.result):
                raise
            return None
        if not _is_summary(summary):
            raise TrainingError(
                f"{self.result} is no result of a run; it was changed after it was written: delete it, and "
                f"repeat the command"
            )
        return summary

    def newest_step(self) -> int:
        """Of the newest checkpoint: where the run goes on, unless that one turns out to be damaged."""
        whole, _ = manifest.committed(self.checkpoints)
        return whole[0].step if whole else 0

    def read_metrics(self) -> list[dict[str, float]]:
        return list(read_lines(self.metrics))

    def write_metrics(self, lines: Iterable[dict[str, Any]]) -> None:
        """All lines anew, in one go."""
        storage.write(self.metrics, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def bundle_steps(self) -> list[int]:
        """Of the bundles of evaluations that there are."""
        names = {file.name.partition("/")[0] for file in storage.list_files(self.bundles)}
        return sorted(int(found[1]) for found in map(BUNDLE.fullmatch, names) if found)

    def forget_bundle(self, uri: str) -> None:
        """Its record goes first: a deletion cut short leaves nothing that passes for a bundle."""
        storage.delete(storage.join(uri, RECORD))
        storage.delete(uri)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One command's turn at a run, as its workers know it."""

    directory: RunDirectory
    id: str

    def is_newest(self) -> bool:
        return bool(storage.read_json(self.directory.config)["attempt"] == self.id)

    def require_newest(self) -> None:
        """Raises TrainingError once another command goes on with the run: what is there is its to write."""
        if not self.is_newest():
            raise TrainingError(
                f"another command goes on with the run in {self.directory.path}; this one ends"
            )


def _lies_in(place: str, folder: str) -> bool:
    """Or is it."""
    place, folder = os.path.realpath(place), os.path.realpath(folder)
    return os.path.commonpath([place, folder]) == folder


def _require_folder(place: str) -> None:
    if os.path.lexists(place) and not os.path.isdir(place):
        raise UsageError(f"{place} is no folder, and has to be one; move it away, or give another place")


def _is_summary(values: Any) -> TypeGuard[dict[str, Any]]:
    """Whether all is there that others ask for."""
    if not isinstance(values, dict) or type(values.get("steps_done")) is not int:
        return False
    return all(isinstance(values.get(name), str) for name in SUMMARY_TEXTS) and values.keys() >= SUMMARY


def sampled_step(file_name: str) -> int | None:
    """Of a picture in `samples/`; None of any other file there."""
    found = SAMPLE.fullmatch(file_name)
    return int(found[1]) if found else None
