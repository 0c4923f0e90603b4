"""How scores lie, for people and for programs: a row a score, beside the threshold that judges by it."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from pipelines.selection.distributions import QUANTILES, Distribution, Distributions

SHOWN = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def as_dict(found: Distributions) -> dict[str, Any]:
    """For programs: every quantile of each score."""
    return {
        "clips": found.clips,
        "rejected_too": found.rejected_too,
        "quantiles": {one.score: {f"{at:g}": value for at, value in _pairs(one)} for one in found.scores},
        "thresholds": {one.setting: one.threshold for one in found.scores},
    }


def _pairs(one: Distribution) -> Iterator[tuple[float, float]]:
    return zip(QUANTILES, one.quantiles, strict=True)


def title(found: Distributions) -> str:
    which = "kept or not" if found.rejected_too else "kept; what is known of others is not there any more"
    return f"Of {found.clips:,} clips, {which}: this share of them has a score of at most ..."


def as_rows(found: Distributions) -> list[dict[str, str]]:
    return [
        {"score": one.score, "threshold": f"{one.setting} {one.threshold:g}"}
        | {f"{at:.0%}": f"{value:.4g}" for at, value in _pairs(one) if at in SHOWN}
        for one in found.scores
    ]


def as_table(found: Distributions) -> Table:
    rows = as_rows(found)
    table = Table(*(rows[0] if rows else ()), title=title(found), title_justify="left", box=None)
    for row in rows:
        table.add_row(*row.values())
    return table
