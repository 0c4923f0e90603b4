"""tracking.json: the name that a run has for itself, the MLflow run that it is shown as, and what that knows.

It is there before anything is asked of MLflow, so that a run that was killed in between finds its MLflow run
again by its key. Imports nothing heavy.
"""

import json
import uuid
from dataclasses import dataclass, field, replace

from infra import configs, storage
from infra.errors import ConfigError, TrainingError
from infra.tracking import Status

NAME = "tracking.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingRecord:
    run_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    mlflow_run_id: str | None = None
    """None: MLflow has not answered yet, or is not told of this run."""
    tracking_uri: str | None = None
    """Where that run is, without a password."""
    status: Status | None = None
    """The last that MLflow was told, after everything else; None: it may not know all that the files hold."""
    resume_count: int | None = 0
    """None: what MLflow knows, and one more. A run that goes on from a copy has lost its own count."""
    branched_from: str | None = None
    """MLflow's id of the run that this one was, before it went back to a step and on from there."""


def recall(run_dir: str) -> TrackingRecord | None:
    """None where there is none. Raises TrainingError where it was changed since it was written."""
    place = storage.join(run_dir, NAME)
    if not storage.exists(place):
        return None
    content = storage.read_bytes(place)
    try:
        return configs.from_dict(TrackingRecord, json.loads(content))
    except (ValueError, TypeError, ConfigError) as error:
        raise TrainingError(
            f"{place} is no record of ours ({error}); delete it, and repeat the command: the run goes on, "
            f"and finds its MLflow run by the key in its checkpoints"
        ) from None


def remember(run_dir: str, record: TrackingRecord) -> None:
    storage.write_json(storage.join(run_dir, NAME), configs.to_dict(record))


def begun(run_dir: str, resumed_key: str | None) -> TrackingRecord:
    """The record of a run whose workers begin. `resumed_key`: of the checkpoint that it goes on from."""
    known = recall(run_dir)
    if known is not None:
        count = None if known.resume_count is None else known.resume_count + 1
        record = replace(known, status=None, resume_count=count)
    elif resumed_key is not None:
        record = TrackingRecord(run_key=resumed_key, resume_count=None)
    else:
        record = TrackingRecord()
    remember(run_dir, record)
    return record


def branch(run_dir: str) -> None:
    """Another run from here on: MLflow forgets no step, and those after this one will be others."""
    known = recall(run_dir)
    if known is not None:
        remember(run_dir, TrackingRecord(branched_from=known.mlflow_run_id or known.branched_from))
