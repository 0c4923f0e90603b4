"""`reelgpt evaluate`: a model's numbers on held-out clips, beside baselines that cost nothing."""

from dataclasses import dataclass
from typing import Any

import tyro
from rich.table import Table

from infra.errors import UsageError
from infra.registry import find_bundle
from reelgpt.command import InputUri, Outcome
from training.judged import open_judged


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Judges a tokenizer on the validation clips of a frame set, or a GPT on those of a token set.

    Example: reelgpt evaluate out/gpt/model --data out/tokens
    """

    model: tyro.conf.Positional[InputUri]
    """A bundle's folder or URI, models:/NAME/VERSION or models:/NAME@ALIAS."""
    data: InputUri
    """The shard set whose validation clips to look at."""
    max_clips: int = 256
    """Look at this many clips at most, taken evenly from all."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        if self.max_clips < 1:
            raise UsageError(f"--max-clips {self.max_clips} looks at nothing; give at least 1")
        judged = open_judged(find_bundle(self.model), self.data)
        from training.evaluate import evaluate_judged  # brings torch: refusals come before

        measured = evaluate_judged(judged, max_clips=self.max_clips)
        return Outcome(summary={"model": self.model, "data": self.data, **measured}, text=_table(measured))


def _table(measured: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, value in measured.items():
        table.add_row(name.removeprefix("val_").replace("_", " "), f"{value:.4g}")
    return table
