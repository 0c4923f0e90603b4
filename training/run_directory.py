"""A run is a directory: what is where in it, and whether a command may go on with it. Imports no torch.

config.json     the resolved config, the data and the commit of the newest command, and that command's
                attempt; and what the run has gone back to: see `training.going_back`
metrics.jsonl   a line a logged step; floats are written exactly
checkpoints/    committed states to go on from
hangs/          every worker's stack, where a step hung
samples/        pictures drawn while it trained
bundles/        what it was at evaluations: a model each, ready to be used
model/          the bundle it became
result.json     written last: the run is finished
tracking.json   its own name, and the MLflow run that it is shown as: see `training.tracking.tracking_record`

A command that launches holds the lease and begins an attempt. Workers of an attempt can outlive its command
for seconds, so they ask before they write whether theirs is still the newest.
"""

import glob
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infra import configs, storage
from infra.commit import code_commit
from infra.errors import StorageError, TrainingError, UsageError
from infra.leases import Lease
from model.bundle import LINEAGE, RECORD
from training.config import RunConfig
from training.configs.batches import skipped_until
from training.data import TrainingData
from training.going_back import GONE_BACK, GoingBack, joined
from training.run_identity import identity, refuse_mismatch
from training.saving import manifest
from training.saving.copies import Copies
from training.tracking import tracking_record
from training.tracking.following import parsed

LEFT_BEHIND = ("ray-*", "stop-*")
"""What a command that was killed leaves in the directory."""

SAMPLE = re.compile(r"step-(\d+)\.png")
BUNDLE = re.compile(r"step-(\d+)")

