"""The one door to Ray Data: the stages as graphs over a cluster, with finite retries.

One row in, one row out, in every stage: what a kill can cost is a unit, never a part of one. Results are
written by the workers; only a few columns come back for progress.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from infra import cluster
from infra.errors import ClusterError, ReelgptError
from pipelines.config import DecodeLimits, ExtractConfig, Resources
from pipelines.stages import TokenizeRecords, WriteRecords, decode_spans, inspect_files, read_row_groups

WORKER_RETRIES = 3
"""Tries of a task or an actor whose worker dies; Ray's own default is without end."""
START_SECONDS = 300.0
"""How long tokenizer actors may take to start before a cluster counts as too small for them."""
UNITS_PER_BLOCK = 8
SHARED_CORE = 0.5
"""Decoding and tokenizing share the cores: each asks for half of one, so that neither starves the other."""

Watch = Callable[[pa.Table], None]
"""Called with a few columns of the rows just done."""


def inspect(files: pa.Table, limits: DecodeLimits) -> pa.Table:
    """Files to sources, in parallel."""
    found = _map(_blocks(files), partial(inspect_files, limits=limits))
    return pa.concat_tables(_results(found))


def extract(spans: pa.Table, out: str, config: ExtractConfig, resources: Resources, watch: Watch) -> None:
    """Spans to records of frames in `out`."""
    decoded = _map(_blocks(spans), partial(decode_spans, config=config))
    _drain(_map(decoded, WriteRecords(out), batch_size=resources.spans_per_file), watch)


def tokenize(
    units: pa.Table,
    source: ExtractConfig | str,
    out: str,
    resources: Resources,
    watch: Watch,
    *,
    tokenizer: str,
    clips_per_batch: int,
) -> None:
    """Spans of videos (`source` says how to decode them) or row groups of the frame set `source` to codes in
    `out`."""
    read = (
        partial(read_row_groups, frames_uri=source)
        if isinstance(source, str)
        else partial(decode_spans, config=source)
    )
    gpus = cluster.num_gpus()
    codes = _map(
        _map(_blocks(units), read, num_cpus=SHARED_CORE),
        TokenizeRecords,
        fn_constructor_kwargs={"tokenizer": tokenizer, "clips_per_batch": clips_per_batch, "out": out},
        compute=ActorPoolStrategy(size=_num_tokenizers(resources, units.num_rows, gpus)),
        batch_size=resources.spans_per_file,
        num_cpus=SHARED_CORE,
        num_gpus=1 if gpus else 0,
    )
    _drain(codes, watch)


def _num_tokenizers(resources: Resources, num_units: int, gpus: int) -> int:
    most = gpus or cluster.num_cpus()  # at SHARED_CORE each, half of the cores stay for decoding
    wanted = min(resources.num_tokenizers or most, most)
    return max(1, min(wanted, math.ceil(num_units / resources.spans_per_file)))


def _map(
    dataset: Dataset, stage: Any, *, batch_size: int = 1, num_cpus: float = 1, **options: Any
) -> Dataset:
    """One stage, with finite retries: of a task, or of the actors of a class."""
    retried = ("max_restarts", "max_task_retries") if "compute" in options else ("max_retries",)
    options |= {"batch_size": batch_size, "batch_format": "pyarrow", "num_cpus": num_cpus}
    options |= dict.fromkeys(retried, WORKER_RETRIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # it has no other way yet to bound the retries
        return dataset.map_batches(stage, **options)


def _blocks(table: pa.Table) -> Dataset:
    """Rows to a dataset of small blocks, neighbours together, so that the spans of a source meet in one
    worker."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = int(START_SECONDS)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    starts = range(0, table.num_rows, _units_per_block(table.num_rows))
    blocks = [table.slice(start, _units_per_block(table.num_rows)).combine_chunks() for start in starts]
    return cast(Dataset, ray.data.from_arrow(blocks))


def _units_per_block(num_units: int) -> int:
    return max(1, min(UNITS_PER_BLOCK, num_units // (4 * cluster.num_cpus())))


def _drain(results: Dataset, watch: Watch) -> None:
    for table in _results(results):
        watch(table)


def _results(dataset: Dataset) -> Iterator[pa.Table]:
    """What a graph gives, as it comes. An error of ours inside a worker leaves as itself."""
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ReelgptError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from None
        last_words = str(error).strip().splitlines()[-1]
        raise ClusterError(
            f"Ray's workers failed: {last_words}; what was done is kept: look at its logs, give fewer "
            f"--spans-per-file or more memory, and repeat the command"
        ) from error
