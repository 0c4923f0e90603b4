"""Options that take several values: given twice, the later ones would take the place of the earlier ones in
silence."""

import dataclasses
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from infra.errors import UsageError


def refuse_repeated(command_class: type, args: Sequence[str]) -> None:
    """Raises UsageError where an option that takes several values is given more than once."""
    given = Counter(word.partition("=")[0].replace("_", "-") for word in args if word.startswith("--"))
    repeated = {option for option, times in given.items() if times > 1}
    for option in repeated and repeated.intersection(_with_several_values(command_class)):
        raise UsageError(f"{option} is given more than once; give all its values after one: {option} A B")


def _with_several_values(command_class: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(command_class, include_extras=True)
    for field in dataclasses.fields(command_class):
        parts = list(_parts(hints[field.name]))
        if any(typing.get_origin(part) is tuple and typing.get_args(part)[1:] == (...,) for part in parts):
            yield f"--{prefix}{field.name}".replace("_", "-")
        for part in parts:
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from _with_several_values(part, f"{prefix}{field.name}.")


def _parts(hint: Any) -> Iterator[Any]:
    """A type itself, or what an annotation or a union is made of."""
    if typing.get_origin(hint) in (tuple, None) or isinstance(hint, type):
        yield hint
    else:
        yield from (part for inner in typing.get_args(hint) for part in _parts(inner))
