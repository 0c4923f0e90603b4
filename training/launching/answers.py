"""What workers bring back to the command that launched them, and what they must know of it."""

import os
from collections.abc import Callable
from typing import Any

from infra import commit, tracking
from infra.errors import ReelgptError, StorageError, TrainingError
from training.launching.job import Job
from training.launching.watchdog import verdict_in
from training.refusals import error_of, word_of
from training.run_directory import RunDirectory

Summary = dict[str, Any]

PASSED_ON = ("MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME")


def answer_of(work: Callable[[Job], Summary], job: Job) -> dict[str, Any]:
    """What a worker brings back: a summary, or what all refused alike. What one alone meets kills it."""
    try:
        return {"summary": work(job)}
    except StorageError:
        raise
    except ReelgptError as error:
        return word_of(error)


def summary_of(answer: dict[str, Any]) -> Summary:
    if "refusal" in answer:
        raise error_of(answer)
    summary: Summary = answer["summary"]
    return summary


def surroundings() -> dict[str, str]:
    """What workers elsewhere must know of this process: where things are, never how to get in."""
    told = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return told | {
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
        commit.COMMIT_VARIABLE: commit.code_commit(),
    }


def require_no_hang(job: Job) -> None:
    """Raises TrainingError where this attempt's watchdog has ended it: no launcher may begin it again."""
    if message := verdict_in(RunDirectory(job.run_dir).hangs(job.attempt)):
        raise TrainingError(message)
