"""A shard set from start to seal: what is asked for, what is done already, what is missing, and the sealing.

Every build is the same: claim the output for one recipe and one writer, do the units that have no row yet,
pack. Repeating it after anything goes on from there; repeating a sealed one does nothing.
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from infra import cluster, configs, hashing, storage
from infra.errors import ConfigError, ShardError, UsageError
from infra.leases import Lease
from infra.storage import FileInfo
from pipelines import records, shards
from pipelines.config import ExtractConfig, PackConfig, Resources, SplitConfig
from pipelines.pack import Recipe, pack
from pipelines.shards import Kind, Manifest, ShardSet
from pipelines.spans import Source, cut_spans, held_out, list_videos, row

CONFIG = "config.json"
INVENTORY = "inventory.parquet"
LEASE = "lease.json"
CLIPS_PER_BATCH = 8
"""Clips that a tokenizer encodes at once, always; part of the recipe, since last bits may depend on it."""

OnProgress = Callable[[int, int | None, str], None]
"""Called with the units done, those there are, and what goes on."""
Watch = Callable[[pa.Table], None]
RunUnits = Callable[[pa.Table, Watch], None]
"""Does the units given, telling of each batch that is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A sealed shard set, and what this command did for it."""

    manifest: Manifest
    units: int
    done_before: int
    """Units that had a row when the command started."""
    done_now: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRef:
    """A tokenizer as the driver knows it: its weights are loaded by the workers alone."""

    uri: str
    fingerprint: str
    num_codes: int
    frame_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoJob:
    """Videos to a shard set: of frames, or of codes where a tokenizer is given."""

    videos: tuple[str, ...]
    out: str
    config: ExtractConfig
    split: SplitConfig
    pack: PackConfig
    resources: Resources
    tokenizer: TokenizerRef | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            _check_size(min(map(min, self.config.sampling.frame_sizes)), self.tokenizer)

    @property
    def kind(self) -> Kind:
        return "tokens" if self.tokenizer else "frames"


@dataclass(frozen=True, kw_only=True, slots=True)
class FramesJob:
    """A set of frames to a set of codes, without decoding again."""

    frames: str
    out: str
    tokenizer: TokenizerRef
    pack: PackConfig
    resources: Resources


def build_from_videos(job: VideoJob, on_progress: OnProgress) -> Built:
    files = list_videos(job.videos)
    _check_names(files, job.split.validation)
    out = storage.absolute(job.out)
    config = {"extract": job.config, "split": job.split, "pack": job.pack}
    settings = _claim(
        out, job.kind, {name: configs.to_dict(part) for name, part in config.items()}, job.tokenizer
    )
    with Lease(storage.join(out, LEASE)), ExitStack() as stack:
        on_progress(0, None, f"looking at {len(files)} files")
        sources = _inventory(out, files, job, stack)
        recipe = _recipe(
            settings,
            inputs=sorted(source.source_id for source in sources),
            held_out=held_out(sources, job.split.validation, job.split.validation_share),
            packing=job.pack,
            tokenizer=job.tokenizer,
        )
        spans = [
            row(span) for source in sources for span in cut_spans(source, job.config.sampling.span_seconds)
        ]

        def run(missing: pa.Table, watch: Watch) -> None:
            graph = _graph(stack, job.resources)
            if job.tokenizer is None:
                graph.extract(missing, out, job.config, job.resources, watch)
            else:
                graph.tokenize(missing, job.config, out, job.resources, watch, **_encoding(job.tokenizer))

        return _complete(
            out, recipe, pa.Table.from_pylist(spans), run, _source_table(sources, recipe), None, on_progress
        )


def build_from_frames(job: FramesJob, on_progress: OnProgress) -> Built:
    frames = ShardSet.open(job.frames)
    if frames.manifest.kind != "frames":
        raise UsageError(
            f"{frames.uri} holds {frames.manifest.kind} already; tokenize takes videos or frames"
        )
    if not frames.manifest.shards:
        raise UsageError(f"{frames.uri} holds no clip to tokenize; its sources failed or were filtered out")
    _check_size(min(min(entry.shape[1:3]) for entry in frames.manifest.shards), job.tokenizer)
    out = storage.absolute(job.out)
    parent = frames.manifest.fingerprint
    settings = _claim(
        out,
        "tokens",
        {"frames": parent, "extract": frames.manifest.config["extract"], "pack": configs.to_dict(job.pack)},
        job.tokenizer,
    )
    with Lease(storage.join(out, LEASE)), ExitStack() as stack:
        sources = frames.sources()
        recipe = _recipe(
            settings,
            inputs=[parent],
            held_out=frozenset(s["source_id"] for s in sources.to_pylist() if s["split"] == "validation"),
            packing=job.pack,
            tokenizer=job.tokenizer,
            parents=(parent,),
        )
        units = [
            {"unit_id": f"{entry.path}#{group}", "path": entry.path, "group": group}
            for entry in frames.manifest.shards
            for group in range(len(entry.row_groups))
        ]

        def run(missing: pa.Table, watch: Watch) -> None:
            graph = _graph(stack, job.resources)
            graph.tokenize(missing, frames.uri, out, job.resources, watch, **_encoding(job.tokenizer))

        return _complete(out, recipe, pa.Table.from_pylist(units), run, sources, frames.spans(), on_progress)


def _check_size(size: int, tokenizer: TokenizerRef) -> None:
    if size < tokenizer.frame_size:
        raise ConfigError(
            f"frames of {size} pixels are smaller than the tokenizer's {tokenizer.frame_size}; "
            f"extract larger ones"
        )


def _check_names(files: list[FileInfo], validation: tuple[str, ...]) -> None:
    known = {file.name for file in files}
    for name in validation:
        if name not in known:
            raise ConfigError(
                f"no source is named {name!r} to hold out; there are {', '.join(sorted(known)[:5])}"
            )


def _claim(out: str, kind: Kind, config: dict[str, Any], tokenizer: TokenizerRef | None) -> dict[str, Any]:
    """Makes `out` this recipe's, or finds that it is. Raises UsageError where it holds something else."""
    settings = {"format_version": shards.FORMAT_VERSION, "kind": kind, **config}
    if tokenizer is not None:
        settings |= {"tokenizer": tokenizer.fingerprint, "clips_per_batch": CLIPS_PER_BATCH}
    place = storage.join(out, CONFIG)
    if storage.exists(place):
        _check_same(out, storage.read_json(place), settings)
    elif storage.list_files(out):
        raise UsageError(f"{out} holds something else already; give an empty or a new folder")
    elif not storage.create(place, json.dumps(settings, indent=1).encode()):
        _check_same(out, storage.read_json(place), settings)
    return settings


