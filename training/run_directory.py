"""A run is a directory: what is where in it, and whether a command may go on with it. Imports no torch.

config.json     the resolved config, the data and the commit of the newest command, and that command's attempt
metrics.jsonl   a line a logged step; floats are written exactly
checkpoints/    committed states to go on from
hangs/          every worker's stack, where a step hung
samples/        pictures drawn while it trained
bundles/        what it was at evaluations: a model each, ready to be used
model/          the bundle it became
result.json     written last: the run is finished
tracking.json   its own name, and the MLflow run that it is shown as: see `training.tracking_record`

A command that launches holds the lease and begins an attempt. Workers of an attempt can outlive its command
for seconds, so they ask before they write whether theirs is still the newest.
"""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from infra import configs, storage
from infra.commit import code_commit
from infra.errors import ConfigError, StorageError, TrainingError, UsageError
from infra.leases import Lease
from training import checkpoints, manifest, tracking_record
from training.batches_config import skipped_until
from training.config import RunConfig
from training.copies import Copies
from training.data import TrainingData
from training.following import parsed

FREE_SETTINGS = (
    "name",
    "batches.cache_dir",
    "batches.cache_gb",
    "batches.prefetch_steps",
    "batches.reader_threads",
    "log_every_steps",
    "max_failures",
    "min_workers",
    "num_workers",
    "register_as",
    "track",
    "watchdog.factor",
    "watchdog.floor_seconds",
    "watchdog.grace_seconds",
    "checkpoints.background",
    "checkpoints.copy_to",
    "checkpoints.every_steps",
    "checkpoints.keep_every_steps",
    "checkpoints.keep_last",
    "evaluation.every_steps",
    "evaluation.keep_bundles",
    "evaluation.max_clips",
    "evaluation.num_samples",
    "engine.zero_stage",
)
"""May change between two commands of one run: the steps already done do not depend on them. Another number of
workers or ZeRO stage goes on with the same clips, and with losses that differ in their last digits."""

LEFT_BEHIND = ("ray-*", "stop-*")
"""What a command that was killed leaves in the directory."""

SKIPPED = "batches.skip_steps"
"""May change where it names steps to come: what was done so far does not depend on those."""

SAMPLE = re.compile(r"step-(\d+)\.png")

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
        """Of one attempt: see `training.watchdog`."""
        return storage.join(self.path, "hangs", attempt)

    def sample(self, step: int) -> str:
        return storage.join(self.samples, f"step-{step:08d}.png")

    def bundle_of(self, step: int) -> str:
        return storage.join(self.bundles, f"step-{step:08d}")

    def lease(self) -> Lease:
        """One writer a run."""
        return Lease(storage.join(self.path, "lease.json"))

    def check(self, config: RunConfig, data: TrainingData, *, resume: str) -> None:
        """Raises UsageError where this directory is not the run's, or may not be gone on with so.

        Raises TrainingError where a line of its metrics is damaged.
        """
        if not resume.isdigit() and resume not in RESUME:
            raise UsageError(
                f"--resume {resume} means nothing; give {', '.join(RESUME)} or the step of a checkpoint"
            )
        if storage.exists(self.config):
            done = int(resume) if resume.isdigit() else self.newest_step()
            refuse_mismatch(self._identity(), identity(config, data), self.path, step=done)
            self.read_metrics()  # a damaged line is met here, before any worker starts
        elif any(file.name.partition(".")[0] != "lease" for file in storage.list_files(self.path)):
            raise self._foreign()
        has_some = any(manifest.committed(self.checkpoints)) or self._has_copies(config, data)
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
        if resume.isdigit():
            if config.checkpoints.copy_to is not None:
                Copies(self.path, config.checkpoints.copy_to).rewind(int(resume))
            else:
                checkpoints.rewind(self.checkpoints, int(resume))
            storage.delete(self.result)
            self.go_back_to(int(resume))
        record = {
            "attempt": attempt,
            "recipe": config.name,
            "config": configs.to_dict(config),
            "data": data.uris,
            "identity": identity(config, data),
            "commit": code_commit(),
        }
        storage.write_json(self.config, record)
        for pattern in LEFT_BEHIND:
            for path in glob.glob(storage.join(glob.escape(self.path), pattern)):
                storage.delete(path)

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
        """Forgets what the run said and drew of later steps, which will be others."""
        lines = self.read_metrics()
        if not lines or lines[-1]["step"] <= step:
            return
        tracking_record.branch(self.path)
        for file in storage.list_files(self.samples):
            if (drawn := sampled_step(file.name)) is not None and drawn > step:
                storage.delete(file.uri)
        self.write_metrics(line for line in lines if line["step"] <= step)

    def _has_copies(self, config: RunConfig, data: TrainingData) -> bool:
        """Whether a run of this config was copied to where this one would be. Raises ConfigError where it was
        another."""
        if config.checkpoints.copy_to is None:
            return False
        copies, _ = Copies(self.path, config.checkpoints.copy_to).committed()
        for checkpoint in copies[:1]:
            begun, wanted = checkpoint.state["identity"], identity(config, data)
            refuse_mismatch(begun, wanted, config.checkpoints.copy_to, step=checkpoint.step)
        return bool(copies)

    def _identity(self) -> dict[str, Any]:
        """Of the run that is here. Raises UsageError where `config.json` is not ours."""
        try:
            begun = storage.read_json(self.config)["identity"]
        except (StorageError, KeyError, TypeError):
            raise self._foreign() from None
        if not isinstance(begun, dict):
            raise self._foreign()
        return begun

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


