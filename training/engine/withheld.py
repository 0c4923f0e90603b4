"""Packages that another one would import for a feature that is not used here."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def withheld(name: str) -> Iterator[None]:
    """Inside, importing `name` fails as if it were not installed, unless it is there already."""
    is_there = name in sys.modules
    if not is_there:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not is_there:
            del sys.modules[name]
