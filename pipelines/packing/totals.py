"""The figures of a shard set, as its manifest sums them up."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipelines import shards
from pipelines.shards import Kind, ShardEntry


def totals_of(
    kind: Kind,
    entries: Sequence[ShardEntry],
    sources: pa.Table,
    spans: pa.Table,
    *,
    decode_cpu_seconds: float,
    tokenize_seconds: float,
) -> dict[str, Any]:
    rows = spans.select(["source_id", "outcome", "error_class", "rejected"]).to_pylist()
    rejected: Counter[str] = Counter()
    for row in rows:
        rejected.update(dict(row["rejected"] or []))
    totals = {
        "sources": sources.num_rows,
        "hours": math.fsum(s or 0 for s in sources.column("duration_seconds").to_pylist()) / 3600,
        "spans": dict(sorted(Counter(row["outcome"] for row in rows).items())),
        "failed": _count_errors(row for row in rows if row["outcome"] == "failed"),
        "damaged": _count_errors(row for row in rows if row["outcome"] != "failed"),
        "failed_sources": len({row["source_id"] for row in rows if row["outcome"] == "failed"}),
        "rejected_clips": dict(sorted(rejected.items())),
        "clips": {split: sum(e.rows for e in entries if e.split == split) for split in shards.SPLITS},
        "decode_cpu_seconds": round(decode_cpu_seconds, 3),
        "tokenize_seconds": round(tokenize_seconds, 3),
    }
    if kind == "tokens":
        totals["codes"] = sum(math.prod(entry.shape) * entry.rows for entry in entries)
    return totals


def _count_errors(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(row["error_class"] for row in rows if row["error_class"]).items()))
