"""Configs to JSON and back: frozen dataclasses, validated strictly by pydantic on the way in."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from infra.errors import ConfigError

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-able values: nested dataclasses become objects, tuples become lists."""
    return cast(dict[str, Any], _adapter(cast(Any, type(config))).dump_python(config, mode="json"))


def overlaid(base: Config, given: Config) -> Config:
    """`base`, with the fields in which `given` differs from the defaults of its class."""
    fields = dataclasses.fields(cast(Any, given))
    default = type(given)()
    changed = {
        f.name: getattr(given, f.name) for f in fields if getattr(given, f.name) != getattr(default, f.name)
    }
    return cast(Config, dataclasses.replace(cast(Any, base), **changed))


def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
    """The config that `to_dict` wrote. Raises ConfigError, naming the field, on anything else."""
    known = {field.name for field in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{cls.__name__} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    try:
        return cast(Config, _adapter(cast(Any, cls)).validate_python(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or cls.__name__
        raise ConfigError(f"{place}: {first['msg']}") from None


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    """Made once: of a run's config it takes 50 ms."""
    return TypeAdapter(cls)


def check_at_least(least: int, **settings: int) -> None:
    """Raises ConfigError naming the first setting that is smaller."""
    for name, value in settings.items():
        if value < least:
            raise ConfigError(f"{name}={value} must be at least {least}")


def check_finite(config: Any) -> None:
    """Raises ConfigError naming the first setting, however deep, that is nan or infinite: such a number
    passes comparisons, and ends in results that are none."""
    for name, value in _floats(config, ""):
        if not math.isfinite(value):
            raise ConfigError(f"{name}={value} must be a finite number")


def _floats(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _floats(item, name)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = f"{name}.{field.name}" if name else field.name
            yield from _floats(getattr(value, field.name), inner)
