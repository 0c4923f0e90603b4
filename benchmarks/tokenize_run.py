"""The run of `benchmarks/tokenize.py`: all contenders one after another on one corpus, and their table.

The limit comes from bare loops, one a core, all at once: what a core can do while the others work too. Speeds
are those at full speed: without the start of a cluster, imports, and the loading of the tokenizer. Ours ends
with the last call of a worker, in which it has scored and hashed every clip, as one of the others does;
packing and sealing, which nobody else does, are in the seconds in all. It looks for no cuts
(--sampling.no-shots), as nobody else does.
With --turns, limit and contenders come by turns, and medians are told: of ratios, those within a turn.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import tokenize_corpus
from benchmarks.peers import peer_python
from benchmarks.process_tree import Watched
from benchmarks.tokenize_contenders import CLIP_FRAMES, CONTENDERS, FPS

ROOT = Path(__file__).parent.parent
DAFT = ("daft==0.7.26",)
OURS = "reelgpt"
MOST_SECONDS = 1200.0
GB = 1e9

Codes = dict[tuple[str, int], bytes]


@dataclass(kw_only=True)
class Result:
    """Of one contender."""

    seconds: float
    """From its command to its end."""
    working_seconds: float
    """At full speed."""
    codes: Codes
    peak_bytes: int
    first_seconds: float | None = None
    """From its command to the first codes on storage."""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The limit and all contenders, one after another."""

    limit: dict[str, float]
    """Seconds of decoding and of tokenizing, over the cores."""
    bare: Codes
    """Those of the loops that told the limit."""
    results: dict[str, Result]

    def limit_seconds(self) -> float:
        return sum(self.limit.values())


def main() -> None:
    options = _options()
    folder = options.folder or Path(tempfile.gettempdir()) / "reelgpt-tokenize-corpus"
    videos = tokenize_corpus.make(folder / "videos", videos_of_a_kind=options.videos_of_a_kind)
    scratch = Path(tempfile.mkdtemp(prefix="reelgpt-tokenize-"))
    try:
        bundle = _bundle(scratch / "tokenizer")
        turns = [_turn(videos, bundle, scratch, options.contenders) for _ in range(options.turns)]
        print(_table(turns), flush=True)  # noqa: T201
    finally:
        shutil.rmtree(scratch)


def _turn(videos: list[Path], bundle: str, scratch: Path, contenders: list[str]) -> Turn:
    folder = videos[0].parent
    limit, bare = _limit(folder, bundle, scratch)
    print(_heading(videos, limit), flush=True)  # noqa: T201
    results = {}
    for name in contenders:
        try:
            results[name] = _run(name, folder, bundle, scratch / name.replace(" ", "-"))
        except subprocess.CalledProcessError:
            print(f"{name}: failed, as said above", file=sys.stderr, flush=True)  # noqa: T201
            continue
        print(f"{name}: {results[name].working_seconds:.1f} s", file=sys.stderr, flush=True)  # noqa: T201
    return Turn(limit=limit, bare=bare, results=results)


def _options() -> argparse.Namespace:
    names = [OURS, *(name for name in CONTENDERS if name != "bare loop")]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps the videos for the next run; default: in /tmp")
    parser.add_argument("--videos-of-a-kind", type=int, default=tokenize_corpus.VIDEOS_OF_A_KIND)
    return parser.parse_args()


def _bundle(place: Path) -> str:
    """A tokenizer of the shape of `tokenizer_tiny`, untrained: its speed is the same."""
    import torch

    from model.bundle import save_bundle
    from model.tokenizer import Tokenizer
    from training.recipes import get_recipe

    torch.manual_seed(0)
    objective: Any = get_recipe("tokenizer_tiny").objective
    save_bundle(str(place), Tokenizer(objective.model), lineage={}, card="untrained")
    return str(place)


def _limit(videos: Path, bundle: str, scratch: Path) -> tuple[dict[str, float], Codes]:
    """Seconds of decoding and of tokenizing, over the cores; and the codes."""
    cores, out = len(os.sched_getaffinity(0)), scratch / "bare"
    loops = [_start("bare loop", videos, bundle, out, share=f"{core}/{cores}") for core in range(cores)]
    spent = [json.loads(loop.wait(MOST_SECONDS).splitlines()[-1]) for loop in loops]
    seconds = {part: sum(one[part] for one in spent) / cores for part in ("decoding", "tokenizing")}
    return seconds, _codes(out)


def _run(name: str, videos: Path, bundle: str, out: Path) -> Result:
    started, wall = time.time(), time.perf_counter()
    watched = _start_ours(videos, bundle, out) if name == OURS else _start(name, videos, bundle, out)
    first = _first_file(watched, out / "spans") if name == OURS else None
    printed = json.loads(watched.wait(MOST_SECONDS).splitlines()[-1])
    result = Result(
        seconds=time.perf_counter() - wall,
        working_seconds=printed["pace"]["working_seconds"]
        if name == OURS
        else printed["ended"] - printed["began"],
        codes=_our_codes(out) if name == OURS else _codes(out),
        peak_bytes=watched.peak_bytes,
        first_seconds=first - started if first else None,
        summary=printed,
    )
    shutil.rmtree(out)
    return result


