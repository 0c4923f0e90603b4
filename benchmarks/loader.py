"""How fast is the loader? Ours beside mosaicml-streaming, litdata, webdataset and Hugging Face datasets.

    python benchmarks/loader.py            262,144 clips of 1,024 codes
    python benchmarks/loader.py --quick    8,192 clips, to see that it runs

All read the same codes from local files in batches of 64 clips, each in the layout that its library writes
and from an environment of its own. The table has:

tokens/s  over an epoch, in one process or with two that read, whichever is faster
CPU s     what all its processes spent on that epoch
shuffle   how far apart the clips of a batch were written, over all pairs, where 1 is a perfect shuffle: 0.875
          is what a batch from 8 places has. A peer far below ours is asked for less
resume    seconds from opening the set with a saved state to the first batch (imports apart), at 0, 50 and
          90 % of an epoch; and whether the batches are those that would have come
2, 1, 4   a run of 2 ranks, gone on with by 1 and then 4: in how many steps it takes the clips that an
          uninterrupted run of 1 rank takes, and how many clips it takes twice
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.loaders.measuring import BATCH, Contender, measure
from benchmarks.loaders.reader import GRID, NUM_CODES
from benchmarks.peers import peer_python

TORCHVISION = "torchvision==0.28.0"
"""Two peers import it: the one that goes with our torch."""
PEERS = {
    "mosaicml_streaming": ("mosaicml-streaming==0.13.0", TORCHVISION),
    "lit_data": ("litdata==0.2.76", TORCHVISION),
    "web_dataset": ("webdataset==1.0.2",),
    "hf_table": ("datasets==5.2.0",),
    "hf_stream": ("datasets==5.2.0",),
}
"""Modules in `benchmarks/loaders`, and what their environments hold."""
OURS = "ours"
NAMES = {
    OURS: "reelgpt",
    "mosaicml_streaming": "mosaicml-streaming",
    "lit_data": "litdata",
    "web_dataset": "webdataset",
    "hf_table": "datasets, by index",
    "hf_stream": "datasets, as a stream",
}


def main() -> None:
    options = _options()
    rows = {}
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        codes = Path(scratch) / "codes.npy"
        rng = np.random.default_rng(0)
        np.save(codes, rng.integers(0, NUM_CODES, (options.clips, *GRID), dtype=np.uint16))
        for module in options.contenders:
            try:
                rows[module] = _row(module, codes, Path(scratch) / module, options)
            except Exception as error:  # noqa: BLE001 - the others are not to lose their table by it
                _say(f"{NAMES[module]} is left out: {error!r}", sys.stderr)
                continue
            _say(json.dumps({module: rows[module]}), sys.stderr)
    _say(table(rows, options.clips), sys.stdout)
    if len(rows) < len(options.contenders):
        sys.exit(1)


def _row(module: str, codes: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    contender = _contender(module, scratch)
    contender.write(codes)
    workers = (0,) if module == OURS else (0, 2)
    return measure(contender, num_batches=options.clips // BATCH, turns=options.turns, workers=workers)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--clips", type=int, default=262_144)
    parser.add_argument("--turns", type=int, default=3, help="epochs of each; the median is shown")
    parser.add_argument("--dir", help="where the sets are written; a folder for temporary files if left out")
    parser.add_argument("--quick", action="store_true", help="8,192 clips, one epoch of each")
    options = parser.parse_args()
    if options.quick:
        options.clips, options.turns = 8192, 1
    return options


def _contender(module: str, scratch: Path) -> Contender:
    scratch.mkdir()
    python = sys.executable if module == OURS else peer_python(*_environment(module))
    return Contender(module=module, python=python, scratch=scratch)


def _environment(module: str) -> tuple[str, ...]:
    requirements = PEERS[module]
    return requirements[0].split("==")[0], *requirements


def table(rows: dict[str, dict[str, Any]], num_clips: int) -> str:
    """In Markdown."""
    ours = rows.get(OURS, {}).get("codes_per_second")
    lines = [
        f"| {num_clips:,} clips of {np.prod(GRID):,} codes | readers | tokens/s | ours / it | CPU s | MB "
        "| shuffle | resume at 0, 50, 90 %, s | goes on exactly | 2, 1, 4: steps alike, clips twice |",
        "|---" * 10 + "|",
    ]
    for module, row in rows.items():
        ratio = f"{ours / row['codes_per_second']:.1f}" if ours else "-"
        resume = ", ".join(f"{seconds:.2f}" for seconds in row["resume_seconds"])
        lines.append(
            f"| {NAMES[module]} | {row['workers']} | {row['codes_per_second'] / 1e6:,.1f}M | {ratio} "
            f"| {row['cpu_seconds']:.1f} | {row['peak_mb']:,.0f} | {row['shuffle']:.3f} | {resume} "
            f"| {'yes' if row['goes_on_exactly'] else 'no'} "
            f"| {row['changed_ranks']} |"
        )
    return "\n".join(lines)


def _say(text: str, stream: Any) -> None:
    print(text, file=stream, flush=True)


if __name__ == "__main__":
    main()
