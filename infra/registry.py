"""The one door to MLflow model versions: which models there are, and where each came from.

A version's files are a bundle, kept by MLflow as a logged model of the run that made it; its lineage, kind
and fingerprint are tags. The registry holds metadata alone: it reads the records of a bundle (`bundle.json`,
`lineage.json`), never weights, and knows nothing of shards. Runs are `infra.tracking`'s matter.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import storage
from infra.errors import RegistryError, UsageError
from infra.model_version import LATEST, ModelVersion, fields_of, parse_ref
from infra.registry_query import parse_query
from infra.tracking import connect, experiment_id, explained, store_name, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

KIND_TAG = "reelgpt.kind"
FINGERPRINT_TAG = "reelgpt.fingerprint"
TASKS_TAG = "reelgpt.tasks"
LINEAGE_TAG = "reelgpt.lineage"

NAME = re.compile(r"[A-Za-z0-9._-]+")
IDS_A_QUERY = 100
VERSIONS_A_PAGE = 1000


def register(
    bundle_uri: str,
    *,
    name: str,
    run_id: str | None = None,
    alias: str | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> int:
    """Makes the bundle at `bundle_uri` a version of the model `name` and returns its number.

    The same bundle of the same run is registered once: a repeated call returns the same version. The alias is
    set with a new version, and on a repeated call only where nothing has it, so that it undoes no promotion.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a model; letters, digits and . _ - can")
    if alias is not None:
        _require_alias(alias)
    client = connect()
    bundle = _read_records(bundle_uri)
    with explained(f"a version of {name}"):
        version = _find_registered(client, name, run_id, bundle[FINGERPRINT_TAG])
        is_new = version is None
        if version is None:
            model = _log_bundle(client, bundle_uri, name, run_id, bundle)
            _log_model_metrics(client, model, run_id, metrics or {})
            version = _create_version(client, model, name, run_id, {**bundle, **(tags or {})})
        if alias and (is_new or alias not in client.get_registered_model(name).aliases):
            client.set_registered_model_alias(name, alias, str(version))
    return version


def list_versions(name: str | None = None) -> list[ModelVersion]:
    """All versions, newest first, or those of one model; joined with aliases, metrics and runs."""
    client = connect()
    with explained("a listing of the model versions"):
        aliases = _aliases(client)
        if name is not None and name not in aliases:
            raise _no_such_model(name, aliases)
        found = [version for version in _all_versions(client) if name in (None, version.name)]
        runs = _runs(client, {version.run_id for version in found if version.run_id})
        metrics = _logged_metrics(client, runs.values())
    versions = [_join(version, aliases, metrics, runs) for version in found]
    return sorted(versions, key=lambda version: (version.created, version.version), reverse=True)


def search(query: str) -> list[ModelVersion]:
    """The versions that `query` (see `infra.registry_query`) holds for, newest first."""
    condition = parse_query(query)
    versions = list_versions()
    fields = [fields_of(version) for version in versions]
    known = set().union(*fields) if fields else set()
    for name in condition.names():
        if versions and name not in known:
            raise UsageError(f"no model version has {name!r}; there are {', '.join(sorted(known))}")
    return [version for version, values in zip(versions, fields, strict=True) if condition.matches(values)]


def show(ref: str) -> ModelVersion:
    """The version that `models:/NAME/VERSION` or `models:/NAME@ALIAS` names.

    The newest is `models:/NAME@latest` or `models:/NAME`; `models:/` may be left out. Raises RegistryError
    that says which there are.
    """
    name, number, alias = parse_ref(ref)
    versions = list_versions(name)
    if number is not None:
        chosen = [version for version in versions if version.version == number]
    elif alias not in (None, LATEST):
        chosen = [version for version in versions if alias in version.aliases]
    else:
        chosen = versions
    if not chosen:
        raise _no_such_version(ref, versions)
    return max(chosen, key=lambda version: version.version)


def promote(ref: str, alias: str) -> ModelVersion:
    """Points `alias` at a version, taking it from the one that had it; the last of two promotions wins."""
    _require_alias(alias)
    version = show(ref)
    with explained(f"the alias {alias!r}"):
        connect().set_registered_model_alias(version.name, alias, str(version.version))
    return show(version.ref)