def _start(name: str, videos: Path, bundle: str, out: Path, *, share: str = "0/1") -> Watched:
    python = peer_python("tokenize", *DAFT) if name == "Daft" else sys.executable
    command = [python, "-W", "ignore", "-m", "benchmarks.tokenize_contenders", name, str(videos), bundle]
    return Watched([*command, str(out), share], env=_environment(), cwd=ROOT)


def _start_ours(videos: Path, bundle: str, out: Path) -> Watched:
    command = [sys.executable, "-m", "reelgpt", "tokenize", str(videos), "--tokenizer", bundle]
    settings = ["--sampling.fps", str(FPS), "--sampling.clip-frames", str(CLIP_FRAMES), "--no-track"]
    return Watched(
        [*command, "--out", str(out), *settings, "--sampling.no-shots", "--json"],
        env=_environment(),
        cwd=ROOT,
    )


def _environment() -> dict[str, str]:
    quiet = {"DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    return os.environ | quiet | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _first_file(watched: Watched, place: Path) -> float | None:
    """When the first span file was there."""
    while watched.process.poll() is None:
        if any(place.rglob("*.parquet")):
            return time.time()
        time.sleep(0.1)
    return None


def _our_codes(out: Path) -> Codes:
    from pipelines import shards
    from pipelines.shards import ShardSet

    shard_set = ShardSet.open(str(out))
    return {
        (row["source"].rpartition("/")[2], round(row["start_seconds"] * FPS / CLIP_FRAMES)): row["codes"]
        for split in shards.SPLITS
        for table in shard_set.tables(split)
        for row in table.to_pylist()
    }


def _codes(out: Path) -> Codes:
    """By source and number of the clip; frames are put together to clips in their order."""
    rows = [row for path in sorted(out.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    by_source: dict[str, list[tuple[int, bytes]]] = {}
    for row in rows:
        by_source.setdefault(os.path.basename(row["source"]), []).append((row["number"], row["codes"]))
    return {
        clip: codes for source, found in by_source.items() for clip, codes in _clips(source, sorted(found))
    }


def _clips(source: str, rows: list[tuple[int, bytes]]) -> Iterator[tuple[tuple[str, int], bytes]]:
    is_frame = len(rows) >= CLIP_FRAMES * tokenize_corpus.SECONDS
    each = CLIP_FRAMES if is_frame else 1
    for number in range(len(rows) // each):
        part = rows[number * each : (number + 1) * each]
        yield (source, number), b"".join(codes for _, codes in part)


def _heading(videos: list[Path], limit: dict[str, float]) -> str:
    minutes = len(videos) * tokenize_corpus.SECONDS / 60
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return (
        f"{len(videos)} videos, {minutes:.0f} minutes, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} "
        f"before it, commit {commit.stdout.strip() or 'unknown'}; the limit: {limit['decoding']:.1f} s of "
        f"decoding and {limit['tokenizing']:.1f} s of tokenizing a core\n"
    )


def _table(turns: list[Turn]) -> str:
    columns = ("", "clips", "equal codes", "s at full speed", "clips/s", "of the limit", "ours is faster by",
               "s in all", "peak RSS, GB")  # fmt: skip
    bare, limit = turns[0].bare, statistics.median(turn.limit_seconds() for turn in turns)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines.append(f"| the limit | {len(bare)} | | {limit:.1f} | {len(bare) / limit:.1f} | 1 | | | |")
    for name in turns[0].results:
        those = [turn for turn in turns if name in turn.results]
        lines.append(_row(name, those, _equal_share(bare, those[0].results[name].codes)))
    for ours in (turn.results[OURS] for turn in turns if OURS in turn.results):
        first, pace = ours.first_seconds or 0.0, ours.summary["pace"]
        lines.append(f"\nFirst codes of ours after {first:.1f} s. Its own account: {json.dumps(pace)}")
    return "\n".join(lines)


def _row(name: str, turns: list[Turn], equal: float) -> str:
    results = [turn.results[name] for turn in turns]
    seconds = statistics.median(result.working_seconds for result in results)
    of_limit = statistics.median(turn.limit_seconds() / turn.results[name].working_seconds for turn in turns)
    beside = [turn.results[name].working_seconds / turn.results[OURS].working_seconds
              for turn in turns if OURS in turn.results]  # fmt: skip
    faster = f"{statistics.median(beside):.2f}x" if beside else ""
    count, in_all = len(results[0].codes), statistics.median(result.seconds for result in results)
    peak = max(result.peak_bytes for result in results) / GB
    return (
        f"| {name} | {count} | {equal:.2%} | {seconds:.1f} | {count / seconds:.1f} | {of_limit:.2f} | "
        f"{faster} | {in_all:.1f} | {peak:.2f} |"
    )


def _equal_share(bare: Codes, codes: Codes) -> float:
    """Of the single codes: those that lie near a boundary may differ between shapes of a batch."""
    nothing = b""
    pairs = [(np.frombuffer(given, "<u2"), codes.get(clip, nothing)) for clip, given in bare.items()]
    equal = sum(
        int((given == np.frombuffer(found, "<u2")).sum())
        for given, found in pairs
        if len(found) == given.nbytes
    )
    return equal / sum(len(given) for given, _ in pairs)
