"""What every command is: a frozen dataclass whose fields are its options and whose `run` gives an Outcome."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Place:
    """Marks a field that names files, so that `submit` can refuse what would vanish with the job."""

    role: Literal["input", "output"]


InputUri = Annotated[str, Place("input")]
OutputUri = Annotated[str, Place("output")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    summary: dict[str, Any] = field(default_factory=dict)
    """For programs: what `--json` prints."""
    text: RenderableType = ""
    """For people: anything that rich prints."""
    exit_code: int = 0


class Command(Protocol):
    """A dataclass in `reelgpt/NAME.py`, listed in `main.COMMANDS`; commands compose by calling each other.

    Its docstring is the help and ends with an example; a docstring under each field is that option's help. It
    has a field `json: bool = False`. One that needs a grammar of its own adds a classmethod `parse(args)`.
    """

    def run(self) -> Outcome: ...
