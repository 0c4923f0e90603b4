"""MLflow runs: what a training or the making of a shard set was given, what it measured, how it ended.

Knows how one MLflow run goes on across any number of resumes with each metric step once. Where MLflow is, and
how to reach it, is `infra.mlflow_store`'s matter, some of which is given on here, so that who tracks runs
needs this file alone. Model versions are `infra.registry`'s.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.commit import code_commit
from infra.errors import RegistryError
from infra.mlflow_store import answered_at as answered_at
from infra.mlflow_store import available as available
from infra.mlflow_store import connect, experiment_id, explained
from infra.mlflow_store import is_set_up as is_set_up
from infra.mlflow_store import make_database as make_database
from infra.mlflow_store import prepare as prepare
from infra.mlflow_store import store_name as store_name
from infra.mlflow_store import tracking_uri as tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

RUN_KEY_TAG = "reelgpt.run_key"
RUN_DIR_TAG = "reelgpt.run_dir"
COMMAND_TAG = "reelgpt.command"
SHARD_SET_URI_TAG = "reelgpt.shard_set.uri"
RECIPE_TAG = "reelgpt.recipe"
COMMIT_TAG = "reelgpt.commit"
RESUME_COUNT_TAG = "reelgpt.resume_count"
BRANCHED_FROM_TAG = "reelgpt.branched_from"
FINGERPRINT_TAG = "reelgpt.shard_set.fingerprint"
CONFIG_ARTIFACT = "config.json"

DIGEST_CHARACTERS = 36  # MLflow's cap for the digest of a dataset
METRICS_A_BATCH = 1000  # MLflow's caps for one request
PARAMS_A_BATCH = 100

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSetInput:
    """The data of a run, as MLflow shows it: a dataset with a digest."""

    uri: str
    fingerprint: str

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What MLflow is told of a run before its first step."""

    key: str
    """The run's own name for itself, by which its MLflow run is found where the id was not kept."""
    recipe: str
    run_dir: str
    config: Mapping[str, Any]
    shard_sets: tuple[ShardSetInput, ...]
    resume_count: int | None = 0
    """None: one more than MLflow knows of, for a run that goes on where its directory was lost."""
    branched_from: str | None = None
    """The MLflow run whose first steps this one shares."""


@dataclass(frozen=True, slots=True)
class LoggedStep:
    step: int
    timestamp_ms: int
    metrics: Mapping[str, float]


class Tracker:
    """One MLflow run. Everything may be said again: what the run has is not sent twice."""

    def __init__(self, client: "MlflowClient", run: "Run", resume_count: int) -> None:
        self._client = client
        self.run_id: str = run.info.run_id
        self.resume_count = resume_count
        self._last_steps = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        self._pictures: set[str] | None = None

    @classmethod
    def reach(cls, facts: RunFacts, run_id: str | None = None, *, is_running: bool = True) -> "Tracker":
        """The MLflow run `run_id`, or the one with the run's key, or a new one; in whatever status a kill
        left it. `is_running`: its status says so from here on.

        Params are immutable in MLflow: a resumed run keeps the first values of those it has, and the artifact
        `config.json` holds the newest config whole.
        """
        client = connect()
        run = _find(client, facts, run_id) or _create(client, facts)
        with explained(f"the facts of run {run.info.run_id}"):
            if is_running and run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            _log_params(client, run, flatten(facts.config))
            _log_shard_sets(client, run.info.run_id, facts.shard_sets)
            known = int(run.data.tags.get(RESUME_COUNT_TAG, "0"))
            count = known + 1 if facts.resume_count is None else max(known, facts.resume_count)
            _set_tags(client, run, {COMMIT_TAG: code_commit(), RESUME_COUNT_TAG: str(count)})
        return cls(client, run, count)

    def log_config(self, config: Mapping[str, Any]) -> None:
        with explained(f"the config of run {self.run_id}"):
            self._client.log_dict(self.run_id, dict(config), CONFIG_ARTIFACT)

    def log_steps(self, steps: Iterable[LoggedStep]) -> None:
        """Sends what the run does not have: a metric's step at or before its last one is there already.

        Said again after an answer that was lost, a metric has the same step, time and value, and so is one.
        """
        from mlflow.entities import Metric

        last_steps = dict(self._last_steps)
        fresh: list[Metric] = []
        for logged in steps:
            for key, value in logged.metrics.items():
                if logged.step > last_steps.get(key, -1):
                    fresh.append(Metric(key, float(value), logged.timestamp_ms, logged.step))
                    last_steps[key] = logged.step
        for batch in _batches(fresh, METRICS_A_BATCH):
            with explained(f"the metrics of step {batch[-1].step}"):
                self._client.log_batch(self.run_id, metrics=batch)
            self._last_steps |= {metric.key: metric.step for metric in batch}

    def log_picture(self, name: str, step: int, path: str | Path) -> None:
        """Shows a picture in the run's page, with a slider over the steps; one there already is kept."""
        from PIL import Image

        with explained(f"the picture {name} of step {step}"):
            if self._pictures is None:
                self._pictures = _logged_pictures(self._client, self.run_id)
            if _picture_key(name, step) in self._pictures:
                return
            with Image.open(path) as picture:
                self._client.log_image(self.run_id, picture.convert("RGB"), key=name, step=step)
        self._pictures.add(_picture_key(name, step))

    def finish(self, status: Status) -> None:
        with explained(f"the status of run {self.run_id}"):
            if self._client.get_run(self.run_id).info.status != status:
                self._client.set_terminated(self.run_id, status)