RESUME = ("auto", "must", "never")


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
        return storage.join(self.path, "model")

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
        copy_to = config.checkpoints.copy_to
        return None if copy_to is None else Copies(self.path, copy_to)

    def check(self, config: RunConfig, data: TrainingData, *, resume: str, speaks: bool = True) -> None:
        """Raises UsageError where this directory is not the run's, or may not be gone on with so.

        Raises TrainingError where a line of its metrics is damaged. Changes nothing, so that every task of a
        launcher of the user's can ask, while the first one begins: that one `speaks` of what is no error.
        """
        are_strange = self._has_files()  # before it is asked for the config, which may come meanwhile
        named = GoingBack.named(resume)
        if named is None and resume not in RESUME:
            raise UsageError(
                f"--resume {resume} means nothing; give {', '.join(RESUME)} or the step of a checkpoint"
            )
        going = self.goes_back(config, resume)
        if named is not None and going is None and speaks:
            sys.stderr.write(
                f"{self.path} has gone back to step {named.step} before, and goes on from where it is; "
                f"to go back there once more, give --resume {named.once_more}\n"
            )
        if storage.exists(self.config):
            done = going.step if going else self.newest_step()
            refuse_mismatch(self._identity(), identity(config, data), self.path, step=done)
            self.read_metrics()  # a damaged line is met here, before any worker starts
        elif are_strange:
            raise self._foreign()
        has_some = any(manifest.committed(self.checkpoints)) or self._has_copies(config, data, going)
        if resume == "never" and has_some:
            raise UsageError(
                f"{self.path} has checkpoints, and --resume never starts a run anew; "
                f"give another --run-dir, or go on with --resume auto"
            )
        if resume == "must" and not has_some:
            raise UsageError(
                f"{self.path} has no checkpoint to resume from; begin the run with --resume auto"
            )

    def begin(self, config: RunConfig, data: TrainingData, *, resume: str, attempt: str) -> None:
        """Makes this directory that of the run, at the step to resume from if one is named.

        From here on, `attempt` is the one that may write.
        """
        behind = self.gone_back()
        if going := self.goes_back(config, resume):
            going.rewind(self.checkpoints, self.copies(config))
            storage.delete(self.result)
            self.go_back_to(going.step)
            behind = joined(behind, [str(going)])  # said last: a kill before it goes back again
        elif self._tells_of_any(config.batches.skip_steps):
            self.go_back_to(self.newest_step())
        record = {
            "attempt": attempt,
            "recipe": config.name,
            "config": configs.to_dict(config),
            "data": data.uris,
            "identity": identity(config, data),
            "commit": code_commit(),
            GONE_BACK: behind,
        }
        storage.write_json(self.config, record)
        for pattern in LEFT_BEHIND:
            for path in glob.glob(storage.join(glob.escape(self.path), pattern)):
                storage.delete(path)

    def goes_back(self, config: RunConfig, resume: str) -> GoingBack | None:
        """What a command with this `--resume` has to go back for; None where the run has that behind it."""
        named = GoingBack.named(resume)
        if named is None or str(named) in self.gone_back():
            return None
        return None if named.is_behind(self.checkpoints, self.copies(config)) else named

    def gone_back(self) -> list[str]:
        """Names of the goings back that commands here have done. Raises UsageError where `config.json` is not
        ours."""
        return list(self._record().get(GONE_BACK, ())) if storage.exists(self.config) else []

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run that has done all its steps."""
        if not storage.exists(self.result):
            return None
        summary: dict[str, Any] = storage.read_json(self.result)
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

    def go_back_to(self, step: int) -> None:
        """Forgets what the run said, drew and became at later steps, which will be others."""
        lines = self.read_metrics()
        if lines and lines[-1]["step"] > step:
            tracking_record.branch(self.path)
        for file in storage.list_files(self.samples):
            if (drawn := sampled_step(file.name)) is not None and drawn > step:
                storage.delete(file.uri)
        for later in (made for made in self.bundle_steps() if made > step):
            self.forget_bundle(self.bundle_of(later))
        if self._model_step() > step:
            self.forget_bundle(self.bundle)
        self.write_metrics(line for line in lines if line["step"] <= step)

    def bundle_steps(self) -> list[int]:
        """Of the bundles of evaluations that there are."""
        names = {file.name.partition("/")[0] for file in storage.list_files(self.bundles)}
        return sorted(int(found[1]) for found in map(BUNDLE.fullmatch, names) if found)

    def forget_bundle(self, uri: str) -> None:
        """Its record goes first: a deletion cut short leaves nothing that passes for a bundle."""
        storage.delete(storage.join(uri, RECORD))
        storage.delete(uri)

    def _tells_of_any(self, skip_steps: Sequence[str]) -> bool:
        """Whether it has said something of a step that is skipped now."""
        told = {int(line["step"]) for line in self.read_metrics()}
        return not told.isdisjoint(skipped_until(max(told, default=0), skip_steps))

    def _model_step(self) -> int:
        """Of the bundle that the run became; 0 where there is none that says so."""
        try:
            return int(storage.read_json(storage.join(self.bundle, LINEAGE))["checkpoint"]["step"])
        except (StorageError, KeyError, TypeError):
            return 0

    def _has_files(self) -> bool:
        return any(file.name.partition(".")[0] != "lease" for file in storage.list_files(self.path))

    def _has_copies(self, config: RunConfig, data: TrainingData, going: GoingBack | None) -> bool:
        """Whether a run of this config was copied to where this one would be. Raises ConfigError where it was
        another."""
        if (place := self.copies(config)) is None:
            return False
        copies, _ = place.committed()
        for checkpoint in copies[:1]:
            begun, wanted = checkpoint.state["identity"], identity(config, data)
            refuse_mismatch(begun, wanted, place.uri, step=going.step if going else checkpoint.step)
        return bool(copies)

    def _identity(self) -> dict[str, Any]:
        """Of the run that is here. Raises UsageError where `config.json` is not ours."""
        begun = self._record().get("identity")
        if not isinstance(begun, dict):
            raise self._foreign()
        return begun

    def _record(self) -> dict[str, Any]:
        """Of the newest command. Raises UsageError where `config.json` is not ours."""
        try:
            record = storage.read_json(self.config)
        except StorageError:
            raise self._foreign() from None
        if not isinstance(record, dict):
            raise self._foreign()
        return record

    def _foreign(self) -> UsageError:
        return UsageError(f"{self.path} holds something that is not a training run; give an empty --run-dir")


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


def sampled_step(file_name: str) -> int | None:
    """Of a picture in `samples/`; None of any other file there."""
    found = SAMPLE.fullmatch(file_name)
    return int(found[1]) if found else None


def read_lines(path: str) -> Iterator[dict[str, float]]:
    """The whole lines of a metrics file; a kill can leave the last one cut off. Raises TrainingError where
    another is damaged."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield parsed(line, path)
