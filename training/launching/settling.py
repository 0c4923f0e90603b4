"""What a finished run owes: MLflow the rest of its numbers, the registry its model. The command's matter.

Whatever of it cannot be done now is done by repeating the command, which trains nothing again.
"""

from typing import TYPE_CHECKING

from infra import registry, storage
from infra.errors import RegistryError
from training.config import RunConfig
from training.launching.answers import Summary
from training.run_directory import RunDirectory
from training.tracking import tracking_record
from training.tracking.telling import Telling
from training.tracking.tracked_run import (
    SECOND_FAREWELL_SECONDS,
    is_told,
    is_unheard,
    mend,
    say_unheard,
    tell_or_give_up,
)

if TYPE_CHECKING:
    from training.data import TrainingData

ALIAS = "candidate"
"""Of the newest version; making it the champion is for people to say."""


def is_owing(directory: RunDirectory, config: RunConfig, summary: Summary) -> bool:
    record = tracking_record.recall(directory.path)
    if record is None or not is_told(config):
        return False
    return record.status != "FINISHED" or (config.register_as is not None and not summary["model_version"])


def settle(
    directory: RunDirectory,
    config: RunConfig,
    data: "TrainingData",
    summary: Summary,
    *,
    is_fresh: bool = False,
) -> Summary:
    """The finished run's summary, with what it became in MLflow. `is_fresh`: its workers have just told all,
    or waited for MLflow in vain: to wait as long again helps nobody.

    Raises RegistryError where the model could not be registered. What MLflow merely has not heard is said.
    """
    if not is_owing(directory, config, summary):
        return summary
    if config.register_as is None:
        if is_fresh:
            say_unheard(directory, config)
        else:
            mend(directory, config, data, "FINISHED")
        return summary
    was_in_vain = is_fresh and is_unheard(directory, config)
    try:
        run_id = tell_or_give_up(
            Telling(directory, config, data),
            "FINISHED",
            seconds=SECOND_FAREWELL_SECONDS if was_in_vain else None,
        )
        summary = _registered(summary, config.register_as, run_id)
    except RegistryError as error:
        raise RegistryError(
            f"the run is finished and its model in {summary['bundle']}, but not registered as "
            f"{config.register_as}: {error}; repeat the command to register it"
        ) from None
    storage.write_json(directory.result, summary)
    return summary


def _registered(summary: Summary, name: str, run_id: str) -> Summary:
    version = summary["model_version"]
    if version is None:
        measured = {key: float(summary[key]) for key in summary["measured"]}
        number = registry.register(summary["bundle"], name=name, run_id=run_id, alias=ALIAS, metrics=measured)
        version = f"models:/{name}/{number}"
    return summary | {"mlflow_run_id": run_id, "model_version": version}
