"""docs/tracking.md names what MLflow is told: no more, no less. What runs tell: `test_tracking_faults.py`."""

import re
from pathlib import Path

from infra import configs, tracking
from training.recipes import RECIPES, get_recipe

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"
NAME = re.compile(r"`([^`]+)`")
ELSEWHERE = {"mfu", "loss_scale", "skipped_steps"}
"""On a GPU, or in fp16."""


def section(title: str) -> str:
    return PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def documented_metrics(kind: str) -> set[str]:
    """Of runs of a `kind`, GPT or tokenizer."""
    rows = [line.split("|")[1:3] for line in section("Metrics").splitlines() if line.startswith("| `")]
    return {name for names, of in rows if concerns(kind, of) for name in NAME.findall(names)}


def documented_params(kind: str | None = None) -> set[str]:
    found = set[str]()
    for line in section("Params").splitlines():
        if line.startswith("- ") and (kind is None or concerns(kind, line)):
            before, colon, after = line.rpartition(":")
            prefix = NAME.findall(before)[0] if colon else ""
            found |= {prefix + name for name in NAME.findall(after)}
    return found


def concerns(kind: str, text: str) -> bool:
    """Whether a line is of runs of that kind: those that name none are of both."""
    return kind in text or not any(other in text for other in ("GPT", "tokenizer"))


def test_every_setting_is_a_documented_param() -> None:
    recipes = [tracking.flatten(configs.to_dict(get_recipe(name))) for name in RECIPES]
    assert documented_params() == set[str]().union(*recipes)


def test_every_tag_is_documented() -> None:
    tags = {value for name, value in vars(tracking).items() if name.endswith("_TAG")}
    assert {name for name in NAME.findall(section("Tags")) if name.startswith("reelgpt.")} == tags
