"""MLflow runs: what a training or the making of a shard set was given, what it measured, how it ended.

Knows how one MLflow run goes on across any number of resumes with each metric step once. Where MLflow is, and
how to reach it, is `infra.mlflow_store`'s matter, of which `available`, `store_name` and `tracking_uri` are
given on, so that who tracks runs needs this file alone. Model versions are `infra.registry`'s.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.commit import code_commit
from infra.errors import RegistryError
from infra.mlflow_store import available as available
from infra.mlflow_store import connect, experiment_id, explained
from infra.mlflow_store import is_set_up as is_set_up
from infra.mlflow_store import store_name as store_name
from infra.mlflow_store import tracking_uri as tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_DIR_TAG = "reelgpt.run_dir"
COMMAND_TAG = "reelgpt.command"
SHARD_SET_URI_TAG = "reelgpt.shard_set.uri"
RESUME_COUNT_TAG = "reelgpt.resume_count"
FINGERPRINT_TAG = "reelgpt.shard_set.fingerprint"

DIGEST_CHARACTERS = 36  # MLflow's cap for the digest of a dataset
PARAMS_A_BATCH = 100  # MLflow's cap for one request

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSetInput:
    """The data of a run, as MLflow shows it: a dataset with a digest."""

    uri: str
    fingerprint: str

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rpartition("/")[2]


class Tracker:
    """One MLflow run. Its id is the caller's to keep: given back to `start`, the same run goes on."""

    def __init__(self, client: "MlflowClient", run: "Run") -> None:
        self._client = client
        self.run_id: str = run.info.run_id
        self._last_steps = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        self._pictures = _logged_pictures(client, self.run_id)

    @classmethod
    def start(
        cls,
        run_id: str | None,
        *,
        recipe: str,
        run_dir: str,
        config: Mapping[str, Any],
        shard_set: ShardSetInput,
    ) -> "Tracker":
        """A new run, or the run `run_id` once more, whatever status a kill left it in.

        Params are immutable in MLflow: a resumed run keeps the first values of those it has, and the artifact
        `config.json` holds the newest config whole.
        """
        client = connect()
        if run_id is None:
            run = _create_run(client, recipe=recipe, run_dir=run_dir)
        else:
            run = _reopen(client, run_id, run_dir)
        with explained(f"the config of run {run.info.run_id}"):
            _log_params(client, run, flatten(config))
            client.log_dict(run.info.run_id, dict(config), "config.json")
            _log_shard_set(client, run.info.run_id, shard_set)
        return cls(client, run)

    def log_metrics(self, step: int, metrics: Mapping[str, float], timestamp_ms: int | None = None) -> None:
        """Sends what the run does not have: a metric's step at or before its last one is there already."""
        from mlflow.entities import Metric

        fresh = {key: value for key, value in metrics.items() if step > self._last_steps.get(key, -1)}
        if not fresh:
            return
        stamp = timestamp_ms if timestamp_ms is not None else _now_ms()
        with explained(f"the metrics of step {step}"):
            batch = [Metric(key, float(value), stamp, step) for key, value in fresh.items()]
            self._client.log_batch(self.run_id, metrics=batch)
        self._last_steps |= dict.fromkeys(fresh, step)

    def log_picture(self, name: str, step: int, path: str | Path) -> None:
        """Shows a picture in the run's page, with a slider over the steps; one there already is kept."""
        from PIL import Image

        if _picture_key(name, step) in self._pictures:
            return
        with Image.open(path) as picture, explained(f"the picture {name} of step {step}"):
            self._client.log_image(self.run_id, picture.convert("RGB"), key=name, step=step)
        self._pictures.add(_picture_key(name, step))

    def finish(self, status: Status) -> None:
        with explained(f"the status of run {self.run_id}"):
            self._client.set_terminated(self.run_id, status)


def mend_status(run_id: str, status: Status) -> None:
    """Sets the status of a run that ended before it could say so; does nothing where it is right already."""
    client = connect()
    with explained(f"the status of run {run_id}"):
        if client.get_run(run_id).info.status != status:
            client.set_terminated(run_id, status)


def record_build(
    command: str, *, config: Mapping[str, Any], metrics: Mapping[str, float], made: ShardSetInput
) -> str:
    """A run, whole and finished, of the command that has made or added to a shard set; gives its id."""
    from mlflow.entities import Metric

    client, stamp = connect(), _now_ms()
    tags = {
        "reelgpt.commit": code_commit(),
        COMMAND_TAG: command,
        SHARD_SET_URI_TAG: made.uri,
        FINGERPRINT_TAG: made.fingerprint,
    }
    experiment = experiment_id(client)
    with explained(f"a run of {command}"):
        run = client.create_run(experiment, run_name=f"{command} {made.name}", tags=tags)
        _log_params(client, run, flatten(config))
        client.log_dict(run.info.run_id, dict(config), "config.json")
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


def _create_run(client: "MlflowClient", *, recipe: str, run_dir: str) -> "Run":
    tags = {
        "reelgpt.commit": code_commit(),
        "reelgpt.recipe": recipe,
        RUN_DIR_TAG: run_dir,
        RESUME_COUNT_TAG: "0",
    }
    experiment = experiment_id(client)
    with explained(f"a run of {recipe}"):
        return client.create_run(experiment, run_name=recipe, tags=tags)


def _reopen(client: "MlflowClient", run_id: str, run_dir: str) -> "Run":
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise RegistryError(
            f"MLflow at {store_name()} has no run {run_id}, which {run_dir} is tracked as; "
            f"set MLFLOW_TRACKING_URI to the server or database that has it"
        ) from None
    with explained(f"the resumed run {run_id}"):
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, RESUME_COUNT_TAG, str(int(run.data.tags.get(RESUME_COUNT_TAG, "0")) + 1))
        client.set_tag(run_id, "reelgpt.commit", code_commit())
    return run


def _log_params(client: "MlflowClient", run: "Run", params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    missing = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for batch in _batches(missing, PARAMS_A_BATCH):
        client.log_batch(run.info.run_id, params=batch)


def _log_shard_set(client: "MlflowClient", run_id: str, shard_set: ShardSetInput) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme = shard_set.uri.partition("://")[0] if "://" in shard_set.uri else "local"
    dataset = Dataset(
        name=shard_set.name,
        digest=shard_set.fingerprint[:DIGEST_CHARACTERS],
        source_type=scheme,
        source=json.dumps({"uri": shard_set.uri}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    client.set_tag(run_id, FINGERPRINT_TAG, shard_set.fingerprint)


def _picture_key(name: str, step: int) -> str:
    """How MLflow begins the file name of a picture of `log_image`."""
    return f"{name.replace('/', '~')}+step+{step}"


def _logged_pictures(client: "MlflowClient", run_id: str) -> set[str]:
    names = (file.path.rpartition("/")[2] for file in client.list_artifacts(run_id, "images"))
    return {"+".join(name.split("+")[:3]) for name in names}


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
