"""The MLflow run that a run is shown as, where MLflow is installed; rank 0's matter. Imports no torch.

`metrics.jsonl` and the other files of the run directory come first and hold all that MLflow is told. A thread
tells it while the steps go on; while it does not answer, nobody waits for it.
"""

import sys
from typing import TYPE_CHECKING

from infra import tracking
from infra.errors import ReelgptError, RegistryError
from infra.tracking import Status
from training.config import RunConfig
from training.run_directory import RunDirectory
from training.tracking import tracking_record
from training.tracking.sending import Sending, within
from training.tracking.telling import Telling

if TYPE_CHECKING:
    from training.data import TrainingData
    from training.run import Run

FIRST_ANSWER_SECONDS = 20.0
"""Who asks for the MLflow run's id at the end of a run waits so long for it: a new database takes seconds."""
FAREWELL_SECONDS = 20.0
"""For the last lines and the status, if MLflow is slow. A preempted machine may have half a minute in all."""
SECOND_FAREWELL_SECONDS = 10.0
"""For the command itself, where the workers have just waited in vain and a model is to be registered."""
REPEAT = "repeat the command to tell MLflow how the run ended"


class Tracking:
    """Tells MLflow of every logged step, once."""

    def __init__(self, run: "Run", *, resumed_key: str | None) -> None:
        """After the lines that the run goes on from are in `metrics.jsonl`. `resumed_key`: see
        `tracking_record.begun`."""
        self._run = run
        self._status: Status | None = None
        self._run_id: str | None = None
        self._sending: Sending | None = None
        self._is_mute = False
        record = run.ranks.on_first(lambda: tracking_record.begun(run.directory.path, resumed_key))
        self.key = record.run_key
        if run.ranks.on_first(lambda: _prepared(run.config)) and run.ranks.is_first:
            self._telling = Telling(run.directory, run.config, run.data)
            self._sending = Sending(self._send, on_trouble=self._say)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002
        if self._sending is not None and metrics:
            self._sending.wake()

    @property
    def run_id(self) -> str | None:
        """MLflow's, as soon as it is known; on rank 0."""
        return self._run_id

    def await_run_id(self) -> str | None:
        """The same, after MLflow has had its time for a first answer."""
        if self._sending is not None:
            self._is_mute = not self._sending.wait_for_first_try(FIRST_ANSWER_SECONDS)
        return self._run_id

    def finish(self, status: Status) -> None:
        """How the run ended is not MLflow's to change: where it is away, it is told by the next command."""
        if self._sending is None:
            return
        self._status = status
        self._sending.end(0.0 if self._is_mute else FAREWELL_SECONDS)  # who is mute had its time already

    def _send(self) -> None:
        if self._run.attempt.is_newest():
            self._run_id = self._telling.tell(self._status)

    def _say(self, error: ReelgptError) -> None:
        _warn(f"{error}; metrics wait in {self._run.directory.metrics} and are sent later")


def is_told(config: RunConfig) -> bool:
    return config.track and tracking.available()


def _prepared(config: RunConfig) -> bool:
    if is_told(config):
        tracking.prepare()
    return is_told(config)


def mend(directory: RunDirectory, config: RunConfig, data: "TrainingData", status: Status) -> None:
    """Tells MLflow how a run ended, and all else that it missed, where nobody else could."""
    if not is_unheard(directory, config):
        return
    try:
        tell_or_give_up(Telling(directory, config, data), status)
    except ReelgptError as error:
        _warn(f"{error}; {REPEAT}")


def say_unheard(directory: RunDirectory, config: RunConfig) -> None:
    """Where the workers have just waited for MLflow in vain, to wait again helps nobody."""
    if is_unheard(directory, config):
        _warn(f"MLflow at {tracking.store_name()} has not heard all of the run; {REPEAT}")


def is_unheard(directory: RunDirectory, config: RunConfig) -> bool:
    record = tracking_record.recall(directory.path)
    return record is not None and record.status is None and is_told(config)


def tell_or_give_up(telling: Telling, status: Status, *, seconds: float | None = None) -> str:
    """The id of the MLflow run, once all is told. Raises RegistryError where MLflow gives no answer for so
    long; while it takes one thing after the other, nobody gives up."""
    seconds = FAREWELL_SECONDS if seconds is None else seconds
    tracking.prepare()
    tracking.make_database()
    try:
        return within(seconds, lambda: telling.tell(status), since=tracking.answered_at)
    except TimeoutError:
        raise RegistryError(f"MLflow at {tracking.store_name()} gave no answer in {seconds:g} s") from None


def _warn(message: str) -> None:
    sys.stderr.write(f"{message}\n")
