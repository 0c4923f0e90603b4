"""`reelgpt report`: one self-contained page of what a journey made.

Gathers facts from the directories it is given and hands them to `report_page.html.jinja`, which words them.
What is not given has no section. The page loads nothing: pictures, videos and charts are inside it.
"""

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import storage
from infra.commit import code_commit
from infra.errors import UsageError
from infra.mlflow_store import store_name
from pipelines.shards import ShardSet
from reelgpt import report_sections as sections
from reelgpt.command import InputUri, Outcome, OutputUri
from reelgpt.console import track

TEMPLATE = Path(__file__).with_name("report_page.html.jinja")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Writes one self-contained HTML page of what went in, what was learned and what came out.

    Example: reelgpt report --frames demo/frames --tokens demo/tokens --runs demo/tokenizer demo/gpt
    --generated demo/next.mp4 --out report.html
    """

    out: OutputUri
    """The HTML file to write."""
    frames: InputUri | None = None
    """A frame set: the sources, and pictures to reconstruct."""
    tokens: InputUri | None = None
    """A token set."""
    runs: tuple[InputUri, ...] = ()
    """Run directories of `reelgpt train`."""
    generated: tuple[InputUri, ...] = ()
    """mp4 files of `reelgpt generate`."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> Outcome:
        if not (self.frames or self.tokens or self.runs or self.generated):
            raise UsageError(
                "a report needs something to show; give --frames, --tokens, --runs or --generated"
            )
        with track("report", total=1) as bar:
            page = write_report(
                self.out, frames=self.frames, tokens=self.tokens, runs=self.runs, generated=self.generated
            )
            bar.update(1)
        return Outcome(summary={"report": self.out, "bytes": len(page)}, text=self.out)


def write_report(
    out: str,
    *,
    frames: str | None = None,
    tokens: str | None = None,
    runs: Iterable[str] = (),
    generated: Iterable[str] = (),
) -> bytes:
    """Puts the page at `out` and gives its bytes."""
    trainings = [sections.read_training(run) for run in runs]
    frame_set = ShardSet.open(frames) if frames else None
    token_set = ShardSet.open(tokens) if tokens else None
    data_set = frame_set or token_set
    page = render(
        {
            "title": "From videos to a visual GPT",
            "headline": sections.headline(data_set, token_set, trainings),
            "continuations": [sections.show_continuation(path) for path in generated],
            "reconstruction": _reconstruction(frame_set, trainings),
            "trainings": trainings,
            "training_rows": sections.training_rows(trainings),
            "data": sections.describe_data(data_set) if data_set else None,
            "paces": sections.describe_paces([one for one in (frame_set, token_set) if one]),
            "lineage": sections.lineage(trainings, data_set),
            "mlflow_line": mlflow_line(),
            "version": importlib.metadata.version("reelgpt"),
            "commit": code_commit(),
        }
    )
    storage.write(out, page)
    return page


def mlflow_line() -> str:
    """The one line that shows every run and model version in a browser; it tells no password."""
    uri = store_name()
    if uri.startswith(("http://", "https://")):
        return f"open {uri}"
    program = os.path.join(os.path.dirname(sys.executable), "mlflow")
    return shlex.join([program, "ui", "--backend-store-uri", uri])


def render(facts: dict[str, Any]) -> bytes:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.from_string(TEMPLATE.read_text()).render(facts).encode()


def _reconstruction(
    frame_set: ShardSet | None, trainings: Iterable[sections.Training]
) -> dict[str, Any] | None:
    tokenizers = [training.bundle.uri for training in trainings if training.is_tokenizer and training.bundle]
    if frame_set is None or not tokenizers:
        return None
    return sections.show_reconstructions(frame_set, tokenizers[-1])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
