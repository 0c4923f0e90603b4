"""What extracting or tokenizing videos will take: measured on 1 % of the spans, and scaled to all of them.

Files are drawn in proportion to their bytes, which a listing knows; so what is found of those drawn, by byte,
stands for all. Where no more files are there than would be looked into, hours and spans are exact.
"""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from infra.errors import ConfigError, StorageError
from infra.storage import FileInfo
from pipelines import records, tables
from pipelines.building import claim, outcomes, stages
from pipelines.building.inventory import listed
from pipelines.building.job import TokenizerRef
from pipelines.building.tokenizing import Encoder
from pipelines.config import ExtractConfig
from pipelines.shards import Kind, clip_schema
from pipelines.spans import Span, list_videos, span_table

SECONDS_PER_HOUR = 3600
FEWEST_SOURCES, MOST_SOURCES = 32, 1000
FEWEST_SPANS, MOST_SPANS = 8, 100
SHARE = 0.01
START_SECONDS = 15
"""Of a command beside its work: Ray, its workers with what they import, and the sealing."""
Row = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    sources: int | None = None
    """Most files to look into for their durations; by default 1 % of all, at least 32 and at most 1,000.
    Remote ones are fetched whole."""
    spans: int | None = None
    """Most spans to decode and tokenize; by default 1 % of all, at least 8 and at most 100."""
    seconds: float = 60.0
    """After so long on files, or on spans, no more of them are begun where the least are done."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sources", "spans"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name}={number} probes nothing; give at least 1")
        if not self.seconds >= 0:
            raise ConfigError(f"seconds={self.seconds:g} is no time; give 0 or more")


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


def plan(job: PlanJob, on_progress: Callable[[int, int | None, str], None]) -> dict[str, Any]:
    """Raises UsageError where there are no videos, StorageError where none of those drawn is to be had."""
    files, rng, probe = list_videos(job.videos), random.Random(job.probe.seed), job.probe
    drawn = _draw(files, probe.sources or _share(len(files), FEWEST_SOURCES, MOST_SOURCES), rng)
    on_progress(0, None, f"looking into {len(set(drawn))} of {len(files)} files")
    drawn, known = _inspected(_in_time(drawn, probe.sources or FEWEST_SOURCES, probe.seconds), job.config)
    hours, num_spans = _size(files, drawn, known, job.config.sampling.span_seconds)
    spans = _spans(known, probe.spans or _share(num_spans, FEWEST_SPANS, MOST_SPANS), job, rng)
    probed = []
    for span in _in_time(spans, probe.spans or FEWEST_SPANS, probe.seconds):
        probed.append(_probe(span, known[span.source]["duration_seconds"], job.config))
        on_progress(len(probed), len(spans), "")
    stages.decoder_of_this_process(job.config.limits).close()
    found: dict[str, Any] = {
        "sources": len(files),
        "bytes": sum(file.size for file in files),
        "hours": hours,
        "spans": num_spans,
        "is_exact": len(known) == len(files),
        "probed_sources": len(known),
    }
    return found | _scaled(probed, hours, job)


def _draw(files: list[FileInfo], most: int, rng: random.Random) -> list[FileInfo]:
    """All of them, or draws in proportion to their bytes, in which one may come again."""
    if len(files) <= most:
        return files
    return rng.choices(files, weights=[max(1, file.size) for file in files], k=most)


def _share(number: int, fewest: int, most: int) -> int:
    return min(most, max(fewest, math.ceil(SHARE * number)))


def _in_time(items: Iterable[Item], fewest: int, seconds: float) -> Iterator[Item]:
    """The first ones, and the others for as long as there is time."""
    until = time.monotonic() + seconds
    for number, item in enumerate(items):
        if number >= fewest and time.monotonic() >= until:
            return
        yield item


def _inspected(drawn: Iterable[FileInfo], config: ExtractConfig) -> tuple[list[FileInfo], dict[str, Row]]:
    """The draws, and by name the sources behind those that are to be had."""
    draws, rows = list[FileInfo](), dict[str, Row]()
    for file in drawn:
        draws.append(file)
        if file.name not in rows:
            (rows[file.name],) = stages.inspect_files(listed([file]), config.limits).to_pylist()
    known = {name: row for name, row in rows.items() if row["left"] is None}
    if not known:
        raise StorageError(next(iter(rows.values()))["left"])
    return draws, known


def _size(
    files: list[FileInfo], drawn: list[FileInfo], known: dict[str, Row], span_seconds: float
) -> tuple[float, int]:
    """Hours and spans of all the files: counted, or the mean of what draws say (Hansen, Hurwitz, 1943). A
    file that is not to be had has none."""
    table = span_table(pa.Table.from_pylist(list(known.values())), span_seconds)
    spans = Counter(table.column("source").to_pylist())
    seconds = Counter({name: row["duration_seconds"] or 0.0 for name, row in known.items()})
    if len({file.name for file in drawn}) == len(files):
        return sum(seconds.values()) / SECONDS_PER_HOUR, spans.total()
    total = sum(max(1, file.size) for file in files)
    per_byte = [(seconds[f.name] / max(1, f.size), spans[f.name] / max(1, f.size)) for f in drawn]
    all_seconds, all_spans = (total * statistics.fmean(column) for column in zip(*per_byte, strict=True))
    return all_seconds / SECONDS_PER_HOUR, round(all_spans)


def _spans(known: dict[str, Row], most: int, job: PlanJob, rng: random.Random) -> list[Span]:
    table = span_table(pa.Table.from_pylist(list(known.values())), job.config.sampling.span_seconds)
    chosen = rng.sample(range(table.num_rows), min(most, table.num_rows))
    return [Span(**fields) for fields in table.take(pa.array(chosen)).to_pylist()]


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
