"""A run is a directory: what is where in it, and whether a command may go on with it. Imports no torch.

config.json     what the run is: its resolved config, its data, the commit that began it
metrics.jsonl   a line a logged step; floats are written exactly
checkpoints/    committed states to go on from
samples/        pictures drawn while it trained
model/          the bundle it became
result.json     written last: the run is finished
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra import configs, storage
from infra.commit import code_commit
from infra.errors import ConfigError, UsageError
from infra.leases import Lease
from training import checkpoints
from training.config import RunConfig
from training.data import TrainingData

FREE_SETTINGS = (
    "name",
    "steps",
    "log_every_steps",
    "max_failures",
    "register_as",
    "track",
    "checkpoints.every_steps",
    "checkpoints.keep_last",
    "evaluation.every_steps",
    "evaluation.max_clips",
    "evaluation.num_samples",
)
"""May change between two commands of one run: the steps already done do not depend on them."""


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
    def result(self) -> str:
        return storage.join(self.path, "result.json")

    @property
    def tracking(self) -> str:
        return storage.join(self.path, "tracking.json")

    def lease(self) -> Lease:
        """One writer a run."""
        return Lease(storage.join(self.path, "lease.json"))

    def check(self, config: RunConfig, data: TrainingData, *, resume: str) -> None:
        """Raises UsageError where this directory is not the run's, or may not be gone on with so."""
        if not resume.isdigit() and resume not in RESUME:
            raise UsageError(
                f"--resume {resume} means nothing; give {', '.join(RESUME)} or the step of a checkpoint"
            )
        if storage.exists(self.config):
            refuse_mismatch(storage.read_json(self.config)["identity"], identity(config, data), self.path)
        elif any(file.name.partition(".")[0] != "lease" for file in storage.list_files(self.path)):
            raise UsageError(
                f"{self.path} holds something that is not a training run; give an empty --run-dir"
            )
        has_some = any(checkpoints.committed(self.checkpoints))
        if resume == "never" and has_some:
            raise UsageError(
                f"{self.path} has checkpoints, and --resume never starts a run anew; "
                f"give another --run-dir, or go on with --resume auto"
            )
        if resume == "must" and not has_some:
            raise UsageError(
                f"{self.path} has no checkpoint to resume from; begin the run with --resume auto"
            )

    def begin(self, config: RunConfig, data: TrainingData, *, resume: str) -> None:
        """Makes this directory that of the run, at the step to resume from if one is named."""
        if resume.isdigit():
            checkpoints.rewind(self.checkpoints, int(resume))
            storage.delete(self.result)
        record = {
            "recipe": config.name,
            "config": configs.to_dict(config),
            "data": data.shard_set.uri,
            "identity": identity(config, data),
            "commit": code_commit(),
        }
        storage.write_json(self.config, record)

    def finished(self, steps: int) -> dict[str, Any] | None:
        """The summary of a run that has done `steps`."""
        if not storage.exists(self.result):
            return None
        summary: dict[str, Any] = storage.read_json(self.result)
        return summary if summary["steps_done"] >= steps else None

    def read_metrics(self) -> list[dict[str, float]]:
        return list(read_lines(self.metrics))


def identity(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """What every step done so far depends on, one value a setting."""
    settings = _flat(configs.to_dict(config))
    return data.identity | {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def refuse_mismatch(begun: dict[str, Any], wanted: dict[str, Any], place: str) -> None:
    """Raises ConfigError with both values and the remedy where a run would go on as another."""
    names = [name for name in sorted(begun | wanted) if begun.get(name) != wanted.get(name)]
    if not names:
        return
    changes = "; ".join(f"{name} is {begun.get(name)} there and {wanted.get(name)} here" for name in names)
    remedy = " ".join(_as_option(name, begun.get(name)) for name in names)
    raise ConfigError(
        f"the run in {place} is another: {changes}; go on with {remedy}, or give another --run-dir"
    )


def read_lines(path: str) -> Iterator[dict[str, float]]:
    """The whole lines of a metrics file; a kill can leave the last one cut off."""
    if not os.path.exists(path):
        return
    with open(path) as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _as_option(name: str, value: Any) -> str:
    if name in ("shards", "tokenizer"):
        return f"the {name} {str(value)[:12]}"
    return f"--{name.replace('_', '-')} {value}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
