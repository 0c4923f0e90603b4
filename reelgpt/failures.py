"""`reelgpt failures`: which spans failed and why; with --retry, another try of those of a class."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from rich.console import Group
from rich.table import Table
from tyro.conf import Positional

from infra.errors import ConfigError
from pipelines.config import DecodeLimits, Resources
from pipelines.error_classes import ERROR_CLASSES
from pipelines.failures import RetryJob, failures_of, retry
from pipelines.shards import ShardSet
from reelgpt import shard_summary
from reelgpt.command import InputUri, Outcome
from reelgpt.console import track
from reelgpt.stopping import stoppable
from reelgpt.tokenize import tokenizer_of

COLUMNS = (
    "error_class",
    "source",
    "span_id",
    "start_seconds",
    "end_seconds",
    "outcome",
    "num_clips",
    "error",
)
LISTED = 50
ALL_MAY_FAIL = 1.0
"""A retry is not judged: what failed before was allowed to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """Which spans failed, in whole or in part, and why. With --retry, those of a class are tried again, with
    the settings of the set; what had clips before and has them now is the same.

    Example: reelgpt failures tokens --retry cpu_limit --limits.cpu-seconds 900
    """

    shards: Positional[InputUri]
    """A shard set; to be listed, it need not be sealed."""
    retry: str | None = None
    """Class of the errors to try again."""
    tokenizer: InputUri | None = None
    """For a set of tokens: where the tokenizer that made them is now; by default, where it was then."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        if self.retry is not None:
            return self._retry(self.retry)
        for name in ("tokenizer", "limits", "resources"):
            if getattr(self, name) != getattr(Failures(shards=""), name):
                raise ConfigError(f"{name} has no effect without --retry")
        return _listing(self.shards)

    def _retry(self, error_class: str) -> Outcome:
        reference = self.tokenizer or ShardSet.open(self.shards).manifest.tokenizer
        job = RetryJob(
            shards=self.shards,
            error_class=error_class,
            limits=self.limits,
            resources=self.resources,
            tokenizer=tokenizer_of(reference) if reference else None,
        )
        with stoppable(), track("retry") as bar:
            built = retry(job, bar.update)
        if built is None:
            summary = {"shards": self.shards, "retried": 0}
            return Outcome(summary=summary, text=f"{self.shards} has no span with the error {error_class}")
        done = shard_summary.outcome(built, self.shards, ALL_MAY_FAIL)
        summary = done.summary | {"retried": built.done_now}
        return Outcome(summary=summary, text=done.text, exit_code=done.exit_code)


def _listing(shards: str) -> Outcome:
    rows = failures_of(shards).to_pylist()
    found = [{name: row[name] for name in COLUMNS} for row in rows]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["error_class"]] = counts.get(row["error_class"], 0) + 1
    summary = {"shards": shards, "classes": counts, "failures": found}
    return Outcome(summary=summary, text=_tables(shards, counts, found))


def _tables(shards: str, counts: dict[str, int], found: list[dict[str, Any]]) -> Group | str:
    if not found:
        return f"no span of {shards} failed"
    classes, spans = Table("class", "spans", "meaning"), Table("class", "source", "start, s", "kept", "error")
    for name, count in counts.items():
        classes.add_row(name, f"{count:,}", ERROR_CLASSES.get(name, ""))
    for row in found[:LISTED]:
        kept = "nothing" if row["outcome"] == "failed" else f"{row['num_clips']:,} clips"
        spans.add_row(row["error_class"], row["source"], f"{row['start_seconds']:.0f}", kept, row["error"])
    more = len(found) - LISTED
    return Group(classes, spans, *([f"and {more:,} more; --json has them all"] if more > 0 else []))
