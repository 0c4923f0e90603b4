"""Which clips a packing keeps: thresholds applied (again) to stored scores, then duplicates over the set.

Rows keep the scores of every clip, so that thresholds may change without decoding. Where a row was judged by
the same thresholds already, what it says stands.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import pyarrow as pa

from infra import configs, hashing
from pipelines.config import DuplicateConfig, FilterConfig
from pipelines.selection.duplicates import Copy
from pipelines.selection.filters import reject_reason
from pipelines.shards import Manifest

FACTS = ("clip_id", "source_id", "span_id", "num_frames", "scores", "content_hash", "perceptual_hash")
"""What is known of a clip beside its shape and payload, and may decide whether it is kept."""

Changes = dict[str, Counter[str | None]]
"""Of each span, how many clips of each verdict (None: kept) are more or fewer than its row says."""


@cache
def thresholds_key(filters: FilterConfig) -> str:
    """What `judged_by` says of rows that these thresholds judged."""
    return hashing.digest(configs.to_dict(filters))[:16]


def filters_of(manifest: Manifest) -> FilterConfig:
    """The thresholds that a set was packed with."""
    return configs.from_dict(FilterConfig, manifest.config["packing"]["filters"])


def duplicates_of(manifest: Manifest) -> DuplicateConfig:
    """What counted as a copy when a set was packed."""
    return configs.from_dict(DuplicateConfig, manifest.config["packing"]["duplicates"])


def verdicts(clips: pa.Table, filters: FilterConfig, copies: Mapping[str, Copy]) -> list[str | None]:
    """Of each clip why it is rejected, or None where it is kept. clips: FACTS, `rejected`, `judged_by`."""
    found = _by_thresholds(clips, filters)
    if copies:
        ids = clips.column("clip_id").to_pylist()
        found = [verdict or _reason(copies.get(one)) for verdict, one in zip(found, ids, strict=True)]
    return found


def _reason(copy: Copy | None) -> str | None:
    return copy.reason if copy else None


def _by_thresholds(clips: pa.Table, filters: FilterConfig) -> list[str | None]:
    key = thresholds_key(filters)
    said: list[str | None] = clips.column("rejected").to_pylist()
    judged = clips.column("judged_by").to_pylist()
    if all(by == key for by in judged):
        return said
    facts = zip(clips.column("scores").to_pylist(), clips.column("num_frames").to_pylist(), strict=True)
    return [reject_reason(dict(scores or []), num_frames, filters) for scores, num_frames in facts]


def count_changes(changes: Changes, clips: pa.Table, found: list[str | None]) -> None:
    """Adds to `changes` where the verdicts found differ from what the rows say."""
    said = clips.column("rejected").to_pylist()
    if said == found:
        return
    for span_id, before, now in zip(clips.column("span_id").to_pylist(), said, found, strict=True):
        if before != now:
            changes.setdefault(span_id, Counter()).update({before: -1})
            changes[span_id].update({now: 1})


def changed_outcomes(outcomes: pa.Table, changes: Changes) -> pa.Table:
    """The outcomes of spans once `changes` are made to them."""
    touched = [span_id in changes for span_id in outcomes.column("span_id").to_pylist()]
    if not any(touched):
        return outcomes
    rows = outcomes.filter(pa.array(touched)).to_pylist()
    mended = pa.Table.from_pylist([_changed(row, changes[row["span_id"]]) for row in rows], outcomes.schema)
    return pa.concat_tables([outcomes.filter(pa.array([not one for one in touched])), mended])


def _changed(row: dict[str, Any], change: Counter[str | None]) -> dict[str, Any]:
    rejected = Counter(dict(row["rejected"] or []))
    rejected.update({reason: count for reason, count in change.items() if reason is not None})
    kept = row["num_clips"] + change[None]
    return row | {
        "num_clips": kept,
        "rejected": sorted((reason, count) for reason, count in rejected.items() if count),
        "outcome": "ok" if kept else "failed" if row["error_class"] else "filtered",
    }
