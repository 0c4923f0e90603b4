"""A shard set from start to seal: what is asked for, what is done already, what is missing, and the sealing.

Every build is the same: claim the output for one writer, find the units that have no row yet, do those,
pack. Repeating it after anything goes on from there; repeating a sealed one does nothing; with more videos it
appends.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa

from infra import cluster, storage
from infra.errors import ConfigError, UsageError
from infra.leases import Lease
from infra.storage import FileInfo
from pipelines.building import claim, inventory, stages
from pipelines.building.completion import RunUnits, Watch, complete
from pipelines.building.job import Built, FramesJob, OnProgress, TokenizerRef, VideoJob
from pipelines.building.pace import Devices
from pipelines.building.work import frame_work, video_work
from pipelines.config import DecodeLimits, ExtractConfig, Resources
from pipelines.decoding import source_cache
from pipelines.shards import ShardSet
from pipelines.spans import find_videos

FEW_FILES = 128
"""Looking into one takes 15 ms as a rule, and starting a worker for it two seconds."""
SECONDS_HERE = 5.0
"""Then the rest goes to workers: raw streams and damaged files are read whole, and a decoder may hang."""


def build_from_videos(job: VideoJob, on_progress: OnProgress) -> Built:
    started = time.perf_counter()
    listing = find_videos(job.videos, job.exclude)
    files = listing.files
    out, settings = storage.absolute(job.out), claim.video_settings(job)
    _check_names(files, job.split.validation, out)
    with ExitStack() as stack:
        lease = take(stack, out, settings, redo=job.redo)
        on_progress(0, None, f"looking at {len(files)} files")
        found = inventory.sources_of(out, files, lambda fresh: _inspected(stack, job, fresh, on_progress))
        run = run_on_videos(stack, job.config, job.tokenizer, job.resources)
        built = complete(video_work(job, out, settings, found), run, lease, on_progress)
    return replace(built, passed_over=listing.passed_over, seconds=time.perf_counter() - started)


def build_from_frames(job: FramesJob, on_progress: OnProgress) -> Built:
    started, frames = time.perf_counter(), _frames_to_tokenize(job)
    out, settings = storage.absolute(job.out), claim.frame_settings(job, frames.manifest)
    with ExitStack() as stack:
        lease = take(stack, out, settings, redo=job.redo, lineage=_lineage(out, frames))

        def run(missing: pa.Table, place: str, watch: Watch) -> Devices:
            graph = _graph(stack, job.resources)
            devices: Devices = graph.tokenize(
                missing, frames.uri, place, job.resources, watch, **_encoding(job.tokenizer)
            )
            return devices

        built = complete(frame_work(job, out, settings, frames), run, lease, on_progress)
    return replace(built, seconds=time.perf_counter() - started)


def run_on_videos(
    stack: ExitStack, config: ExtractConfig, tokenizer: TokenizerRef | None, resources: Resources
) -> RunUnits:
    """Decodes spans, and tokenizes them where a tokenizer is given; Ray stays up until `stack` ends."""

    def run(missing: pa.Table, place: str, watch: Watch) -> Devices:
        graph = _graph(stack, resources)
        devices: Devices
        if tokenizer is None:
            devices = graph.extract(missing, place, config, resources, watch)
        else:
            devices = graph.tokenize(missing, config, place, resources, watch, **_encoding(tokenizer))
        return devices

    return run


def _frames_to_tokenize(job: FramesJob) -> ShardSet:
    frames = ShardSet.open(job.frames)
    if frames.manifest.kind != "frames":
        raise UsageError(
            f"{frames.uri} holds {frames.manifest.kind} already; tokenize takes videos or frames"
        )
    if claim.scores_alone(frames.manifest.config):
        raise UsageError(f"{frames.uri} holds scores alone; extract it without --score-only first")
    if not frames.manifest.shards:
        raise UsageError(f"{frames.uri} holds no clip to tokenize; its sources failed or were filtered out")
    job.tokenizer.check_size(min(min(entry.shape[1:3]) for entry in frames.manifest.shards))
    return frames


def _lineage(out: str, frames: ShardSet) -> tuple[str, ...]:
    """What the frames were before, if all that `out` took of them is still among them."""
    there = claim.sealed(out)
    shards = {entry.sha256 for entry in frames.manifest.shards}
    return frames.manifest.parents if there is None or shards.issuperset(there.manifest.inputs) else ()


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


def take(
    stack: ExitStack, out: str, settings: claim.Settings, *, redo: bool, lineage: tuple[str, ...] = ()
) -> Lease:
    """Makes this command the writer of `out`, with these settings, until `stack` ends."""
    there = claim.claim(out, settings)
    if not redo:
        claim.refuse_to_redo(out, there, settings, lineage)
    lease = stack.enter_context(Lease(storage.join(out, claim.LEASE)))
    if there != settings:
        claim.reclaim(out, settings)
    return lease


def _inspected(
    stack: ExitStack, job: VideoJob, files: pa.Table, on_progress: OnProgress
) -> Iterator[pa.Table]:
    """What comes of looking into files, as it comes: a few local ones are done here, before a worker of Ray's
    has started, and what is left of them after some seconds by its workers."""
    limits, count = job.config.limits, 0
    is_here = files.num_rows <= FEW_FILES and all(map(storage.is_local, files.column("uri").to_pylist()))

    def tables() -> Iterator[pa.Table]:
        if is_here:
            yield from _inspected_here(files, limits)
        if count < files.num_rows:
            yield from _graph(stack, job.resources).inspect(files.slice(count), limits)

    for found in tables():
        count += found.num_rows
        on_progress(0, None, f"looked into {count} of {files.num_rows} new files")
        yield found


def _inspected_here(files: pa.Table, limits: DecodeLimits) -> Iterator[pa.Table]:
    """The first ones: none is begun after SECONDS_HERE."""
    until = time.monotonic() + SECONDS_HERE
    try:
        for number in range(files.num_rows):
            if time.monotonic() >= until:
                return
            yield stages.inspect_files(files.slice(number, 1), limits)
    finally:
        stages.decoder_of_this_process(limits).close()


def _graph(stack: ExitStack, resources: Resources) -> Any:
    """The graphs, with Ray up until `stack` ends; imported and started only where there is work."""
    stack.callback(source_cache.clear_unused)
    stack.enter_context(
        cluster.connected(num_cpus=resources.num_cpus, object_store_mb=resources.object_store_mb)
    )
    from pipelines.building import graph

    return graph


def _encoding(tokenizer: TokenizerRef) -> dict[str, Any]:
    return {"tokenizer": tokenizer.uri, "clips_per_batch": claim.CLIPS_PER_BATCH}
