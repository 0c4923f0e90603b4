"""A set from another one, without decoding or encoding: without some sources, under tighter thresholds, with
another split or packing."""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa

from infra import configs, storage
from infra.errors import UsageError
from pipelines.building import claim
from pipelines.building.build import take
from pipelines.building.job import Built, DeriveJob, OnProgress
from pipelines.building.work import with_split
from pipelines.config import DuplicateConfig, FilterConfig, PackConfig, SplitConfig
from pipelines.packing.origins import ShardOrigin
from pipelines.packing.pack import Parts, Recipe, pack
from pipelines.selection.duplicates import counts_more
from pipelines.selection.filters import is_tighter
from pipelines.selection.verdicts import duplicates_of, filters_of
from pipelines.shards import ShardSet
from pipelines.spans import held_out, validation_of


def derive(job: DeriveJob, on_progress: OnProgress) -> Built:
    """Raises UsageError where a source is not in the base, or thresholds ask for clips that it left out."""
    started = time.perf_counter()
    base, out = ShardSet.open(job.base), storage.absolute(job.out)
    if base.uri == out:
        raise UsageError(f"{out} cannot be derived from itself; give another output")
    if claim.scores_alone(base.manifest.config):
        raise UsageError(f"{base.uri} holds scores alone; extract it without --score-only first")
    sources = _remaining(base, job.exclude)
    settings = claim.derived_settings(base.manifest, _packing(job, base))
    with ExitStack() as stack:
        lease = take(stack, out, settings, redo=job.redo, lineage=base.manifest.parents)
        there, recipe = claim.sealed(out), _recipe(base, settings, sources)
        recipe = replace(recipe, sidecar=job.sidecar)
        units = base.manifest.spans.rows
        if there and there.manifest.recipe_id == recipe.recipe_id:
            on_progress(units, units, "")
            return Built(manifest=there.manifest, units=units, done_before=units, done_now=0)
        on_progress(units, units, "packing")
        spans = _of_sources(base.spans(), sources)
        parts = Parts(
            origins=[ShardOrigin(base, spans)], sources=with_split(sources, recipe.held_out), former=there
        )
        manifest = pack(out, recipe, parts, lease)
    seconds = time.perf_counter() - started
    return Built(manifest=manifest, units=units, done_before=units, done_now=0, seconds=seconds)


def _remaining(base: ShardSet, exclude: tuple[str, ...]) -> pa.Table:
    sources = base.sources()
    names, uris = sources.column("name").to_pylist(), sources.column("uri").to_pylist()
    for name in exclude:
        if name not in names and name not in uris:
            raise UsageError(
                f"no source of {base.uri} is named {name!r} to exclude; there are {', '.join(names[:5])}"
            )
    stays = [name not in exclude and uri not in exclude for name, uri in zip(names, uris, strict=True)]
    if not any(stays):
        raise UsageError(f"nothing of {base.uri} remains without {', '.join(exclude[:5])}; exclude fewer")
    return sources.filter(pa.array(stays))


def _of_sources(spans: pa.Table, sources: pa.Table) -> pa.Table:
    ids = set(sources.column("source_id").to_pylist())
    return spans.filter(pa.array([one in ids for one in spans.column("source_id").to_pylist()], pa.bool_()))


def _packing(job: DeriveJob, base: ShardSet) -> dict[str, Any]:
    """The packing of the base, with what the job changes and excludes."""
    before: dict[str, Any] = base.manifest.config["packing"]
    filters = configs.overlaid(filters_of(base.manifest), job.filters)
    if not is_tighter(filters, filters_of(base.manifest)):
        raise UsageError(
            f"{base.uri} left out clips that these filters keep; loosen them where it is made, with --redo"
        )
    duplicates = configs.overlaid(duplicates_of(base.manifest), job.duplicates)
    if not counts_more(duplicates, duplicates_of(base.manifest)):
        raise UsageError(
            f"{base.uri} left out copies that these settings keep; keep them where it is made, with --redo"
        )
    split = configs.overlaid(configs.from_dict(SplitConfig, before["split"]), job.split)
    packing = configs.overlaid(configs.from_dict(PackConfig, before["pack"]), job.pack)
    parts = {"filters": filters, "duplicates": duplicates, "split": split, "pack": packing}
    sidecar = job.sidecar.digest if job.sidecar else before["sidecar"]
    excluded = sorted({*before.get("exclude", ()), *job.exclude})
    return (
        before
        | {name: configs.to_dict(part) for name, part in parts.items()}
        | {
            "sidecar": sidecar,
            "exclude": excluded,
        }
    )


def _recipe(base: ShardSet, settings: claim.Settings, sources: pa.Table) -> Recipe:
    manifest, packing = base.manifest, settings["packing"]
    split = configs.from_dict(SplitConfig, packing["split"])
    keeps_split = packing["split"] == manifest.config["packing"]["split"]
    return Recipe(
        kind=manifest.kind,
        recipe_id=claim.recipe_id(settings, sorted(sources.column("source_id").to_pylist())),
        config=settings,
        held_out=validation_of(sources) if keeps_split else held_out(sources, split),
        filters=configs.from_dict(FilterConfig, packing["filters"]),
        duplicates=configs.from_dict(DuplicateConfig, packing["duplicates"]),
        pack=configs.from_dict(PackConfig, packing["pack"]),
        tokenizer=manifest.tokenizer,
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        num_codes=manifest.num_codes,
        parents=(manifest.fingerprint,),
    )
