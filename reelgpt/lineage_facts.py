"""A part of a lineage (run, shard set, tokenizer) as facts for people, without those that say nothing."""

from collections.abc import Iterator
from typing import Any


def facts(known: Any) -> Iterator[str]:
    """One fact a field, `name value`; fields of fields are named `sampling.size`. A word stands alone."""
    if not isinstance(known, dict):
        yield str(known)
        return
    for name, value in known.items():
        if isinstance(value, dict):
            yield from (f"{name}.{fact}" for fact in facts(value))
        elif value not in (None, "", []):
            yield f"{name} {value}"
