"""What the README and the helps tell people to type is what the commands take."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from reelgpt.main import COMMANDS, parse
from training.recipes import RECIPES, get_recipe

HOUSE = Path(__file__).parents[2]
EXAMPLE = re.compile(r"Example: (reelgpt (?:(?!\n\s*\n|\"\"\"|\",).)+)", re.DOTALL)
REGISTERED = re.compile(r"(?:models:/|models (?:show|lineage|promote|export) )([\w-]+)")


def in_the_readme() -> Iterator[str]:
    for block in re.findall(r"```\n(.*?)```", (HOUSE / "README.md").read_text(), re.DOTALL):
        yield from (line for line in block.splitlines() if line.startswith("reelgpt "))


def in_the_helps() -> Iterator[str]:
    for file in sorted((HOUSE / "reelgpt").glob("*.py")):
        yield from (" ".join(found.split()) for found in EXAMPLE.findall(file.read_text()))


EXAMPLES = [*in_the_readme(), *in_the_helps()]


def test_there_is_an_example_of_every_command() -> None:
    assert {line.split()[1] for line in in_the_helps()} == set(COMMANDS)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_a_command_line_that_is_taken(line: str) -> None:
    _, name, *args = shlex.split(line, comments=True)
    parse(name, args)


@pytest.mark.parametrize("line", [line for line in EXAMPLES if REGISTERED.search(line)])
def test_an_example_names_a_model_that_a_recipe_is_registered_as(line: str) -> None:
    assert set(REGISTERED.findall(line)) <= {get_recipe(name).register_as for name in RECIPES}
