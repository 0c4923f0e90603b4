"""What a model version's tags say of it: written from a bundle's records, read back by a listing.

Reads a bundle's JSON (`bundle.json`, `lineage.json`), never its weights. Nothing here knows MLflow.
"""

import json
from collections.abc import Mapping
from typing import Any

from infra import storage
from infra.errors import RegistryError

PREFIX = "reelgpt."
"""Of our own tags in MLflow; people and queries leave it out."""
KIND = f"{PREFIX}kind"
FINGERPRINT = f"{PREFIX}fingerprint"
TASK = f"{PREFIX}task"
"""All tasks, with commas between."""
RECIPE = f"{PREFIX}recipe"
SHARD_SET = f"{PREFIX}shard_set.fingerprint"
TOKENIZER = f"{PREFIX}tokenizer.fingerprint"
LINEAGE = f"{PREFIX}lineage"


def read_tags(bundle_uri: str) -> dict[str, str]:
    """The tags of the bundle at `bundle_uri`; what it does not know of itself has none."""
    record = storage.join(bundle_uri, "bundle.json")
    if not storage.exists(record):
        raise RegistryError(f"{bundle_uri} is no bundle: it has no bundle.json; give a run's model/ folder")
    bundle = storage.read_json(record)
    lineage = storage.read_json(storage.join(bundle_uri, "lineage.json"))
    try:
        tags = {
            KIND: bundle["kind"],
            FINGERPRINT: bundle["fingerprint"],
            TASK: ",".join(bundle.get("tasks") or ()),
            RECIPE: _part(lineage, "run", "recipe"),
            SHARD_SET: _part(lineage, "shard_set", "fingerprint"),
            TOKENIZER: bundle.get("tokenizer_fingerprint") or _part(lineage, "tokenizer", "fingerprint"),
            LINEAGE: json.dumps(lineage),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"{record} is not the record of a bundle ({error}); save the bundle again"
        ) from None
    return {name: value for name, value in tags.items() if value}


def shown(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that people are shown and can search for: all but those that are fields of a version."""
    fields = (KIND, FINGERPRINT, LINEAGE)
    return {name.removeprefix(PREFIX): value for name, value in tags.items() if name not in fields}


def _part(lineage: Mapping[str, Any], part: str, name: str) -> str | None:
    value: str | None = (lineage.get(part) or {}).get(name)
    return value
