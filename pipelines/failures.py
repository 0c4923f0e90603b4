"""Spans that failed, in whole or in part, and another try of them.

A try takes the settings from the set itself. Rows with the error are forgotten first, so that a retry that is
killed and repeated goes on; until the new manifest is there, the old set is whole.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from infra import configs, storage
from infra.errors import UsageError
from pipelines import records
from pipelines.building import claim
from pipelines.building.build import run_on_videos, take
from pipelines.building.completion import complete
from pipelines.building.job import Built, OnProgress, TokenizerRef
from pipelines.building.work import retry_work
from pipelines.config import DecodeLimits, Resources
from pipelines.error_classes import ERROR_CLASSES
from pipelines.shards import Manifest, ShardSet


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryJob:
    shards: str
    error_class: str
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    """What differs from the defaults; for the rest, the limits of the set hold."""
    resources: Resources = field(default_factory=Resources)
    tokenizer: TokenizerRef | None = None
    """For a set of codes: the one that made them."""


def failures_of(uri: str) -> pa.Table:
    """The spans with an error, failed or damaged, by class and source; of a set that is not sealed, those so
    far. Columns: those of an outcome."""
    out = storage.absolute(uri)
    sealed = claim.sealed(out)
    rows = sealed.spans() if sealed else _rows_so_far(out)
    order = [(name, "ascending") for name in ("error_class", "source", "start_seconds")]
    return rows.filter(pc.is_valid(rows.column("error_class"))).sort_by(order)


def _rows_so_far(out: str) -> pa.Table:
    place = storage.join(out, claim.CONFIG)
    if not storage.exists(place):
        ShardSet.open(out)  # raises: it says what is there instead
    settings = storage.read_json(place)
    names = [column.name for column in records.OUTCOME_FIELDS]
    rows = records.tables(records.place_of(out, settings["kind"], settings["rows"]), names)
    return pa.concat_tables([pa.schema(records.OUTCOME_FIELDS).empty_table(), *rows])


def retry(job: RetryJob, on_progress: OnProgress) -> Built | None:
    """Does the spans of a class again and seals the set anew; None where it has no such span."""
    started, shard_set = time.perf_counter(), ShardSet.open(job.shards)
    manifest = shard_set.manifest
    _check(job, manifest)
    failed = failures_of(job.shards)
    failed = failed.filter(pc.equal(failed.column("error_class"), job.error_class))
    if not failed.num_rows:
        return None
    config = claim.extract_config(manifest.config)
    config = replace(config, limits=configs.overlaid(config.limits, job.limits))
    settings = manifest.config | {"limits": configs.to_dict(config.limits)}
    with ExitStack() as stack:
        lease = take(stack, shard_set.uri, settings, redo=False)
        work = retry_work(shard_set, settings, failed, job.tokenizer)
        records.forget(work.place, set(failed.column("span_id").to_pylist()), job.error_class)
        run = run_on_videos(stack, config, job.tokenizer, job.resources)
        built = complete(work, run, lease, on_progress)
    return replace(built, seconds=time.perf_counter() - started)


def _check(job: RetryJob, manifest: Manifest) -> None:
    if job.error_class not in ERROR_CLASSES:
        raise UsageError(f"there is no error class {job.error_class!r}; there are {', '.join(ERROR_CLASSES)}")
    if job.error_class == "unreadable":
        raise UsageError(
            "what could not be read has no content to go by; repeat the command that made the set: it takes "
            "in files that can be read now"
        )
    if "base" in manifest.config:
        raise UsageError(
            f"{job.shards} was made from another set; retry what failed where the videos were decoded, then "
            f"repeat the command that made this one"
        )
    made_by = manifest.tokenizer_fingerprint
    if made_by and (job.tokenizer is None or job.tokenizer.fingerprint != made_by):
        raise UsageError(
            f"{job.shards} was made by the tokenizer {made_by[:12]}; give that one with --tokenizer"
        )