def resolve(ref: str) -> str:
    """The bundle folder of a version on this machine: where MLflow keeps it, or fetched into a cache."""
    version = show(ref)
    client = connect()
    with explained(f"the files of {version.ref}"):
        place = client.get_model_version_download_uri(version.name, str(version.version))
    local = place.removeprefix("file://")
    if "://" not in local and ":/" not in local:
        if not os.path.isdir(local):
            raise RegistryError(
                f"{version.ref} lies at {local}, which this machine does not have; mount it here, "
                f"or start the MLflow server with --serve-artifacts"
            )
        return local
    return _fetch(place, version)


def _require_alias(alias: str) -> None:
    if alias.lower() == LATEST or not NAME.fullmatch(alias):
        raise UsageError(
            f"{alias!r} cannot be an alias; letters, digits and . _ - can; {LATEST!r} is always the newest"
        )


def _read_records(bundle_uri: str) -> dict[str, str]:
    """What a bundle says of itself, as tags."""
    record = storage.join(bundle_uri, "bundle.json")
    if not storage.exists(record):
        raise RegistryError(f"{bundle_uri} is no bundle: it has no bundle.json; give a run's model/ folder")
    bundle = storage.read_json(record)
    lineage = storage.read_json(storage.join(bundle_uri, "lineage.json"))
    try:
        return {
            KIND_TAG: bundle["kind"],
            FINGERPRINT_TAG: bundle["fingerprint"],
            TASKS_TAG: ",".join(bundle.get("tasks") or ()),
            LINEAGE_TAG: json.dumps(lineage),
        }
    except (KeyError, TypeError) as error:
        raise RegistryError(f"{record} lacks {error}; save the bundle again") from None


