"""What everybody who takes part in a run is given. Changes nothing after it is made."""

from dataclasses import dataclass

from training.config import RunConfig
from training.data import TrainingData
from training.objectives import Objective
from training.ranks import Ranks
from training.run_directory import Attempt, RunDirectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    config: RunConfig
    data: TrainingData
    objective: Objective
    ranks: Ranks
    attempt: Attempt

    @property
    def directory(self) -> RunDirectory:
        return self.attempt.directory
