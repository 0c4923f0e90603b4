"""Bundles into the registry and out of it: register, promote, resolve.

A version's files are a bundle, kept by MLflow as a logged model of the run that made it; its lineage, kind
and fingerprint are tags. The registry knows nothing of weights or shards. Which versions there are is
`infra.registry_listing`'s matter, runs are `infra.tracking`'s.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infra import storage, version_tags
from infra.errors import RegistryError, UsageError
from infra.mlflow_store import connect, experiment_id, explained, tracking_uri
from infra.model_version import LATEST, ModelVersion, is_ref
from infra.registry_listing import show

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

NAME = re.compile(r"[A-Za-z0-9._-]+")


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

    The same bundle of the same run is registered once: a repeated call returns the same version, and finishes
    what a kill left undone. The alias goes to the version while it is the model's newest; later on only where
    nothing has it, so that a repeated call undoes no promotion of a newer one.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a model; letters, digits and . _ - can")
    if alias is not None:
        _require_alias(alias)
    if metrics and run_id is None:
        raise UsageError("metrics belong to a run; give its run_id, or register without metrics")
    bundle = version_tags.read_tags(bundle_uri)
    client = connect()
    with explained(f"a version of {name}"):
        version = _find_registered(client, name, run_id, bundle[version_tags.FINGERPRINT])
        if version is None:
            model = _log_bundle(client, bundle_uri, name, run_id, bundle)
            if run_id is not None:
                _log_model_metrics(client, model, run_id, metrics or {})
            version = _create_version(client, model, name, run_id, {**bundle, **(tags or {})})
        if alias and (_is_newest(client, name, version) or not _has_alias(client, name, alias)):
            client.set_registered_model_alias(name, alias, str(version))
    return version


def promote(ref: str, alias: str) -> ModelVersion:
    """Points `alias` at a version, taking it from the one that had it; the last of two promotions wins."""
    _require_alias(alias)
    version = show(ref)
    with explained(f"the alias {alias!r}"):
        connect().set_registered_model_alias(version.name, alias, str(version.version))
    return show(version.ref)


def find_bundle(model: str) -> str:
    """Where the bundle lies that a path, a URI or a `models:/` reference names."""
    return resolve(model) if is_ref(model) else storage.absolute(model)


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


def _find_registered(client: "MlflowClient", name: str, run_id: str | None, fingerprint: str) -> int | None:
    same = client.search_model_versions(
        f"name = '{name}' and tags.`{version_tags.FINGERPRINT}` = '{fingerprint}'"
    )
    return next((int(version.version) for version in same if (version.run_id or None) == run_id), None)


def _is_newest(client: "MlflowClient", name: str, version: int) -> bool:
    newest = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"], max_results=1)
    return int(newest[0].version) == version


def _has_alias(client: "MlflowClient", name: str, alias: str) -> bool:
    return alias in client.get_registered_model(name).aliases


def _log_bundle(
    client: "MlflowClient", bundle_uri: str, name: str, run_id: str | None, bundle: Mapping[str, str]
) -> "LoggedModel":
    """Keeps the bundle as a logged model, an output of its run; one that a kill left behind is gone on with.

    No pickle is written.
    """
    run = client.get_run(run_id) if run_id else None
    experiment = run.info.experiment_id if run else experiment_id(client)
    model = _find_logged(client, experiment, name, run_id, bundle[version_tags.FINGERPRINT])
    if model is None:
        model = client.create_logged_model(
            experiment,
            name=name,
            source_run_id=run_id,
            tags={key: value for key, value in bundle.items() if key != version_tags.LINEAGE},
            model_type=bundle[version_tags.KIND],
        )
    if model.status == "READY":
        return model
    with _as_local_folder(bundle_uri) as folder:
        client.log_model_artifacts(model.model_id, folder)
    if run:
        _make_output(client, run, model)
    return client.finalize_logged_model(model.model_id, "READY")


def _find_logged(
    client: "MlflowClient", experiment: str, name: str, run_id: str | None, fingerprint: str
) -> "LoggedModel | None":
    same = client.search_logged_models(
        [experiment], f"name = '{name}' AND tags.`{version_tags.FINGERPRINT}` = '{fingerprint}'"
    )
    return next((model for model in same if (model.source_run_id or None) == run_id), None)


def _make_output(client: "MlflowClient", run: "Run", model: "LoggedModel") -> None:
    from mlflow.entities import LoggedModelOutput

    known = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in known}:
        last_step = max((int(metric.step) for metric in run.data.to_proto().metrics), default=0)
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, last_step)])


def _log_model_metrics(
    client: "MlflowClient", model: "LoggedModel", run_id: str, metrics: Mapping[str, float]
) -> None:
    """Metrics of the model itself; one that its run measured too keeps step and time, and so stays one."""
    from mlflow.entities import Metric

    if not metrics:
        return
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
