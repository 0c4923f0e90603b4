"""`reelgpt plan tokenize`: sources, hours, clips, codes, bytes and CPU hours, from a probe of real spans."""

import os
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from tyro.conf import Positional

from infra.hashing import MIB
from pipelines.config import DecodeLimits, ExtractConfig, FilterConfig, SamplingConfig
from pipelines.plan import PlanJob, ProbeConfig, plan
from reelgpt.command import InputUri, Outcome
from reelgpt.console import track
from reelgpt.tokenize import tokenizer_of


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTokenize:
    """What tokenizing these videos will take, from 1 % of their spans, decoded and tokenized here. Without
    a tokenizer: what extracting their frames will take.

    Example: reelgpt plan tokenize s3://bucket/videos --tokenizer models:/tokenizer-tiny@latest --num-cpus 64
    """

    videos: Positional[tuple[InputUri, ...]]
    """Files, folders, globs or fsspec URIs of videos and still images."""
    tokenizer: InputUri | None = None
    """A tokenizer's bundle: a path, an fsspec URI, models:/NAME/VERSION or models:/NAME@ALIAS."""
    num_cpus: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Cores that will do it; by default those of this machine."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        job = PlanJob(
            videos=self.videos,
            config=ExtractConfig(sampling=self.sampling, filters=self.filters, limits=self.limits),
            tokenizer=tokenizer_of(self.tokenizer) if self.tokenizer else None,
            probe=self.probe,
            num_cpus=self.num_cpus,
        )
        with track("probe") as bar:
            facts = plan(job, bar.update)
        return Outcome(summary=facts, text=Group(_table(facts), _basis(facts)))


def _table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    about = "" if facts["is_exact"] else "about "
    table.add_row("sources", f"{facts['sources']:,} ({_size(facts['bytes'])})")
    table.add_row("hours of video", f"{about}{facts['hours']:,.4g}")
    table.add_row("spans", f"{about}{facts['spans']:,}")
    table.add_row("clips", f"about {facts['clips']:,}, and {facts['rejected_clips']:,} rejected")
    if "codes" in facts:
        table.add_row("codes", f"about {facts['codes']:,}")
    table.add_row("shards", f"about {_size(facts['shard_bytes'])}")
    table.add_row("span files", f"about {_size(facts['span_file_bytes'])} beside them, until `reelgpt gc`")
    table.add_row("decoding", f"about {facts['decode_cpu_hours']:,.3g} CPU hours")
    if "codes" in facts:
        unit = "GPU" if facts["tokenize_device"] == "cuda" else "CPU"
        table.add_row("tokenizing", f"about {facts['tokenize_hours']:,.3g} {unit} hours")
    table.add_row(
        "hours to wait",
        f"about {facts['wall_hours']:,.3g} on {facts['num_cpus']} cores like these, with "
        f"{facts['start_seconds']} s for the start",
    )
    return table


def _basis(facts: dict[str, Any]) -> str:
    error = facts["relative_error"]
    spread = "" if error is None else f"; standard error of the hours {error:.0%}"
    failed = f"; {facts['failed_spans']} of them failed" if facts["failed_spans"] else ""
    return (
        f"from {facts['probed_sources']:,} of the files, and {facts['probed_spans']:,} of their spans, "
        f"decoded here{failed}{spread}"
    )


def _size(num_bytes: int) -> str:
    gib = num_bytes / (1024 * MIB)
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{num_bytes / MIB:,.1f} MiB"
