"""Which model versions there are: MLflow's versions joined with their aliases, runs and logged models.

MLflow answers none of these together, so all are asked for and joined here; a query is then asked of what
came out. What a store that is a file can be seen to lack is said at once, without MLflow.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra import version_tags
from infra.errors import RegistryError, UsageError
from infra.mlflow_store import connect, explained, models_in_a_file, store_name
from infra.model_version import LATEST, ModelVersion, fields_of, parse_ref
from infra.registry_query import parse_query

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

IDS_A_QUERY = 100
VERSIONS_A_PAGE = 1000


def list_versions(name: str | None = None) -> list[ModelVersion]:
    """All versions, newest first, or those of one model; joined with aliases, metrics and runs."""
    models = models_in_a_file()
    if models is not None and name is not None and name not in models:
        raise _no_such_model(name, models)
    if models is not None and not models:
        return []
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
    tags = version.tags
    tasks = tags.get(version_tags.TASK, "")
    number = int(version.version)
    return ModelVersion(
        name=version.name,
        version=number,
        aliases=tuple(sorted(alias for alias, at in aliases.get(version.name, {}).items() if at == number)),
        run_id=version.run_id or None,
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(
            timespec="milliseconds"
        ),
        kind=tags.get(version_tags.KIND),
        fingerprint=tags.get(version_tags.FINGERPRINT),
        tasks=tuple(tasks.split(",")) if tasks else (),
        tags=version_tags.shown(tags),
        params=dict(run.data.params) if run else {},
        metrics={**(run.data.metrics if run else {}), **metrics.get(str(version.source), {})},
        lineage=json.loads(tags.get(version_tags.LINEAGE, "{}")),
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