def _check_same(out: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    for path, before, now in _differences(there, asked):
        raise UsageError(
            f"{out} was made with {path}={before}, not {now}; give another output, or the same settings"
        )


def _differences(there: Any, asked: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(asked, dict):
        names = sorted(there.keys() | asked.keys())
        return [
            found
            for name in names
            for found in _differences(there.get(name), asked.get(name), f"{path}.{name}".strip("."))
        ]
    return [] if there == asked else [(path, there, asked)]


def _graph(stack: ExitStack, resources: Resources) -> Any:
    """The graphs, with Ray up until `stack` ends; imported and started only where there is work."""
    stack.enter_context(
        cluster.connected(num_cpus=resources.num_cpus, object_store_mb=resources.object_store_mb)
    )
    from pipelines import graph

    return graph


def _inventory(out: str, files: list[FileInfo], job: VideoJob, stack: ExitStack) -> list[Source]:
    """The sources behind `files`. A file that storage calls unchanged is not read again."""
    place = storage.join(out, INVENTORY)
    known = shards.read_table(place).to_pylist() if storage.exists(place) else []
    sources = {fields["uri"]: Source(**fields) for fields in known}
    fresh = [file for file in files if not _is_known(file, sources.get(file.uri))]
    if fresh:
        table = pa.Table.from_pylist([asdict(file) for file in fresh])
        found = _graph(stack, job.resources).inspect(table, job.config.limits)
        sources |= {fields["uri"]: Source(**fields) for fields in found.to_pylist()}
        shards.write_table(
            place, pa.Table.from_pylist([row(source) for source in sources.values()], found.schema)
        )
    return [sources[file.uri] for file in files]


def _is_known(file: FileInfo, source: Source | None) -> bool:
    return source is not None and (file.name, file.size, file.modified) == (
        source.name,
        source.size,
        source.modified,
    )


def _recipe(
    settings: dict[str, Any],
    *,
    inputs: list[str],
    held_out: frozenset[str],
    packing: PackConfig,
    tokenizer: TokenizerRef | None,
    parents: tuple[str, ...] = (),
) -> Recipe:
    return Recipe(
        kind=settings["kind"],
        recipe_id=hashing.digest([settings, inputs]),
        config=settings,
        held_out=held_out,
        pack=packing,
        tokenizer=tokenizer.uri if tokenizer else None,
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else None,
        num_codes=tokenizer.num_codes if tokenizer else None,
        parents=parents,
    )


def _source_table(sources: list[Source], recipe: Recipe) -> pa.Table:
    return pa.table(
        {
            "source_id": [source.source_id for source in sources],
            "name": [source.name for source in sources],
            "uri": [source.uri for source in sources],
            "size": [source.size for source in sources],
            "duration_seconds": pa.array([source.duration_seconds for source in sources], pa.float64()),
            "split": ["validation" if source.source_id in recipe.held_out else "train" for source in sources],
        }
    )


def _encoding(tokenizer: TokenizerRef) -> dict[str, Any]:
    return {"tokenizer": tokenizer.uri, "clips_per_batch": CLIPS_PER_BATCH}


def _complete(
    out: str,
    recipe: Recipe,
    units: pa.Table,
    run: RunUnits,
    sources: pa.Table,
    spans: pa.Table | None,
    on_progress: OnProgress,
) -> Built:
    """Does the units without a row, then seals; does nothing where `out` is sealed for this recipe."""
    started = time.perf_counter()
    if storage.exists(storage.join(out, shards.MANIFEST)):
        manifest = _sealed(out, recipe)
        on_progress(units.num_rows, units.num_rows, "")
        return Built(
            manifest=manifest, units=units.num_rows, done_before=units.num_rows, done_now=0, seconds=0.0
        )
    ids = units.column(0).to_pylist()
    done = records.done_units(out) & set(ids)
    missing = units.filter(pa.array([unit not in done for unit in ids]))
    count = len(done)

    def watch(rows: pa.Table) -> None:
        nonlocal count
        count += rows.num_rows
        on_progress(count, len(ids), "")

    on_progress(count, len(ids), "starting")
    if missing.num_rows:
        run(missing, watch)
    _check_complete(out, set(ids))
    on_progress(len(ids), len(ids), "packing")
    manifest = pack(out, recipe, set(ids), sources, spans)
    on_progress(len(ids), len(ids), "")
    return Built(
        manifest=manifest,
        units=len(ids),
        done_before=len(done),
        done_now=missing.num_rows,
        seconds=time.perf_counter() - started,
    )


def _sealed(out: str, recipe: Recipe) -> Manifest:
    manifest = ShardSet.open(out).manifest
    if manifest.recipe_id != recipe.recipe_id:
        raise UsageError(f"{out} is sealed for other sources than those given now; give another output")
    return manifest


def _check_complete(out: str, ids: set[str]) -> None:
    lost = ids - records.done_units(out)
    if lost:
        raise ShardError(f"{len(lost)} units of {out} have no row, such as {min(lost)}; repeat the command")
