"""What a model version is, how one is named, and what a query can ask of it. Nothing here knows MLflow."""

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra.errors import UsageError
from infra.registry_query import Value

REF = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|[@/](?P<alias>[^/@]+))?")
LATEST = "latest"
"""MLflow's own word for the newest version; no alias can be called so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str | None
    created: str
    """ISO 8601, UTC."""
    kind: str | None
    """`tokenizer` or `gpt`; None for a model that others registered."""
    fingerprint: str | None
    tasks: tuple[str, ...]
    tags: dict[str, str]
    params: dict[str, str]
    """Of its run."""
    metrics: dict[str, float]
    """Those it was registered with; the last ones of its run for the names it was registered without."""
    lineage: dict[str, Any]
    source: str
    """Where MLflow keeps its files."""

    @property
    def ref(self) -> str:
        return f"models:/{self.name}/{self.version}"


def is_ref(text: str) -> bool:
    return text.startswith("models:/")


def parse_ref(ref: str) -> tuple[str, int | None, str | None]:
    """Name, version and alias of a reference; UsageError when it is none."""
    found = REF.fullmatch(ref if is_ref(ref) else f"models:/{ref}")
    if not found:
        raise UsageError(f"{ref!r} names no model version; write models:/NAME/VERSION or models:/NAME@ALIAS")
    return found["name"], int(found["version"]) if found["version"] else None, found["alias"]


def fields_of(version: ModelVersion) -> dict[str, Value]:
    """What a query can ask of a version. Where names collide: ours, then metrics, then tags, then params.

    A param goes by its whole name and by its last part too, where that is one param's alone.
    """
    last_parts = Counter(_last_part(key) for key in version.params)
    fields: dict[str, Value] = {
        **{
            _last_part(key): value
            for key, value in version.params.items()
            if last_parts[_last_part(key)] == 1
        },
        **version.params,
        **version.tags,
        **version.metrics,
        "name": version.name,
        "version": float(version.version),
        "alias": frozenset(version.aliases),
        "task": frozenset(version.tasks),
        "created": datetime.fromisoformat(version.created),
    }
    optional = {"run_id": version.run_id, "kind": version.kind, "fingerprint": version.fingerprint}
    return fields | {key: value for key, value in optional.items() if value is not None}


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]
