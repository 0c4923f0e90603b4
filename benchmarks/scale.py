"""What does a million spans cost, beside decoding? Seconds and memory to list, find what is missing, pack.

    python benchmarks/scale.py                         10^4, 10^5 and 10^6 spans; half an hour, 4 GB of disk
    python benchmarks/scale.py --spans 10000 100000    a few minutes

Nothing is decoded: files of videos are empty, and their spans have rows in real span files (16 to a file, two
clips of 32 codes each, written by pipelines.records), all but one in a thousand. What is timed is what
`reelgpt tokenize` runs: listing the folder and looking the files up among the known sources; finding the
spans without a row; merging small span files and packing, once every row is there; and the whole command
where nothing is left to do. Each has a process of its own, whose CPU seconds and
highest memory are shown too: on a machine that does other things as well, those are what counts.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pipelines import records  # noqa: E402
from pipelines.building import claim, inventory  # noqa: E402
from pipelines.building.build import build_from_videos, take  # noqa: E402
from pipelines.building.completion import missing_of  # noqa: E402
from pipelines.building.job import TokenizerRef, VideoJob  # noqa: E402
from pipelines.building.work import Work, video_work  # noqa: E402
from pipelines.config import ExtractConfig, FilterConfig, PackConfig, Resources, SplitConfig  # noqa: E402
from pipelines.packing.merging import merge_small_files  # noqa: E402
from pipelines.packing.pack import pack  # noqa: E402
from pipelines.selection.verdicts import thresholds_key  # noqa: E402
from pipelines.spans import SOURCE_SCHEMA, list_videos, span_table  # noqa: E402

SPANS_PER_SOURCE = 10
SPANS_PER_FILE = 16
CLIPS_PER_SPAN = 2
GRID = (2, 4, 4)
LACKING = 1000
"""Every so manieth span has no row at first."""
PHASES = ("list", "find what is missing", "pack", "nothing to do")


def main() -> None:
    options = _options()
    if options.phase:
        print(json.dumps(_measure(Place(Path(options.dir)), options.phase)))  # noqa: T201
        return
    rows = []
    for num_spans in options.spans:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="reelgpt-scale-") as folder:
            place = Place(Path(folder))
            made = _timed(lambda place=place, n=num_spans: _make(place, n))
            _note(f"{num_spans:,} spans made in {made:.0f} s")
            for phase in PHASES:
                rows.append({"spans": num_spans, "phase": phase} | _in_a_process(place, phase))
                _note(json.dumps(rows[-1]))
    _show(rows)


@dataclass(frozen=True, slots=True)
class Place:
    folder: Path

    @property
    def videos(self) -> str:
        return str(self.folder / "videos")

    @property
    def out(self) -> str:
        return str(self.folder / "tokens")

    @property
    def job(self) -> VideoJob:
        tokenizer = TokenizerRef(uri="/tokenizer", fingerprint="f" * 64, num_codes=1000, frame_size=16)
        return VideoJob(
            videos=(self.videos,),
            out=self.out,
            config=ExtractConfig(),
            split=SplitConfig(),
            pack=PackConfig(),
            resources=Resources(),
            tokenizer=tokenizer,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spans", nargs="+", type=int, default=[10**4, 10**5, 10**6])
    parser.add_argument("--dir", help="where to work; a folder for temporary files if left out")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _make(place: Place, num_spans: int) -> None:
    """Empty files of videos, the sources that they count as, and span files with a row a span."""
    for number in range(num_spans // SPANS_PER_SOURCE):
        path = Path(place.videos, f"{number // 1000:03d}", f"video-{number:06d}.mp4")
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    claim.claim(place.out, claim.video_settings(place.job))
    given = inventory.sources_of(place.out, list_videos([place.videos]), _inspected)
    units = span_table(given.sources, 60.0)
    there = np.arange(units.num_rows) % LACKING > 0
    _write_rows(place, units.filter(pa.array(there)))


def _inspected(files: pa.Table) -> list[pa.Table]:
    """What looking into the files would find: ten minutes of video each."""
    names = files.column("name").to_pylist()
    found = files.append_column("source_id", pa.array([f"{hash_of(name):016x}" for name in names]))
    seconds = pa.array([SPANS_PER_SOURCE * 60.0] * len(names))
    found = found.append_column("duration_seconds", seconds).select(SOURCE_SCHEMA.names).cast(SOURCE_SCHEMA)
    return [found.append_column("left", pa.nulls(found.num_rows, pa.string()))]


def hash_of(name: str) -> int:
    return int(name[-10:-4]) * 0x9E3779B97F4A7C15 % 2**64


def _write_rows(place: Place, units: pa.Table) -> None:
    folder = records.place_of(place.out, "tokens", claim.video_settings(place.job)["rows"])
    parts = [
        units.slice(start, 1000 * SPANS_PER_FILE) for start in range(0, units.num_rows, 1000 * SPANS_PER_FILE)
    ]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_write_part, folder), parts))


def _write_part(folder: str, units: pa.Table) -> None:
    rows = rows_of(units.combine_chunks())
    for start in range(0, rows.num_rows, SPANS_PER_FILE):
        records.write(folder, rows.slice(start, SPANS_PER_FILE))


def rows_of(units: pa.Table) -> pa.Table:
    """A row for each span, with clips of random codes: whole columns at a time, since a million take long."""
    count = units.num_rows
    known = {
        name: units.column(name)
        for name in ("span_id", "source_id", "source", "start_seconds", "end_seconds")
    }
    known |= {
        "unit_id": units.column("span_id"),
        "outcome": _constant("ok", count),
        "decoder": _constant("decord", count),
        "num_frames": _constant(16, count),
        "num_clips": _constant(CLIPS_PER_SPAN, count),
        "judged_by": _constant(thresholds_key(FilterConfig()), count),
        "attempts": _constant(1, count),
        "decode_cpu_seconds": _constant(1.0, count),
        "tokenize_seconds": _constant(0.5, count),
        "rejected": pa.array([[]] * count, pa.map_(pa.string(), pa.int64())),
    }
    offsets = pa.array(np.arange(count + 1) * CLIPS_PER_SPAN, pa.int64())
    known["clips"] = pa.LargeListArray.from_arrays(offsets, _clips_of(units))
    return _filled(known, records.record_schema("tokens"), count)


def _clips_of(units: pa.Table) -> pa.StructArray:
    count = units.num_rows * CLIPS_PER_SPAN
    of_unit = pa.array(np.repeat(np.arange(units.num_rows), CLIPS_PER_SPAN))
    number = np.tile(np.arange(CLIPS_PER_SPAN), units.num_rows)
    repeated = units.take(of_unit)
    ids = [f"{span}/{n:04d}" for span, n in zip(repeated.column("span_id").to_pylist(), number, strict=True)]
    codes = np.random.default_rng(0).integers(0, 1000, (count, *GRID)).astype("<u2")
    known: dict[str, Any] = {name: repeated.column(name) for name in ("source_id", "source", "span_id")}
    known |= {
        "clip_id": pa.array(ids),
        "start_seconds": pa.array(repeated.column("start_seconds").to_numpy() + number),
        "fps": _constant(8.0, count),
        "num_frames": _constant(8, count),
        "repeated_frames": _constant(0, count),
        "scores": pa.array(
            [[("brightness", 0.5), ("motion", 0.1)]] * count, pa.map_(pa.string(), pa.float64())
        ),
        "content_hash": pa.array([hashlib.sha256(one.encode()).hexdigest() for one in ids]),
        "grid": pa.array([list(GRID)] * count, pa.list_(pa.int32())),
        "codes": pa.array([one.tobytes() for one in codes], pa.large_binary()),
    }
    clip_type = records.record_schema("tokens").field("clips").type.value_type
    table = _filled(known, pa.schema(list(clip_type)), count)
    return pa.StructArray.from_arrays(
        [column.combine_chunks() for column in table.columns], fields=list(clip_type)
    )


def _constant(value: Any, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), count)


def _filled(known: dict[str, Any], schema: pa.Schema, count: int) -> pa.Table:
    """The columns known, and nulls for the rest of the schema."""
    columns = {field.name: known.get(field.name, pa.nulls(count, field.type)) for field in schema}
    return pa.table(columns).cast(schema)


def _in_a_process(place: Place, phase: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--phase", phase, "--dir", str(place.folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure(place: Place, phase: str) -> dict[str, Any]:
    with ExitStack() as stack:
        step = _prepared(place, phase, stack)
        cpu = time.process_time()
        seconds = _timed(step)
        cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_gb": round(peak, 2)}


def _prepared(place: Place, phase: str, stack: ExitStack) -> Callable[[], Any]:
    """The step to time, with what goes before it done."""
    if phase == "list":
        return lambda: _sources(place)
    if phase == "nothing to do":
        return lambda: build_from_videos(place.job, lambda *_: None)
    lease = take(stack, place.out, claim.video_settings(place.job), redo=False)
    work = _work(place)
    if phase == "pack":
        _write_rows(place, missing_of(work))
        return lambda: (merge_small_files(work.place), pack(work.out, work.recipe, work.parts(), lease))
    return lambda: missing_of(work)


def _sources(place: Place) -> inventory.Found:
    return inventory.sources_of(place.out, list_videos([place.videos]), _nothing_new)


def _nothing_new(_: pa.Table) -> list[pa.Table]:
    raise AssertionError("the files are known")


def _work(place: Place) -> Work:
    return video_work(place.job, place.out, claim.video_settings(place.job), _sources(place))


def _timed(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _show(rows: list[dict[str, Any]]) -> None:
    lines = [
        "| spans | step | seconds | CPU seconds | peak memory, GB | times the seconds at a tenth |",
        "|" + "---|" * 6,
    ]
    cpu = {(row["spans"], row["phase"]): row["cpu_seconds"] for row in rows}
    for row in rows:
        before = cpu.get((row["spans"] // 10, row["phase"]))
        growth = f"{row['cpu_seconds'] / before:.1f}" if before else ""
        lines.append(
            f"| {row['spans']:,} | {row['phase']} | {row['seconds']} | {row['cpu_seconds']} | "
            f"{row['peak_gb']} | {growth} |"
        )
    print("\n".join(lines))  # noqa: T201


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
