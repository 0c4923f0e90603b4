"""What extracting or tokenizing videos will take: measured on a few real spans, and scaled to all of them.

Files are drawn in proportion to their bytes, which a listing knows; so what is found of those drawn, by byte,
stands for all. Where no more files are there than would be looked into, hours and spans are exact.
"""

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra.errors import ConfigError
from infra.storage import FileInfo
from pipelines import records, tables
from pipelines.building import claim, outcomes, stages
from pipelines.building.inventory import FILE_COLUMNS
from pipelines.building.job import TokenizerRef
from pipelines.building.tokenizing import Encoder
from pipelines.config import ExtractConfig
from pipelines.shards import Kind, clip_schema
from pipelines.spans import Span, list_videos, span_table

SECONDS_PER_HOUR = 3600
START_SECONDS = 15
"""Of a command beside its work: Ray, its workers with what they import, and the sealing."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    sources: int = 32
    """Most files to look into for their durations; remote ones are fetched whole."""
    spans: int = 8
    """Most spans to decode and tokenize."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sources", "spans"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} probes nothing; give at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanJob:
    videos: tuple[str, ...]
    config: ExtractConfig
    tokenizer: TokenizerRef | None = None
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    num_cpus: int

    @property
    def kind(self) -> Kind:
        return "tokens" if self.tokenizer else "frames"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """What came of one span."""

    seconds: float
    """Of video."""
    cpu_seconds: float
    """For decoding, scores and hashes."""
    record: Row


