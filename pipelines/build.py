"""A shard set from start to seal: what is asked for, what is done already, what is missing, and the sealing.

Every build is the same: claim the output for one writer, find the units that have no row yet, do those,
pack. Repeating it after anything goes on from there; repeating a sealed one does nothing; with more videos it
appends.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from infra import cluster, storage
from infra.errors import ConfigError, ShardError, UsageError
from infra.leases import Lease
from infra.storage import FileInfo
from pipelines import claim, inventory, source_cache
from pipelines.config import Resources
from pipelines.job import Built, FramesJob, OnProgress, TokenizerRef, VideoJob
from pipelines.origins import complete_units
from pipelines.pack import pack
from pipelines.shards import ShardSet
from pipelines.spans import list_videos
from pipelines.work import Work, frame_work, video_work

Watch = Callable[[pa.Table], None]
RunUnits = Callable[[pa.Table, str, Watch], None]
"""Does the units given, writing their rows into the folder named and telling of each batch that is done."""


def build_from_videos(job: VideoJob, on_progress: OnProgress) -> Built:
    files = list_videos(job.videos)
    out, settings = storage.absolute(job.out), claim.video_settings(job)
    _check_names(files, job.split.validation, out)
    with ExitStack() as stack:
        _take(stack, out, settings, redo=job.redo)
        on_progress(0, None, f"looking at {len(files)} files")
        given = inventory.sources_of(
            out, files, lambda fresh: _graph(stack, job.resources).inspect(fresh, job.config.limits)
        )

        def run(missing: pa.Table, place: str, watch: Watch) -> None:
            graph = _graph(stack, job.resources)
            if job.tokenizer is None:
                graph.extract(missing, place, job.config, job.resources, watch)
            else:
                graph.tokenize(missing, job.config, place, job.resources, watch, **_encoding(job.tokenizer))

        return _complete(video_work(job, out, settings, given), run, on_progress)


def build_from_frames(job: FramesJob, on_progress: OnProgress) -> Built:
    frames = _frames_to_tokenize(job)
    out, settings = storage.absolute(job.out), claim.frame_settings(job, frames.manifest)
    with ExitStack() as stack:
        _take(stack, out, settings, redo=job.redo, lineage=frames.manifest.parents)

        def run(missing: pa.Table, place: str, watch: Watch) -> None:
            graph = _graph(stack, job.resources)
            graph.tokenize(missing, frames.uri, place, job.resources, watch, **_encoding(job.tokenizer))

        return _complete(frame_work(job, out, settings, frames), run, on_progress)


def _frames_to_tokenize(job: FramesJob) -> ShardSet:
    frames = ShardSet.open(job.frames)
    if frames.manifest.kind != "frames":
        raise UsageError(
            f"{frames.uri} holds {frames.manifest.kind} already; tokenize takes videos or frames"
        )
    if not frames.manifest.shards:
        raise UsageError(f"{frames.uri} holds no clip to tokenize; its sources failed or were filtered out")
    job.tokenizer.check_size(min(min(entry.shape[1:3]) for entry in frames.manifest.shards))
    return frames


def _check_names(files: list[FileInfo], validation: tuple[str, ...], out: str) -> None:
    if not validation:
        return
    known = {file.name for file in files}
    known |= set(inventory.known_sources(out).column("name").to_pylist())
    for name in validation:
        if name not in known:
            raise ConfigError(
                f"no source is named {name!r} to hold out; there are {', '.join(sorted(known)[:5])}"
            )


def _take(
    stack: ExitStack, out: str, settings: claim.Settings, *, redo: bool, lineage: tuple[str, ...] = ()
) -> None:
    """Makes this command the writer of `out`, with these settings, until `stack` ends."""
    there = claim.claim(out, settings)
    if not redo:
        claim.refuse_to_redo(out, there, settings, lineage)
    stack.enter_context(Lease(storage.join(out, claim.LEASE)))
    if there != settings:
        claim.reclaim(out, settings)


def _graph(stack: ExitStack, resources: Resources) -> Any:
    """The graphs, with Ray up until `stack` ends; imported and started only where there is work."""
    stack.callback(source_cache.clear_unused)
    stack.enter_context(
        cluster.connected(num_cpus=resources.num_cpus, object_store_mb=resources.object_store_mb)
    )
    from pipelines import graph

    return graph


def _encoding(tokenizer: TokenizerRef) -> dict[str, Any]:
    return {"tokenizer": tokenizer.uri, "clips_per_batch": claim.CLIPS_PER_BATCH}


def _complete(work: Work, run: RunUnits, on_progress: OnProgress) -> Built:
    """Does the units without a row, then seals; does nothing where all that is asked for is sealed."""
    started = time.perf_counter()
    if work.there and work.is_sealed():
        units = len(work.ids)
        on_progress(units, units, "")
        return Built(manifest=work.there.manifest, units=units, done_before=units, done_now=0, seconds=0.0)
    done = _done(work)
    missing = work.units.filter(pa.array([unit not in done for unit in work.ids]))
    count = num_done = len(work.ids) - missing.num_rows

    def watch(rows: pa.Table) -> None:
        nonlocal count
        count += rows.num_rows
        on_progress(count, len(work.ids), "")

    on_progress(count, len(work.ids), "starting")
    if missing.num_rows:
        run(missing, work.place, watch)
    _check_complete(work)
    on_progress(len(work.ids), len(work.ids), "packing")
    manifest = pack(work.out, work.recipe, work.parts())
    on_progress(len(work.ids), len(work.ids), "")
    return Built(
        manifest=manifest,
        units=len(work.ids),
        done_before=num_done,
        done_now=missing.num_rows,
        seconds=time.perf_counter() - started,
    )


def _done(work: Work) -> set[str]:
    recipe = work.recipe
    return complete_units(work.place, recipe.kind, recipe.filters) | work.sealed


def _check_complete(work: Work) -> None:
    lost = set(work.ids) - _done(work)
    if lost:
        raise ShardError(
            f"{len(lost)} units of {work.out} have no row, such as {min(lost)}; repeat the command"
        )
