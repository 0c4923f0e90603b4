"""Whose output this is: the settings that it is made with, how those asked for differ, and what that costs.

Settings are of several kinds, kept apart in config.json. `rows` determine the rows of span files: others
mean that spans are done again. `packing` determines what is packed of them. `base` is the set that this one
is made from, which may grow. `limits` bind what is still to be done, and may change at any time; so may
`keep`, of which clips payloads are kept, but for a set that has clips to one of scores alone.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from infra import configs, hashing, storage
from infra.errors import UsageError
from pipelines import records, shards
from pipelines.building.job import FramesJob, VideoJob
from pipelines.config import DecodeLimits, ExtractConfig, FilterConfig, SamplingConfig
from pipelines.shards import Manifest, ShardSet

CONFIG = "config.json"
LEASE = "lease.json"
CLIPS_PER_BATCH = 8
"""Clips that a tokenizer encodes at once, always; part of the rows, since last bits may depend on it."""

Settings = dict[str, Any]


def video_settings(job: VideoJob) -> Settings:
    rows: Settings = {"sampling": configs.to_dict(job.config.sampling)}
    if job.tokenizer is not None:
        rows |= {"tokenizer": job.tokenizer.fingerprint, "clips_per_batch": CLIPS_PER_BATCH}
    packing = {
        "filters": job.config.filters,
        "duplicates": job.duplicates,
        "split": job.split,
        "pack": job.pack,
    }
    return {
        "format_version": shards.FORMAT_VERSION,
        "kind": job.kind,
        "rows": rows,
        "packing": {name: configs.to_dict(part) for name, part in packing.items()}
        | {"sidecar": job.sidecar.digest if job.sidecar else None},
        "limits": configs.to_dict(job.config.limits),
        "keep": job.config.keep,
    }


def extract_config(settings: Settings) -> ExtractConfig:
    """How videos were decoded for a set with these settings: what `video_settings` took of it."""
    return ExtractConfig(
        sampling=configs.from_dict(SamplingConfig, settings["rows"]["sampling"]),
        filters=configs.from_dict(FilterConfig, settings["packing"]["filters"]),
        limits=configs.from_dict(DecodeLimits, settings["limits"]),
        keep=settings["keep"],
    )


def derived_settings(base: Manifest, packing: Settings) -> Settings:
    """Those of the set that clips are taken from, but for the packing."""
    return base.config | {"packing": packing, "base": base.fingerprint}


def frame_settings(job: FramesJob, frames: Manifest) -> Settings:
    """Those of the frames, but for the packing."""
    rows = {"tokenizer": job.tokenizer.fingerprint, "clips_per_batch": CLIPS_PER_BATCH}
    return frames.config | {
        "kind": "tokens",
        "rows": frames.config["rows"] | rows,
        "packing": frames.config["packing"] | {"pack": configs.to_dict(job.pack)},
        "base": frames.fingerprint,
    }


def recipe_id(settings: Settings, inputs: Iterable[str]) -> str:
    """What goes in: the settings, but for what only bounds the work, and the ids of what they apply to."""
    free = ("limits",) if scores_alone(settings) else ("limits", "keep")
    decisive = {name: part for name, part in settings.items() if name not in free}
    return hashing.digest([decisive, list(inputs)])


def scores_alone(settings: Settings) -> bool:
    """Whether no clip is to be kept, and only its scores."""
    return settings.get("keep") == "none"


def recipe_id_of(manifest: Manifest, sources: pa.Table) -> str:
    """The one that follows from what a manifest says and the table of its sources."""
    if manifest.inputs:  # codes of the frames of another set
        return recipe_id(manifest.config, [manifest.config.get("base", "")])
    return recipe_id(manifest.config, sorted(sources.column("source_id").to_pylist()))


def claim(out: str, settings: Settings) -> Settings:
    """Makes `out` these settings' where nothing is there; gives those that it is made with.

    Raises UsageError where it holds something else, or a set of another kind or format.
    """
    place = storage.join(out, CONFIG)
    if not storage.exists(place):
        if storage.list_files(out):
            raise UsageError(f"{out} holds something else already; give an empty or a new folder")
        if storage.create(place, _json(settings)):
            return settings
    there: Settings = storage.read_json(place)
    if not isinstance(there, dict) or "format_version" not in there:
        raise UsageError(f"{out} holds a {CONFIG} of something else; give an empty or a new folder")
    for name in ("format_version", "kind"):
        if there.get(name) != settings[name]:
            raise UsageError(
                f"{out} was made with {name}={there.get(name)}, not {settings[name]}; give another output"
            )
    if scores_alone(settings) and not scores_alone(there):
        raise UsageError(
            f"{out} is a set of clips already; `reelgpt explain {out}` shows their scores: give another "
            f"output for scores alone"
        )
    return there


def reclaim(out: str, settings: Settings) -> None:
    storage.write(storage.join(out, CONFIG), _json(settings))


def sealed(out: str) -> ShardSet | None:
    return ShardSet.open(out) if storage.exists(storage.join(out, shards.MANIFEST)) else None


def differences(there: Settings, asked: Settings, part: str) -> list[str]:
    """What differs in one kind of settings, such as `sampling.fps=8, not 9`."""
    return [f"{path}={before}, not {now}" for path, before, now in _differing(there[part], asked[part])]


def refuse_to_redo(out: str, there: Settings, asked: Settings, lineage: tuple[str, ...] = ()) -> None:
    """Raises UsageError, saying what would be done again, where settings differ in more than what is free.

    The base may have grown: `lineage` are the fingerprints that it had before.
    """
    rows = differences(there, asked, "rows")
    if there.get("base") not in (asked.get("base"), *lineage):
        rows.append(f"base={there.get('base')}, not {asked.get('base')}")
    packing = [] if scores_alone(there) else differences(there, asked, "packing")
    known = sealed(out) if rows or packing else None
    again = known.manifest.spans.rows if known else _num_done(out, there) if rows else 0
    if rows and again:
        kept = _num_done(out, asked)
        cost = f"its {again} units would be done again ({kept} are done with these settings already)"
    elif packing and known:
        cost = f"its {len(known.manifest.shards)} shards would be packed again, from what is decoded already"
    else:
        return
    raise UsageError(
        f"{out} was made with {'; '.join([*rows, *packing])}: {cost}; add --redo to do so, or give another "
        f"output"
    )


def _num_done(out: str, settings: Settings) -> int:
    return len(records.done_units(records.place_of(out, settings["kind"], settings["rows"])))


def _differing(there: Any, asked: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(asked, dict):
        for name in sorted(there.keys() | asked.keys()):
            yield from _differing(there.get(name), asked.get(name), f"{path}.{name}".strip("."))
    elif there != asked:
        yield path, there, asked


def _json(settings: Settings) -> bytes:
    return json.dumps(settings, indent=1).encode()
