"""What a sealed set needs no more: span files whose clips are packed, files that no manifest names, and what
killed writers left unfinished."""

import sys
from dataclasses import dataclass

from infra import storage
from infra.errors import StorageError, UsageError
from infra.leases import Lease
from infra.storage import FileInfo
from pipelines import records, shards
from pipelines.building import claim
from pipelines.shards import ShardSet
from pipelines.tables import read_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """What was removed, or would be."""

    files: int
    bytes: int
    kept_units: int
    """Whose rows stay: done for an appending that is not finished, or with scores or clips that are in no
    shard, as was asked for."""
    unfinished: int
    """Writes, beside those files, that killed writers never ended; counted once they are removed."""
    of_other_settings: int
    """Of the files, those with rows of settings that the set was made with before, or was to be made with."""


def sweep(uri: str, *, dry_run: bool = False) -> Swept:
    """Removes what a sealed set needs no more. Raises UsageError where it is not sealed."""
    out = storage.absolute(uri)
    if claim.sealed(out) is None and storage.list_files(storage.join(out, records.FOLDER)):
        raise UsageError(
            f"the shard set at {out} is not sealed yet: its span files are all that there is of it; first "
            f"repeat the command that makes it"
        )
    shard_set = ShardSet.open(out)
    with Lease(storage.join(out, claim.LEASE)):
        unpacked = _unpacked(shard_set)
        doomed = [file for file in _candidates(shard_set) if file.uri not in unpacked]
        for file in [] if dry_run else doomed:
            storage.delete(file.uri)
        unfinished = 0 if dry_run else _sweep_unfinished(shard_set.uri)
    manifest = shard_set.manifest
    own = records.place_of(shard_set.uri, manifest.kind, manifest.config["rows"])
    others = [file for file in doomed if file.name.startswith(f"{records.FOLDER}/")]
    return Swept(
        files=len(doomed),
        bytes=sum(file.size for file in doomed),
        kept_units=sum(unpacked.values()),
        unfinished=unfinished,
        of_other_settings=sum(not file.uri.startswith(f"{own}/") for file in others),
    )


def _sweep_unfinished(uri: str) -> int:
    try:
        return storage.sweep(uri)
    except StorageError as error:  # a store may refuse to list uploads to whom it lets delete
        sys.stderr.write(f"unfinished writes stay: {error}\n")
        return 0


def _candidates(shard_set: ShardSet) -> list[FileInfo]:
    """Span files, and shards and tables that the manifest does not name."""
    manifest = shard_set.manifest
    named = {*(entry.path for entry in manifest.shards), manifest.sources.path, manifest.spans.path}
    tables = (shards.SOURCES.partition(".")[0], shards.SPANS.partition(".")[0])
    return [
        file
        for file in storage.list_files(shard_set.uri)
        if file.name.startswith((f"{records.FOLDER}/", "shards/", *tables))
        and file.name.endswith(".parquet")
        and file.name not in named
    ]


def _unpacked(shard_set: ShardSet) -> dict[str, int]:
    """Span files of the set's own settings with units that it does not hold yet, and how many; all of them
    where they were asked to hold more than the shards."""
    manifest = shard_set.manifest
    place = records.place_of(shard_set.uri, manifest.kind, manifest.config["rows"])
    spans = set(shard_set.spans().column("span_id").to_pylist())
    packed = {sha256[:32] for sha256 in manifest.inputs}
    settings = storage.read_json(storage.join(shard_set.uri, claim.CONFIG))
    keeps_more = claim.scores_alone(manifest.config) or settings.get("keep") == "all"
    found = {}
    for uri in records.files(place):
        units = read_table(uri, ["unit_id"]).column("unit_id").to_pylist()
        new = [
            unit
            for unit in units
            if keeps_more or (unit not in spans and unit.partition("#")[0] not in packed)
        ]
        if new:
            found[uri] = len(new)
    return found