def _find_registered(client: "MlflowClient", name: str, run_id: str | None, fingerprint: str) -> int | None:
    same = client.search_model_versions(f"name = '{name}' and tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    return next((int(version.version) for version in same if version.run_id == run_id), None)


def _log_bundle(
    client: "MlflowClient", bundle_uri: str, name: str, run_id: str | None, bundle: Mapping[str, str]
) -> "LoggedModel":
    """Keeps the bundle as a logged model, an output of its run; no pickle is written."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id) if run_id else None
    model = client.create_logged_model(
        run.info.experiment_id if run else experiment_id(client),
        name=name,
        source_run_id=run_id,
        tags={key: value for key, value in bundle.items() if key != LINEAGE_TAG},
        model_type=bundle[KIND_TAG],
    )
    with _as_local_folder(bundle_uri) as folder:
        client.log_model_artifacts(model.model_id, folder)
    if run:
        last_step = max((int(metric.step) for metric in run.data.to_proto().metrics), default=0)
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, last_step)])
    return client.finalize_logged_model(model.model_id, "READY")


def _log_model_metrics(
    client: "MlflowClient", model: "LoggedModel", run_id: str | None, metrics: Mapping[str, float]
) -> None:
    """Metrics of the model itself; one that its run measured too keeps step and time, and so stays one."""
    from mlflow.entities import Metric

    if not metrics:
        return
    if run_id is None:
        raise UsageError("metrics belong to a run; give its run_id, or register without metrics")
    measured = {metric.key: metric for metric in client.get_run(run_id).data.to_proto().metrics}
    last_step = max((metric.step for metric in measured.values()), default=0)
    batch = []
    for key, value in metrics.items():
        same = measured[key] if key in measured and measured[key].value == value else None
        stamp, step = (same.timestamp, same.step) if same else (time.time_ns() // 1_000_000, last_step)
        batch.append(Metric(key, float(value), stamp, step, model_id=model.model_id))
    client.log_batch(run_id, metrics=batch)


def _create_version(
    client: "MlflowClient", model: "LoggedModel", name: str, run_id: str | None, tags: dict[str, str]
) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name, source=model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id
    )
    return int(version.version)


def _aliases(client: "MlflowClient") -> dict[str, dict[str, int]]:
    """Of each model, alias to version: a search of the versions themselves never gives them."""
    models = _pages(lambda token: client.search_registered_models(page_token=token))
    return {model.name: {alias: int(number) for alias, number in model.aliases.items()} for model in models}


def _all_versions(client: "MlflowClient") -> list["MlflowVersion"]:
    return _pages(lambda token: client.search_model_versions(max_results=VERSIONS_A_PAGE, page_token=token))


def _runs(client: "MlflowClient", run_ids: Iterable[str]) -> dict[str, "Run"]:
    """The runs that still exist, by id. MLflow searches within experiments, so those are asked for first."""
    wanted = sorted(run_ids)
    experiments = [
        found.experiment_id for found in _pages(lambda token: client.search_experiments(page_token=token))
    ]
    runs: dict[str, Run] = {}
    for start in range(0, len(wanted), IDS_A_QUERY):
        among = ", ".join(f"'{run_id}'" for run_id in wanted[start : start + IDS_A_QUERY])
        found = client.search_runs(experiments, f"attributes.run_id IN ({among})", max_results=IDS_A_QUERY)
        runs |= {run.info.run_id: run for run in found}
    return runs


def _logged_metrics(client: "MlflowClient", runs: Iterable["Run"]) -> dict[str, dict[str, float]]:
    """Of each logged model of the runs' experiments, by its URI, the last value of each metric."""
    experiments = sorted({run.info.experiment_id for run in runs})
    if not experiments:
        return {}
    models = _pages(lambda token: client.search_logged_models(experiments, page_token=token))
    return {
        model.model_uri: {
            metric.key: metric.value for metric in sorted(model.metrics or [], key=lambda metric: metric.step)
        }
        for model in models
    }


def _pages(ask: Callable[[str | None], Any]) -> list[Any]:
    """All pages of one of MLflow's searches."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = ask(token)
        found += page
        token = page.token
        if not token:
            return found


def _join(
    version: "MlflowVersion",
    aliases: Mapping[str, Mapping[str, int]],
    metrics: Mapping[str, Mapping[str, float]],
    runs: Mapping[str, "Run"],
) -> ModelVersion:
    run = runs.get(version.run_id or "")
    tags = dict(version.tags)
    tasks = tags.pop(TASKS_TAG, "")
    lineage = json.loads(tags.pop(LINEAGE_TAG, "{}"))
    number = int(version.version)
    return ModelVersion(
        name=version.name,
        version=number,
        aliases=tuple(sorted(alias for alias, at in aliases.get(version.name, {}).items() if at == number)),
        run_id=version.run_id or None,
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(
            timespec="milliseconds"
        ),
        kind=tags.pop(KIND_TAG, None),
        fingerprint=tags.pop(FINGERPRINT_TAG, None),
        tasks=tuple(tasks.split(",")) if tasks else (),
        tags=tags,
        params=dict(run.data.params) if run else {},
        metrics={**(run.data.metrics if run else {}), **metrics.get(str(version.source), {})},
        lineage=lineage,
        source=str(version.source),
    )


def _no_such_model(name: str, known: Iterable[str]) -> RegistryError:
    names = ", ".join(sorted(known)) or "none yet; `reelgpt train` and `reelgpt models register` make them"
    return RegistryError(f"MLflow at {store_name()} has no model {name!r}; its models: {names}")


def _no_such_version(ref: str, versions: Sequence[ModelVersion]) -> RegistryError:
    if not versions:
        return RegistryError(f"{ref}: the model has no versions; `reelgpt models register` makes one")
    numbers = ", ".join(str(version.version) for version in reversed(versions))
    aliases = ", ".join(sorted(alias for version in versions for alias in version.aliases)) or "none"
    name = versions[0].name
    return RegistryError(f"there is no {ref}; {name} has the versions {numbers} and the aliases {aliases}")


def _fetch(place: str, version: ModelVersion) -> str:
    """A copy of a version's files in the cache, complete or absent; one fetched before is used again."""
    from mlflow.artifacts import download_artifacts

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reelgpt" / "models"
    kept = cache / (version.fingerprint or re.sub(r"\W", "-", version.source))
    if kept.is_dir():
        return str(kept)
    arriving = cache / f"{kept.name}.{uuid.uuid4().hex}.tmp"
    arriving.mkdir(parents=True)
    try:
        folder = download_artifacts(artifact_uri=place, dst_path=str(arriving), tracking_uri=tracking_uri())
        with contextlib.suppress(OSError):  # another process was faster
            Path(folder).rename(kept)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return str(kept)


@contextlib.contextmanager
def _as_local_folder(uri: str) -> Iterator[str]:
    if storage.is_local(uri):
        yield storage.absolute(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in storage.list_files(uri):
            storage.fetch(file.uri, os.path.join(folder, file.name))
        yield folder
