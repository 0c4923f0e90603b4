"""The one door to Ray Data: the stages as graphs over a cluster, with finite retries.

One row in, one row out, in every stage: what a kill can cost is a call, never a part of one. Results are
written by the workers; only a few columns come back for progress.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import GetTimeoutError, RayError
from ray.util.annotations import RayDeprecationWarning

from infra import cluster
from infra.errors import ClusterError, ReelgptError
from pipelines.building import calls
from pipelines.building.completion import Watch
from pipelines.building.pace import Devices
from pipelines.building.stages import DecodeSpans, ReadRowGroups, extract_spans, inspect_files, read_frames
from pipelines.building.tokenizing import DecodeAndTokenize, TokenizeRecords
from pipelines.config import DecodeLimits, ExtractConfig, Resources

WORKER_RETRIES = 3
"""Tries of a task or an actor whose worker dies; Ray's own default is without end."""
CALLS_IN_FLIGHT = 2
"""Calls that an actor has been given at a time: one that runs, one that starts when that ends."""
FILES_PER_CALL = 8
ADVICE = "\nFailed to apply UDF transform"
"""How the words begin that Ray Data adds to the message of what a worker raises."""
NO_PROGRESS_SECONDS = 6 * 3600
"""Ray gives a graph up when nothing moves for so long; a call of slow spans may well take an hour."""


def inspect(files: pa.Table, limits: DecodeLimits) -> Iterator[pa.Table]:
    """What comes of looking into files, in parallel, as it comes."""
    sizes = calls.sizes(files.num_rows, workers=cluster.num_cpus(), most=FILES_PER_CALL)
    yield from _results(_map(_blocks(files, sizes), partial(inspect_files, limits=limits)))


def extract(spans: pa.Table, out: str, config: ExtractConfig, resources: Resources, watch: Watch) -> Devices:
    """Spans to records of frames in `out`."""
    sizes = calls.sizes(spans.num_rows, workers=cluster.num_cpus(), most=resources.spans_per_file)
    _drain(_map(_blocks(spans, sizes), partial(extract_spans, config=config, out=out)), watch)
    return Devices(cores=cluster.num_cpus())


def tokenize(
    units: pa.Table,
    source: ExtractConfig | str,
    out: str,
    resources: Resources,
    watch: Watch,
    *,
    tokenizer: str,
    clips_per_batch: int,
) -> Devices:
    """Spans of videos (`source` says how to decode them) or row groups of the frame set `source` to codes in
    `out`.

    Where there are GPUs, the cores decode for them. Where there are none, every core does both: two stages
    would have to be given shares of the cores that no one knows in advance.
    """
    read = ReadRowGroups(source) if isinstance(source, str) else DecodeSpans(source)
    gpus = calls.num_gpus(resources, cluster.num_gpus(), may_grow=cluster.may_grow())
    most = calls.most_tokenizers(resources, gpus=gpus, cpus=cluster.num_cpus())
    readers = cluster.num_cpus() if gpus else most
    sizes = calls.sizes(units.num_rows, workers=readers, most=resources.spans_per_file)
    encoding = {"tokenizer": tokenizer, "clips_per_batch": clips_per_batch, "out": out}
    blocks, needs = _blocks(units, sizes), _needs(resources, gpus)
    with _start_explained(resources, needs):
        pool = _pool(resources, min(most, len(sizes)), needs)
        options: dict[str, Any] = {"compute": pool, "fn_constructor_kwargs": encoding, **needs}
        if gpus:
            frames = _map(blocks, partial(read_frames, read=read))
            codes = _map(frames, TokenizeRecords, batch_size=resources.spans_per_file, **options)
        else:
            options["fn_constructor_kwargs"] = {"read": read, **encoding}
            codes = _map(blocks, DecodeAndTokenize, **options)
        _drain(codes, watch)
    return Devices(cores=cluster.num_cpus(), gpus=gpus)