def identity(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """What every step done so far depends on, one value a setting."""
    settings = _flat(configs.to_dict(config))
    return data.identity | {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def refuse_mismatch(begun: dict[str, Any], wanted: dict[str, Any], place: str, *, step: int) -> None:
    """Raises ConfigError with both values and the remedy where a run would go on as another after `step`."""
    if strange := sorted(begun.keys() ^ wanted.keys()):
        raise ConfigError(
            f"the run in {place} is of another kind: only one of the two has {', '.join(strange[:3])}; "
            f"go on with the recipe in its config.json, or give another --run-dir"
        )
    names = [name for name in sorted(begun) if begun[name] != wanted[name]]
    if SKIPPED in names and skipped_until(step, begun[SKIPPED]) == skipped_until(step, wanted[SKIPPED]):
        names.remove(SKIPPED)  # they differ in steps to come
    if not names:
        return
    changes = "; ".join(f"{name} is {begun[name]} there and {wanted[name]} here" for name in names)
    options = [_as_option(name, begun[name]) for name in names]
    given, left_out = (
        " ".join(word for word, is_given in options if is_given is which) for which in (True, False)
    )
    remedy = " and ".join(
        part for part in (given and f"with {given}", left_out and f"without {left_out}") if part
    )
    back = ", go back before the steps to skip with --resume STEP" if SKIPPED in names else ""
    raise ConfigError(
        f"the run in {place} is another: {changes}; go on {remedy}{back}, or give another --run-dir"
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


def _as_option(name: str, value: Any) -> tuple[str, bool]:
    """As the command line takes it, and whether to give it or to leave it out: a switch is on unless its
    `no-` is given, and None cannot be given."""
    if name in ("shards", "tokenizer"):
        values = value if isinstance(value, list) else [value]
        return f"the {name} {' '.join(str(each)[:12] for each in values)}", True
    if name == "init_from" and value is not None:
        return f"--init-from the model {str(value)[:12]}", True
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        owner, dot, switch = option.removeprefix("--").rpartition(".")
        return f"--{owner}{dot}no-{switch}", not value
    if value in (None, []):
        return option, False
    return f"{option} {' '.join(map(str, value)) if isinstance(value, list) else value}", True


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
