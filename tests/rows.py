"""Sources and rows of spans, made without decoding: what a build leaves behind, for tests without Ray."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import records
from pipelines.building import claim
from pipelines.building.build import take
from pipelines.building.completion import RunUnits, Watch, complete
from pipelines.building.inventory import Found
from pipelines.building.job import Built, TokenizerRef, VideoJob
from pipelines.building.pace import Devices
from pipelines.building.work import video_work
from pipelines.config import (
    DuplicateConfig,
    ExtractConfig,
    FilterConfig,
    Keep,
    PackConfig,
    Resources,
    SamplingConfig,
    SplitConfig,
)
from pipelines.packing.sidecar import Sidecar
from pipelines.selection.filters import reject_reason
from pipelines.selection.verdicts import thresholds_key
from pipelines.shards import Kind, ShardSet
from pipelines.spans import SOURCE_SCHEMA

CLIPS_PER_SPAN = 4
GRID = (2, 2, 2)
TOKENIZER = TokenizerRef(uri="/tokenizer", fingerprint="f" * 64, num_codes=1000, frame_size=16)


def sources(names: Iterable[str], *, folder: str = "/videos", seconds: float = 150.0) -> pa.Table:
    """Videos of three spans each, whose content is their name."""
    rows = [
        {
            "source_id": f"id-of-{name}",
            "name": name,
            "uri": f"{folder}/{name}",
            "size": 9,
            "modified": folder,
            "duration_seconds": seconds,
        }
        for name in names
    ]
    return pa.Table.from_pylist(rows, SOURCE_SCHEMA)


def brightness(clip_id: str) -> float:
    return float(np.random.default_rng(list(clip_id.encode())).uniform(0, 1))


def record(
    unit: dict[str, Any], filters: FilterConfig, *, error_class: str | None = None, keep: Keep = "kept"
) -> dict[str, Any]:
    """The row of a span of codes: whole, or failed with this error."""
    count = 0 if error_class else CLIPS_PER_SPAN
    clips = [_clip(unit, number, filters, keep) for number in range(count)]
    reasons = [clip["rejected"] for clip in clips if clip["rejected"]]
    return {
        "unit_id": unit["span_id"],
        **{name: unit[name] for name in ("span_id", "source_id", "source", "start_seconds", "end_seconds")},
        "outcome": "failed" if error_class else "ok" if len(reasons) < count else "filtered",
        "error_class": error_class,
        "error": f"it was {error_class}" if error_class else None,
        "decoder": "decord",
        "num_frames": 8 * count,
        "num_clips": count - len(reasons),
        "rejected": sorted((reason, reasons.count(reason)) for reason in set(reasons)),
        "judged_by": None if keep == "none" else thresholds_key(filters),
        "attempts": 1,
        "decode_cpu_seconds": 1.0,
        "tokenize_seconds": 0.5,
        "clips": clips,
    }


def _clip(unit: dict[str, Any], number: int, filters: FilterConfig, keep: Keep) -> dict[str, Any]:
    clip_id = f"{unit['span_id']}/{number:04d}"
    scores = {"brightness": brightness(clip_id), "motion": 0.1}
    rejected = reject_reason(scores, 8, filters)
    has_codes = keep == "all" or (keep == "kept" and not rejected)
    codes = np.random.default_rng(list(clip_id.encode())).integers(0, 1000, GRID).astype("<u2")
    return {
        "clip_id": clip_id,
        **{name: unit[name] for name in ("source_id", "source", "span_id")},
        "start_seconds": unit["start_seconds"] + number,
        "fps": 8.0,
        "num_frames": 8,
        "repeated_frames": 0,
        "scores": sorted(scores.items()),
        "grid": list(GRID) if has_codes else None,
        "codes": codes.tobytes() if has_codes else None,
        "rejected": rejected,
    }


def writing(
    filters: FilterConfig,
    errors: dict[str, str] | None = None,
    *,
    seen: list[str] | None = None,
    keep: Keep = "kept",
) -> RunUnits:
    """Does units as workers would, in files of four rows; notes in `seen` which. errors: span id to class."""

    def run(missing: pa.Table, place: str, watch: Watch) -> Devices:
        for start in range(0, missing.num_rows, 4):
            units = missing.slice(start, 4).to_pylist()
            rows = [
                record(unit, filters, error_class=(errors or {}).get(unit["span_id"]), keep=keep)
                for unit in units
            ]
            if seen is not None:
                seen.extend(unit["span_id"] for unit in units)
            table = pa.Table.from_pylist(rows, records.record_schema("tokens"))
            records.write(place, table)
            watch(table.append_column("worker_seconds", pa.array([1.5] * table.num_rows)))
        return Devices(cores=2)

    return run


def video_job(
    out: Path | str,
    *,
    filters: FilterConfig | None = None,
    duplicates: DuplicateConfig | None = None,
    sampling: SamplingConfig | None = None,
    split: SplitConfig | None = None,
    pack: PackConfig | None = None,
    sidecar: Sidecar | None = None,
    keep: Keep = "kept",
    redo: bool = False,
) -> VideoJob:
    return VideoJob(
        videos=(),
        out=str(out),
        config=ExtractConfig(
            sampling=sampling or SamplingConfig(), filters=filters or FilterConfig(), keep=keep
        ),
        duplicates=duplicates or DuplicateConfig(),
        split=split or SplitConfig(validation_share=0.2),
        pack=pack or PackConfig(shard_bytes=16 * 16, clips_per_row_group=3),
        resources=Resources(),
        sidecar=sidecar,
        tokenizer=TOKENIZER,
        redo=redo,
    )


def build(
    job: VideoJob, given: pa.Table, run: RunUnits | None = None, *, left: dict[str, str] | None = None
) -> Built:
    """What `build_from_videos` does once the videos are known, with `run` in place of Ray's workers."""
    settings = claim.video_settings(job)
    with ExitStack() as stack:
        lease = take(stack, job.out, settings, redo=job.redo)
        work = video_work(job, job.out, settings, Found(given, left or {}))
        return complete(
            work, run or writing(job.config.filters, keep=job.config.keep), lease, lambda *_: None
        )


def clips_of(uri: Path | str, keep: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
    """Clip id to the row of each clip of a set, with its split."""
    shard_set = ShardSet.open(str(uri))
    return {
        row["clip_id"]: row | {"split": entry.split}
        for entry in shard_set.manifest.shards
        for row in shard_set.read(entry).to_pylist()
        if keep(row)
    }


def kind_of(uri: Path | str) -> Kind:
    return ShardSet.open(str(uri)).manifest.kind