def _needs(resources: Resources, gpus: int) -> dict[str, float]:
    """What one tokenizer takes of the cluster. Beside a GPU no core: those are for decoding."""
    return {"num_cpus": 0, "num_gpus": resources.gpus_per_tokenizer} if gpus else {"num_cpus": 1}


def _pool(resources: Resources, most: int, needs: dict[str, float]) -> ActorPoolStrategy:
    """Starts as many actors as there is room for now, and grows up to `most` as others leave it."""
    least = min(resources.min_tokenizers, most)
    first = max(least, min(most, cluster.places(**needs))) if cluster.may_grow() else most
    return ActorPoolStrategy(
        min_size=least, max_size=most, initial_size=first, max_tasks_in_flight_per_actor=CALLS_IN_FLIGHT
    )


@contextlib.contextmanager
def _start_explained(resources: Resources, needs: dict[str, float]) -> Iterator[None]:
    DataContext.get_current().wait_for_min_actors_s = resources.start_seconds
    try:
        yield
    except GetTimeoutError:
        each = f"{needs['num_gpus']:g} GPU" if "num_gpus" in needs else "1 CPU"
        raise ClusterError(
            f"the tokenizers did not start within {resources.start_seconds} s: each needs {each}, and "
            f"{cluster.free()} of the cluster are free; add nodes, wait for other jobs, or lower "
            f"--num-tokenizers or --num-gpus"
        ) from None


def _map(
    dataset: Dataset,
    stage: Any,
    *,
    batch_size: int | None = None,
    num_cpus: float = 1,
    **options: Any,
) -> Dataset:
    """One stage, with finite retries: of a task, or of the actors of a class. A block is a call, unless
    `batch_size` says otherwise."""
    retried = ("max_restarts", "max_task_retries") if "compute" in options else ("max_retries",)
    options |= {"batch_size": batch_size, "batch_format": "pyarrow", "num_cpus": num_cpus}
    options |= dict.fromkeys(retried, WORKER_RETRIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # it has no other way yet to bound the retries
        return dataset.map_batches(stage, **options)


def _blocks(table: pa.Table, sizes: list[int]) -> Dataset:
    """Rows to a dataset of a block a call, neighbours together, so that the spans of a source meet in one
    worker."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    context.raise_original_map_exception = True  # the one that Ray puts in its place says nothing
    _quiet(logging.getLogger("ray.data"))
    ends = list(accumulate(sizes))
    blocks = [table.slice(end - size, size).combine_chunks() for end, size in zip(ends, sizes, strict=True)]
    return cast(Dataset, ray.data.from_blocks(blocks))


def _quiet(log: logging.Logger) -> None:
    """Errors go to its file alone: what fails comes as an exception, too."""
    log.setLevel(logging.ERROR)
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _drain(results: Dataset, watch: Watch) -> None:
    for table in _results(results):
        watch(table)


def _results(dataset: Dataset) -> Iterator[pa.Table]:
    """What a graph gives, as it comes. An error of ours inside a worker leaves as itself."""
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except GetTimeoutError:
        raise
    except RayError as error:
        cause = _cause(error)
        sentence = str(cause).partition(ADVICE)[0].strip()
        if isinstance(cause, ReelgptError):
            raise type(cause)(sentence) from None
        last_words = sentence.splitlines()[-1] if sentence else "no word why"
        name = "" if isinstance(cause, RayError) else f"{type(cause).__name__}: "
        raise ClusterError(
            f"Ray's workers failed: {name}{last_words}; what was done is kept: look at its logs, give fewer "
            f"--spans-per-file or more memory, and repeat the command"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What a worker raised: Ray keeps it as `cause`; that of an actor which could not start, one level
    deeper."""
    inner = [getattr(error, "cause", None), *error.args] if isinstance(error, RayError) else []
    found = next((one for one in inner if isinstance(one, Exception)), None)
    return error if found is None else _cause(found)
