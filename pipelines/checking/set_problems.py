"""What is wrong with a set as a whole, once each of its files is as it was sealed.

Does the manifest follow from what is there? Counts, totals, split, a row for every span, recipe id and
fingerprint.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import configs
from infra.errors import ConfigError
from pipelines.building import claim
from pipelines.checking.shard_problems import Clips
from pipelines.config import SamplingConfig
from pipelines.error_classes import ERROR_CLASSES
from pipelines.packing.fingerprints import fingerprint_of, span_digests
from pipelines.packing.totals import totals_of
from pipelines.records import OUTCOME_FIELDS
from pipelines.shards import PAYLOAD, SPLITS, Manifest, ShardEntry
from pipelines.spans import SOURCE_SCHEMA, span_table

HOURS_TOLERANCE = 1e-9
"""Relative; the sum of a million durations."""
TIMINGS = {"decode_cpu_seconds", "tokenize_seconds"}
"""Totals that nothing in a set tells."""
SOURCE_COLUMNS = (*(name for name in SOURCE_SCHEMA.names if name != "modified"), "split")


def manifest_problems(manifest: Manifest) -> list[str]:
    """What the manifest itself says that cannot be."""
    paths = [entry.path for entry in manifest.shards]
    problems = [
        f"{path} stands in the manifest more than once" for path, n in Counter(paths).items() if n > 1
    ]
    problems += [problem for entry in manifest.shards for problem in _entry_problems(entry, manifest)]
    for table in (manifest.sources, manifest.spans):
        if "/" in table.path or not table.path.endswith(".parquet"):
            problems.append(f"{table.path} is no table of this set")
    if manifest.kind == "tokens" and not (manifest.tokenizer_fingerprint and manifest.num_codes):
        problems.append("the manifest does not say which tokenizer the codes are of")
    return problems


def _entry_problems(entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    bucket = f"shards/{entry.split}-{'x'.join(map(str, entry.shape))}-"
    if not entry.path.startswith(bucket) or "/" in entry.path.removeprefix(bucket):
        yield f"{entry.path} is no shard of {entry.split} clips of shape {list(entry.shape)}"
    if not entry.row_groups or min(entry.row_groups) < 1 or min(entry.shape, default=0) < 1:
        yield f"{entry.path} has an empty row group or shape in the manifest"
    if len(entry.shape) != (3 if PAYLOAD[manifest.kind][1] == "grid" else 4):
        yield f"{entry.path} has a shape of {len(entry.shape)} sides, which {manifest.kind} do not have"


def lacking_columns(table: pa.Table, is_sources: bool) -> list[str]:
    needed = SOURCE_COLUMNS if is_sources else [column.name for column in OUTCOME_FIELDS]
    lacking = [name for name in needed if name not in table.column_names]
    return [f"lacks the columns {', '.join(lacking)}"] if lacking else []


def whole_problems(manifest: Manifest, sources: pa.Table, spans: pa.Table, clips: Clips) -> list[str]:
    ids = pa.chunked_array([chunk for ids in clips.ids for chunk in ids.chunks], pa.string())
    return [
        *_repeated(ids, "clip"),
        *_repeated(sources.column("source_id"), "source"),
        *_repeated(spans.column("span_id"), "span"),
        *_split_problems(sources),
        *_grid_problems(manifest, sources, spans),
        *_outcome_problems(spans, _clips_by_span(clips)),
        *_total_problems(manifest, sources, spans),
        *_hash_problems(manifest, sources, spans, clips),
    ]


def _repeated(ids: pa.ChunkedArray, what: str) -> Iterator[str]:
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        yield f"{len(twice):,} {what}s are there more than once, such as {twice[0]}"


def _split_problems(sources: pa.Table) -> Iterator[str]:
    split = sources.column("split")
    odd = sources.filter(pc.invert(pc.is_in(split, pa.array(SPLITS)))).column("source_id")
    if len(odd):
        yield f"{len(odd):,} sources are neither for training nor held out, such as {odd[0]}"


def _grid_problems(manifest: Manifest, sources: pa.Table, spans: pa.Table) -> Iterator[str]:
    """Every span of every source has a row, and no other span has."""
    try:
        seconds = configs.from_dict(SamplingConfig, manifest.config["rows"]["sampling"]).span_seconds
    except (KeyError, TypeError, ConfigError) as error:
        yield f"the config in the manifest does not say how the videos were sampled ({error})"
        return
    wanted = span_table(sources, seconds).column("span_id").combine_chunks()
    found = spans.column("span_id").combine_chunks()
    missing = wanted.filter(pc.invert(pc.is_in(wanted, found)))
    strange = found.filter(pc.invert(pc.is_in(found, wanted)))
    if len(missing):
        yield f"{len(missing):,} spans have no row, such as {missing[0]}"
    if len(strange):
        yield f"{len(strange):,} rows are of no span of the sources, such as {strange[0]}"


def _clips_by_span(clips: Clips) -> dict[str, int]:
    ids = pa.chunked_array([chunk for ids in clips.span_ids for chunk in ids.chunks], pa.string())
    counts = pc.value_counts(ids)
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def _outcome_problems(spans: pa.Table, clips: dict[str, int]) -> Iterator[str]:
    """What the row of a span says beside the clips that are there of it."""
    columns = ("span_id", "outcome", "error_class", "num_clips")
    known = set(spans.column("span_id").to_pylist())
    if strange := clips.keys() - known:
        yield f"{len(strange):,} spans have clips but no row, such as {min(strange)}"
    wrong: dict[str, list[str]] = {}
    for span_id, outcome, error_class, num_clips in zip(
        *(spans.column(name).to_pylist() for name in columns), strict=True
    ):
        if num_clips != clips.get(span_id, 0):
            wrong.setdefault("say another number of clips than are there", []).append(span_id)
        if outcome != ("ok" if num_clips else "failed" if error_class else "filtered"):
            wrong.setdefault("say an outcome that does not follow from their clips and error", []).append(
                span_id
            )
        if error_class is not None and error_class not in ERROR_CLASSES:
            wrong.setdefault("have an error of no known class", []).append(span_id)
    for what, ids in wrong.items():
        yield f"the rows of {len(ids):,} spans {what}, such as {ids[0]}"


def _total_problems(manifest: Manifest, sources: pa.Table, spans: pa.Table) -> Iterator[str]:
    said = manifest.totals
    counted = totals_of(
        manifest.kind, manifest.shards, sources, spans, decode_cpu_seconds=0.0, tokenize_seconds=0.0
    )
    for name in sorted((said.keys() | counted.keys()) - TIMINGS):
        if not _same(said.get(name), counted.get(name)):
            yield f"the manifest says {name}={said.get(name)}, and there are {counted.get(name)}"


def _same(said: Any, counted: Any) -> bool:
    if isinstance(counted, float) and isinstance(said, float):
        return math.isclose(said, counted, rel_tol=HOURS_TOLERANCE)
    return bool(said == counted)


def _hash_problems(manifest: Manifest, sources: pa.Table, spans: pa.Table, clips: Clips) -> Iterator[str]:
    if fingerprint_of(clips.digests, span_digests(spans)) != manifest.fingerprint:
        yield "the fingerprint of the manifest does not follow from the clips and spans"
    if claim.recipe_id_of(manifest, sources) != manifest.recipe_id:
        yield "the recipe id of the manifest does not follow from its config and sources"