def record_build(
    command: str, *, config: Mapping[str, Any], metrics: Mapping[str, float], made: ShardSetInput
) -> str:
    """A run, whole and finished, of the command that has made or added to a shard set; gives its id."""
    from mlflow.entities import Metric

    client, stamp = connect(), time.time_ns() // 1_000_000
    tags = {
        COMMIT_TAG: code_commit(),
        COMMAND_TAG: command,
        SHARD_SET_URI_TAG: made.uri,
        FINGERPRINT_TAG: made.fingerprint,
    }
    experiment = experiment_id(client)
    with explained(f"a run of {command}"):
        run = client.create_run(experiment, run_name=f"{command} {made.name}", tags=tags)
        _log_params(client, run, flatten(config))
        client.log_dict(run.info.run_id, dict(config), CONFIG_ARTIFACT)
        client.log_batch(run.info.run_id, [Metric(key, float(metrics[key]), stamp, 0) for key in metrics])
        client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow params: `model.num_heads`; a list is one value, as JSON."""
    params: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            params |= flatten(value, f"{prefix}{key}.")
        else:
            params[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return params


def _find(client: "MlflowClient", facts: RunFacts, run_id: str | None) -> "Run | None":
    """Raises RegistryError where the run is known by an id that this MLflow does not have."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return next(iter(_with_key(client, facts.key)), None)
    with explained(f"a question for run {run_id}"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise RegistryError(
                f"MLflow at {store_name()} has no run {run_id}, which {facts.run_dir} is tracked as; "
                f"set MLFLOW_TRACKING_URI to the server or database that has it"
            ) from None
    if run.info.lifecycle_stage == "active":
        return run
    if others := _with_key(client, facts.key):
        return others[0]
    raise RegistryError(
        f"run {run_id} of MLflow at {store_name()}, which {facts.run_dir} is tracked as, was deleted; "
        f"`mlflow runs restore --run-id {run_id}` brings it back"
    )


def _create(client: "MlflowClient", facts: RunFacts) -> "Run":
    """A new run; of two that were made at once for the same key, all keep the same one."""
    from mlflow.exceptions import MlflowException

    tags = {
        COMMIT_TAG: code_commit(),
        RECIPE_TAG: facts.recipe,
        RUN_KEY_TAG: facts.key,
        RUN_DIR_TAG: facts.run_dir,
        RESUME_COUNT_TAG: str(facts.resume_count or 0),
    } | ({BRANCHED_FROM_TAG: facts.branched_from} if facts.branched_from else {})
    experiment = experiment_id(client)
    with explained(f"a run of {facts.recipe}"):
        client.create_run(experiment, run_name=facts.recipe, tags=tags)
    kept, *others = _with_key(client, facts.key)
    for other in others:
        with contextlib.suppress(MlflowException):
            client.delete_run(other.info.run_id)
    return kept


def _with_key(client: "MlflowClient", key: str) -> "list[Run]":
    """The runs with a key, the earliest first: one, unless two were made at once."""
    experiment = experiment_id(client)
    with explained(f"a question for the runs with key {key}"):
        found = client.search_runs([experiment], f"tags.`{RUN_KEY_TAG}` = '{key}'")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _set_tags(client: "MlflowClient", run: "Run", tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            client.set_tag(run.info.run_id, name, value)


def _log_params(client: "MlflowClient", run: "Run", params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    missing = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for batch in _batches(missing, PARAMS_A_BATCH):
        client.log_batch(run.info.run_id, params=batch)


def _log_shard_sets(client: "MlflowClient", run_id: str, shard_sets: Iterable[ShardSetInput]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                name=shard_set.name,
                digest=shard_set.fingerprint[:DIGEST_CHARACTERS],
                source_type=shard_set.uri.partition("://")[0] if "://" in shard_set.uri else "local",
                source=json.dumps({"uri": shard_set.uri}),
            ),
            [InputTag("mlflow.data.context", "training")],
        )
        for shard_set in shard_sets
    ]
    _log_inputs(client, run_id, inputs)
    client.set_tag(run_id, FINGERPRINT_TAG, ",".join(shard_set.fingerprint for shard_set in shard_sets))


def _log_inputs(client: "MlflowClient", run_id: str, inputs: "list[DatasetInput]") -> None:
    """MLflow refuses one of two that name a new dataset at once; asked again, it finds the other's."""
    from mlflow.exceptions import MlflowException

    for _ in inputs:
        with contextlib.suppress(MlflowException):
            client.log_inputs(run_id, inputs)
            return
    client.log_inputs(run_id, inputs)


def _picture_key(name: str, step: int) -> str:
    """How MLflow begins the file name of a picture of `log_image`."""
    return f"{name.replace('/', '~')}+step+{step}"


def _logged_pictures(client: "MlflowClient", run_id: str) -> set[str]:
    names = (file.path.rpartition("/")[2] for file in client.list_artifacts(run_id, "images"))
    return {"+".join(name.split("+")[:3]) for name in names}


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
