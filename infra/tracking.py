"""The one door to MLflow runs: what a training run was given, what it measured, how it ended.

Knows where the tracking server or database is, and how one MLflow run goes on across any number of resumes
with each metric step once. Model versions are `infra.registry`'s matter. MLflow is imported at the first
call, since that takes a second; where it is not installed, `available()` is False and metrics stay in files.
"""

import contextlib
import fcntl
import functools
import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.commit import code_commit
from infra.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "reelgpt"
RUN_DIR_TAG = "reelgpt.run_dir"
RESUME_COUNT_TAG = "reelgpt.resume_count"
FINGERPRINT_TAG = "reelgpt.shard_set.fingerprint"

DIGEST_CHARACTERS = 36  # MLflow's cap for the digest of a dataset
PARAMS_A_BATCH = 100  # MLflow's cap for one request
FIRST_ANSWER_SECONDS = 5.0

MANNERS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Where the user set nothing else: no chatter, and a server that goes away is noticed within seconds."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


def available() -> bool:
    return importlib.util.find_spec("mlflow") is not None


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a database in the working directory; a path in it is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}"
    return uri if ":" in uri else os.path.abspath(uri)


def store_name() -> str:
    """`tracking_uri()` for messages, where a password has no place."""
    return re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", tracking_uri())


def connect() -> "MlflowClient":
    """A client of `tracking_uri()` whose tables exist. Raises RegistryError with the remedy if it is away."""
    uri = tracking_uri()
    return _connect(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def experiment_id(client: "MlflowClient") -> str:
    """The experiment that holds our runs, made where there is none; artifacts go beside a database."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    with explained(f"the experiment {name!r}"), _alone(_database(client.tracking_uri)):
        found = client.get_experiment_by_name(name)
        return found.experiment_id if found else _create_experiment(client, name)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an answer of MLflow's that is an error into one sentence with the remedy."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = str(error.message).splitlines()[0]
        raise RegistryError(f"MLflow at {store_name()} did not take {what}: {reason}") from error


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


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow params: `model.num_heads`; a list is one value, as JSON."""
    params: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            params |= flatten(value, f"{prefix}{key}.")
        else:
            params[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return params


@functools.cache
def _connect(uri: str, registry_uri: str) -> "MlflowClient":
    _require_answer(uri)
    client_class = _import_client()
    with explained("a connection"), _alone(_database(uri)):
        client = client_class(uri, registry_uri)
        client.search_experiments(max_results=1)  # makes the tables of a new database
        return client


def _import_client() -> type["MlflowClient"]:
    for variable, value in MANNERS.items():
        os.environ.setdefault(variable, value)
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise RegistryError(
            "mlflow is not installed here; `pip install mlflow` gives runs and the registry"
        ) from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient


def _require_answer(uri: str) -> None:
    """Says in seconds that a server is away; MLflow's own retries go on for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=FIRST_ANSWER_SECONDS)
    except requests.RequestException:
        raise RegistryError(
            f"no MLflow server answers at {store_name()}; start it, or set MLFLOW_TRACKING_URI to another"
        ) from None


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """One process at a time makes a database's tables or experiment: MLflow does not guard that itself."""
    if database is None:
        yield
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(database.parent, os.O_RDONLY)
    except OSError as error:
        raise RegistryError(
            f"the MLflow database {database} cannot be made ({error.strerror}); set MLFLOW_TRACKING_URI"
        ) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _create_experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    database = _database(client.tracking_uri)
    try:
        return client.create_experiment(name, str(database.parent / "mlruns") if database else None)
    except MlflowException as error:
        found = client.get_experiment_by_name(name)  # another client of a server was faster
        if found is None:
            raise error
        return found.experiment_id


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
