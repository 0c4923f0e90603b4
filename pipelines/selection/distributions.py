"""How the scores of a set's clips lie, kept and rejected ones, so that one can choose thresholds by them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines import records
from pipelines.selection.filters import RULES
from pipelines.selection.verdicts import filters_of
from pipelines.shards import ShardSet

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
MOST_CLIPS = 1 << 16
"""Clips that are looked at: of more, those with certain hashes of their ids, the same on every machine."""
FACTS = ("clip_id", "scores")


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Of one score, and the threshold that judges by it."""

    score: str
    setting: str
    threshold: float
    quantiles: tuple[float, ...]
    """At each of QUANTILES."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distributions:
    clips: int
    """How many were looked at."""
    rejected_too: bool
    """Whether rejected ones were among them: a swept set knows no more of those."""
    scores: tuple[Distribution, ...]


def distributions(shard_set: ShardSet) -> Distributions:
    """Reads the scores in the shards, and in the span files where these are still there."""
    manifest = shard_set.manifest
    sampled, has_rows = _Sample(), False
    for entry in manifest.shards:
        sampled.add(shard_set.read(entry, list(FACTS)))
    for table in _clips_in_rows(shard_set):
        sampled.add(table)
        has_rows = has_rows or table.num_rows > 0
    filters = filters_of(manifest)
    return Distributions(
        clips=len(sampled.scores),
        rejected_too=has_rows,
        scores=tuple(
            Distribution(
                score=rule.score,
                setting=rule.setting,
                threshold=getattr(filters, rule.setting),
                quantiles=tuple(np.quantile(values, QUANTILES).tolist()),
            )
            for rule in RULES
            if len(values := sampled.values_of(rule.score))
        ),
    )


def _clips_in_rows(shard_set: ShardSet) -> Iterator[pa.Table]:
    """Of units that are spans: where codes were made of frames, rows hold no rejected clip."""
    manifest = shard_set.manifest
    place = records.place_of(shard_set.uri, manifest.kind, manifest.config["rows"])
    spans = set(shard_set.spans().column("span_id").to_pylist())
    columns = ["span_id", *(f"clips.list.element.{name}" for name in FACTS)]
    for table in records.tables(place, columns):
        wanted = [span in spans for span in table.column("span_id").to_pylist()]
        yield records.clips_of(table.filter(pa.array(wanted, pa.bool_())))


class _Sample:
    """Scores by clip id, of all clips, or of every 2nd, 4th, 8th, ... by the hash of its id. Which ones does
    not depend on the order in which they come, nor on how often."""

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, float]] = {}
        self._step = 1

    def add(self, clips: pa.Table) -> None:
        ids = clips.column("clip_id").to_pylist()
        chosen = [row for row, clip_id in enumerate(ids) if _number(clip_id) % self._step == 0]
        scores = clips.column("scores").take(pa.array(chosen, pa.int64())).to_pylist()
        self.scores |= {ids[row]: dict(found or []) for row, found in zip(chosen, scores, strict=True)}
        while len(self.scores) > MOST_CLIPS:
            self._step *= 2
            self.scores = {
                clip_id: found for clip_id, found in self.scores.items() if _number(clip_id) % self._step == 0
            }

    def values_of(self, score: str) -> list[float]:
        return [found[score] for found in self.scores.values() if score in found]


def _number(clip_id: str) -> int:
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8])
