"""A run without its training: what commands and workers leave in a run directory, in files of a few bytes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from infra import storage
from tests.training.tiny_checkpoints import commit
from training import going_on
from training.config import RunConfig
from training.data import TrainingData
from training.going_back import GONE_BACK, gone_back
from training.recipes import get_recipe
from training.run_directory import RunDirectory
from training.run_identity import identity
from training.saving.copies import Copies


def summary(steps_done: int) -> dict[str, Any]:
    """Of a finished run, as far as others ask for it."""
    return {
        "steps_done": steps_done,
        "bundle": "",
        "fingerprint": "",
        "measured": [],
        "model_version": None,
        "mlflow_run_id": None,
    }


class TinyRun:
    """A run directory whose steps are files of a few bytes, with a second place for them."""

    def __init__(
        self, folder: Path, data: TrainingData, *, skip: tuple[str, ...] = (), **schedule: Any
    ) -> None:
        """`schedule`: `steps`, and settings of the optimizer."""
        config = get_recipe("tokenizer_tiny")
        self.data = data
        self.directory = RunDirectory.at(str(folder / "run"))
        self.config: RunConfig = replace(
            config,
            steps=schedule.pop("steps", config.steps),
            optimizer=replace(config.optimizer, **schedule),
            checkpoints=replace(config.checkpoints, copy_to=str(folder / "copy")),
            batches=replace(config.batches, skip_steps=skip),
        )

    def command(self, resume: str) -> None:
        going_on.check(self.directory, self.config, self.data, resume=resume)
        going_on.begin(self.directory, self.config, self.data, resume=resume, attempt="one")

    def reach(self, *steps: int) -> None:
        """As the workers leave it: a checkpoint and a copy of each, and a line."""
        for step in steps:
            state = {
                "step": step,
                "identity": identity(self.config, self.data),
                GONE_BACK: gone_back(self.directory),
            }
            commit(Path(self.directory.checkpoints), step, state=state)
            storage.append(self.directory.metrics, f'{{"step": {step}}}\n'.encode())
        self.copies.upload_missing()

    @property
    def copies(self) -> Copies:
        copies = self.directory.copies(self.config)
        assert copies is not None
        return copies

    def told(self) -> list[float]:
        return [line["step"] for line in self.directory.read_metrics()]
