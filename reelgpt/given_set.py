"""Videos or a shard set? What `extract` and `tokenize` were given, and which settings mean nothing to it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from infra import storage
from infra.errors import ConfigError, NotJsonError, UsageError
from pipelines import records
from pipelines.building import claim
from pipelines.shards import MANIFEST, ShardSet


def given_set(inputs: Sequence[str]) -> ShardSet | None:
    """The shard set that was named, or None where videos were. Raises ShardError where it is not sealed."""
    sets = [uri for uri in inputs if _is_shard_set(storage.absolute(uri))]
    if not sets:
        return None
    if len(inputs) > 1:
        raise UsageError(f"{sets[0]} is a shard set; give one set, or videos, not both")
    return ShardSet.open(sets[0])


def refuse_without_effect(command: Any, default: Any, names: Sequence[str], why: str) -> None:
    """Raises ConfigError where a setting of these names was given."""
    for name in names:
        if getattr(command, name) != getattr(default, name):
            raise ConfigError(f"{name} has no effect on {why}")


def _is_shard_set(uri: str) -> bool:
    """Sealed or not yet: of the latter the user is told so. A folder of videos may have a `manifest.json` or
    a folder `spans` of its own."""
    place = partial(storage.join, uri)
    begun = any(storage.exists(place(name)) for name in (MANIFEST, records.FOLDER))
    return _is_ours(place(MANIFEST)) or (begun and _is_ours(place(claim.CONFIG)))


def _is_ours(place: str) -> bool:
    """Whether what is there is a manifest or settings as we write them."""
    if not storage.exists(place):
        return False
    try:
        value = storage.read_json(place)
    except NotJsonError:
        return False
    return isinstance(value, dict) and "format_version" in value