def plan(job: PlanJob, on_progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Raises UsageError where there are no videos."""
    files, rng = list_videos(job.videos), random.Random(job.probe.seed)
    drawn = _draw(files, job.probe.sources, rng)
    on_progress(0, job.probe.spans, f"looking into {len(set(drawn))} of {len(files)} files")
    known = _inspected(drawn, job.config)
    hours, num_spans = _size(files, drawn, known, job.config.sampling.span_seconds)
    spans = _spans(known, job, rng)
    probed = []
    for number, span in enumerate(spans, 1):
        probed.append(_probe(span, known[span.source]["duration_seconds"], job.config))
        on_progress(number, len(spans), "")
    stages.decoder_of_this_process(job.config.limits).close()
    found: dict[str, Any] = {
        "sources": len(files),
        "bytes": sum(file.size for file in files),
        "hours": hours,
        "spans": num_spans,
        "is_exact": len(files) <= job.probe.sources,
    }
    return found | _scaled(probed, hours, job)


def _draw(files: list[FileInfo], most: int, rng: random.Random) -> list[FileInfo]:
    """All of them, or draws in proportion to their bytes, in which one may come again."""
    if len(files) <= most:
        return files
    return rng.choices(files, weights=[max(1, file.size) for file in files], k=most)


def _inspected(drawn: list[FileInfo], config: ExtractConfig) -> dict[str, Row]:
    """The sources, by name."""
    once = {file.name: file for file in drawn}.values()
    listed = pa.table({name: [getattr(file, name) for file in once] for name in FILE_COLUMNS})
    return {row["name"]: row for row in stages.inspect_files(listed, config.limits).to_pylist()}


def _size(
    files: list[FileInfo], drawn: list[FileInfo], known: dict[str, Row], span_seconds: float
) -> tuple[float, int]:
    """Hours and spans of all the files: counted, or the mean of what draws say (Hansen, Hurwitz, 1943)."""
    table = span_table(pa.Table.from_pylist(list(known.values())), span_seconds)
    spans: dict[str, int] = {}
    for name in table.column("source").to_pylist():
        spans[name] = spans.get(name, 0) + 1
    seconds = {name: row["duration_seconds"] or 0.0 for name, row in known.items()}
    if drawn is files:
        return sum(seconds.values()) / SECONDS_PER_HOUR, sum(spans.values())
    total = sum(max(1, file.size) for file in files)
    per_byte = [(seconds[f.name] / max(1, f.size), spans[f.name] / max(1, f.size)) for f in drawn]
    all_seconds, all_spans = (total * statistics.fmean(column) for column in zip(*per_byte, strict=True))
    return all_seconds / SECONDS_PER_HOUR, round(all_spans)


def _spans(known: dict[str, Row], job: PlanJob, rng: random.Random) -> list[Span]:
    table = span_table(pa.Table.from_pylist(list(known.values())), job.config.sampling.span_seconds)
    chosen = rng.sample(range(table.num_rows), min(job.probe.spans, table.num_rows))
    return [Span(**fields) for fields in table.take(pa.array(sorted(chosen))).to_pylist()]


def _probe(span: Span, duration_seconds: float | None, config: ExtractConfig) -> Probed:
    started = time.process_time()
    record = outcomes.of_span(span, stages.decoded(span, config), config)
    own_seconds = time.process_time() - started
    end = span.end_seconds or duration_seconds
    seconds = end - span.start_seconds if end else record["num_frames"] / config.sampling.fps
    return Probed(seconds=seconds, cpu_seconds=record["decode_cpu_seconds"] + own_seconds, record=record)


def _scaled(probed: list[Probed], hours: float, job: PlanJob) -> dict[str, Any]:
    """What the probes took and gave, for so many hours of video."""
    rows = [one.record for one in probed]
    device = "cpu"
    if job.tokenizer is not None:
        encoder = Encoder(job.tokenizer.uri, claim.CLIPS_PER_BATCH)
        device, rows = encoder.device, encoder.encode(rows)
    seconds = sum(one.seconds for one in probed)
    factor = hours * SECONDS_PER_HOUR / seconds if seconds else 0.0
    decoding = factor * sum(one.cpu_seconds for one in probed) / SECONDS_PER_HOUR
    tokenizing = factor * sum(row["tokenize_seconds"] for row in rows) / SECONDS_PER_HOUR
    busy = (
        [decoding / job.num_cpus, tokenizing]
        if device == "cuda"
        else [(decoding + tokenizing) / job.num_cpus]
    )
    clips = [clip for row in rows for clip in row["clips"] if not clip["rejected"]]
    table = pa.Table.from_pylist(rows, records.record_schema(job.kind))
    return {
        "clips": round(factor * len(clips)),
        "rejected_clips": round(factor * sum(1 for row in rows for clip in row["clips"] if clip["rejected"])),
        **(
            {"codes": round(factor * sum(len(clip["codes"]) // 2 for clip in clips))} if job.tokenizer else {}
        ),
        "shard_bytes": round(factor * _num_bytes(_kept(table, job.kind))),
        "span_file_bytes": round(factor * _num_bytes(table)),
        "decode_cpu_hours": decoding,
        "tokenize_hours": tokenizing,
        "tokenize_device": device,
        "num_cpus": job.num_cpus,
        "wall_hours": START_SECONDS / SECONDS_PER_HOUR + max(busy),
        "start_seconds": START_SECONDS,
        "relative_error": _relative_error(probed, rows),
        "probed_spans": len(probed),
        "failed_spans": sum(1 for row in rows if row["outcome"] == "failed"),
    }


def _kept(table: pa.Table, kind: Kind) -> pa.Table:
    clips = records.clips_of(table.select(["clips"]))
    kept = clips.filter(pa.array([not reason for reason in clips.column("rejected").to_pylist()], pa.bool_()))
    return kept.select(clip_schema(kind).names)


def _num_bytes(table: pa.Table) -> int:
    return tables.parquet_bytes(table, 64).nbytes


def _relative_error(probed: list[Probed], rows: list[Row]) -> float | None:
    """Standard error of the CPU seconds that a second of video takes, as a share of them."""
    rates: list[float] = [
        (one.cpu_seconds + row["tokenize_seconds"]) / one.seconds
        for one, row in zip(probed, rows, strict=True)
        if one.seconds
    ]
    if len(rates) < 2 or not statistics.fmean(rates):
        return None
    return statistics.stdev(rates) / math.sqrt(len(rates)) / statistics.fmean(rates)
