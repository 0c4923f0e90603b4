"""From what is done already to what is sealed: the units that have no row are done, then all is packed."""

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import ShardError, StorageError
from infra.leases import Lease
from pipelines.building import inventory, outcomes
from pipelines.building.job import Built, OnProgress
from pipelines.building.pace import Devices, Meter, Pace, record
from pipelines.building.work import Work
from pipelines.packing.merging import merge_small_files
from pipelines.packing.pack import pack
from pipelines.shards import Manifest

MOST_NAMES = 5
"""Of sources, in a sentence."""
Watch = Callable[[pa.Table], None]
"""Called with a few columns of the rows just done."""
Left = tuple[str, str]
"""Of a unit that is left: the name of its source, and why."""
RunUnits = Callable[[pa.Table, str, Watch], Devices | None]
"""Does the units given, writing their rows into the folder named and telling of each batch that is done; says
what there was to do it with, where its pace is of interest."""


def complete(work: Work, run: RunUnits, lease: Lease, on_progress: OnProgress) -> Built:
    """Does the units without a row, then seals; does nothing where all that is asked for is sealed.

    Raises StorageError, naming them, where sources are left.
    """
    units = work.units.num_rows
    if work.there and work.is_sealed() and not work.left:
        on_progress(units, units, "")
        return _built(work, work.there.manifest, done_before=units)
    missing = missing_of(work)
    done_before = units - missing.num_rows
    on_progress(done_before, units, "starting")
    pace, left = _run(work, missing, run, on_progress) if missing.num_rows else (None, {})
    work, done_before = _without(work, left), done_before + len(left)
    if missing.num_rows:
        _check_complete(work)
    on_progress(units, units, "packing")
    merge_small_files(work.place)
    manifest = pack(work.out, work.recipe, work.parts(), lease)
    if pace is not None:
        record(work.out, pace)
    on_progress(units, units, "")
    return _built(work, manifest, done_before=done_before, pace=pace)


def _run(
    work: Work, missing: pa.Table, run: RunUnits, on_progress: OnProgress
) -> tuple[Pace | None, dict[str, Left]]:
    """Does the missing units, and tells which are left, by id."""
    units = work.units.num_rows
    meter, count = Meter(), units - missing.num_rows
    left: dict[str, Left] = {}

    def watch(rows: pa.Table) -> None:
        nonlocal count
        meter.add(rows)
        not_done = rows.filter(pc.equal(rows.column("outcome"), outcomes.LEFT))
        left.update((row["unit_id"], (row["source"], row["error"])) for row in not_done.to_pylist())
        count += rows.num_rows - not_done.num_rows
        on_progress(count, units, "")

    devices = run(missing, work.place, watch)
    return _pace(meter, devices, work) if devices else None, left


def _without(work: Work, left: dict[str, Left]) -> Work:
    """What is to be sealed where some units are left: with the rows that they had, if those may stay.

    Raises StorageError where they may not, or where there are files without units. The next command takes
    the sources as they are then.
    """
    reasons = {**work.left, **dict(left.values())}
    if not reasons:
        return work
    inventory.forget(work.out, reasons)
    if work.left or not work.replaceable >= left.keys():
        raise StorageError(_what_is_left(reasons))
    return replace(work, sealed=work.sealed | left.keys(), refused=tuple(sorted(reasons)))


def _what_is_left(reasons: dict[str, str]) -> str:
    """By name of the source."""
    names = sorted(reasons)
    some = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    return (
        f"{reasons[names[0]]}. All is done but for {len(names)} such sources: {some}; what goes on changing "
        f"can be left out with --exclude {names[0]!r}"
    )


def _built(work: Work, manifest: Manifest, *, done_before: int, pace: Pace | None = None) -> Built:
    units = work.units.num_rows
    return Built(
        manifest=manifest,
        units=units,
        done_before=done_before,
        done_now=units - done_before,
        pace=pace,
        sources_kept=work.sources_kept,
        refused=work.refused,
    )


def _pace(meter: Meter, devices: Devices, work: Work) -> Pace:
    """Clips of a set of frames may overlap: what each adds is the stride from one to the next."""
    sampling = work.settings["rows"]["sampling"]
    new_frames = min(sampling["stride_frames"], sampling["clip_frames"])
    return meter.pace(
        devices,
        seconds_per_clip=None if work.spans is None else new_frames / sampling["fps"],
        fps=sampling["fps"],
    )


def missing_of(work: Work) -> pa.Table:
    """The units that need a row and have none."""
    done = work.units_with_rows() | work.sealed
    return work.units.filter(pa.array([unit not in done for unit in work.ids], pa.bool_()))


def _check_complete(work: Work) -> None:
    lost = missing_of(work)
    if lost.num_rows:
        raise ShardError(
            f"{lost.num_rows} units of {work.out} have no row, such as {lost.column(0)[0]}; repeat the "
            f"command"
        )
