"""What tyro has against a command line, as one sentence with the remedy.

Tyro draws a box of sections, and repeats in it the help of every option that may have been meant: a page,
where `--step` was written for `--steps`. What stays is what was given, and the names of what is needed.
"""

import difflib
import re
from collections.abc import Iterator, Sequence

MOST_MEANT = 3
"""Options that are asked about where there is none of the name given."""
RULES = {"\u2500", "-"}
"""Lines are drawn with the first, and where stdout is not UTF-8 with the second."""
NAMED = re.compile(r" {5}(--[\w.-]+|[A-Z_]{2,})(?: |$)")
"""A line that names an option or a positional argument; its help stands further to the right."""
REWORDED = (
    (re.compile(r"Missing value for argument '(.+)'\..*"), r"\1 needs a value"),
    (
        re.compile(r"invalid choice (.+) for argument '(.+)'\. Expected one of \((.+)\)"),
        r"\2 \1 is none of \3",
    ),
    (
        re.compile(r"Error parsing (--\S+): .*invalid literal for int[^:]*: (.+)"),
        r"\1 \2 is not a whole number",
    ),
    (
        re.compile(r"Error parsing (--\S+): .*could not convert string to float: (.+)"),
        r"\1 \2 is not a number",
    ),
    (
        re.compile(r"Error parsing (--\S+): Could not find valid parse for arguments: (.+)"),
        r"\1 cannot be \2",
    ),
    (re.compile(r"Error parsing (--\S+): (.+)"), r"\1: \2"),
    (re.compile(r"Error parsing [\w.]+: (.+)"), r"\1"),
    (re.compile(r"Available subcommands: (.+)"), r"it has \1"),
    (re.compile(r"Expected one of {(.+)}"), r"it needs one of \1"),
)
"""Python's and tyro's words beside those of a person; the first that fits a whole section counts."""


def sentence(box: str, command: str) -> str:
    """What stands in `box` of the arguments of `command`, such as `reelgpt train`."""
    said, unknown = [], ""
    for lines in _sections(box):
        words = " ".join(line.strip() for line in lines)
        names = [found[1] for line in lines if (found := NAMED.match(line))]
        match words.split(maxsplit=1)[0]:
            case "Unrecognized":
                unknown = _unknown(words.partition(":")[2])
                option = unknown.startswith("-")
                said.append(f"{command} has no {f'option {unknown}' if option else f'use for {unknown!r}'}")
            case "Perhaps" | "Arguments":
                said.append(f"did you mean {' or '.join(_nearest(unknown, names))}?")
            case "Missing" if names:
                said.append(
                    f"{words.partition(':')[0].removeprefix('Missing from ')} needs {', '.join(names)}"
                )
            case "For" | "Argument":
                continue
            case _:
                said.append(_reworded(words))
    text = "; ".join(said)
    return f"{text}{' ' if text.endswith('?') else '; '}`{command} --help` shows what it takes"


def _sections(box: str) -> Iterator[Sequence[str]]:
    """The lines between the rules of the box, without its frame."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:  # the first one is its title
        inner = line[1:-1].rstrip()
        if inner and set(inner.strip()) <= RULES:
            yield from filter(None, [lines])
            lines = []
        elif inner:
            lines.append(inner)


def _unknown(given: str) -> str:
    """The first word that is not known: what follows an option is its value."""
    words = given.replace(",", " ").split()
    return next((word for word in words if word.startswith("-")), words[0])


def _nearest(unknown: str, names: Sequence[str]) -> Sequence[str]:
    return difflib.get_close_matches(unknown, names, n=1, cutoff=0.8) or difflib.get_close_matches(
        unknown, names, n=MOST_MEANT, cutoff=0
    )


def _reworded(words: str) -> str:
    for pattern, replacement in REWORDED:
        if pattern.fullmatch(words.rstrip(".")):
            return pattern.sub(replacement, words.rstrip("."))
    return words.rstrip(".")
