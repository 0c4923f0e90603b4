"""How long does saving hold up a step, and how long does it take from the command to the next step?

    python benchmarks/resume.py            models of four sizes; a quarter of an hour
    python benchmarks/resume.py --quick    the two smallest, two saves each

Saving: seconds that the steps stand still, one worker in fp32, before the next one and where its optimizer
waits for the copy, beside waiting for the same save, beside DeepSpeed's own save_checkpoint, and beside a
bare torch.save of weights and optimizer state, which neither hashes nor waits for the disk. The step beside
which a checkpoint is copied and written is told as a multiple of the others. The same in whole runs of one
and two workers, commit and all that workers tell each other for it included. Resuming: seconds from
`reelgpt train` to its next step, which is told apart, beside a process that imports torch and DeepSpeed and
reads the same bytes, and beside one that keeps DeepSpeed from importing MLflow, as ours does. Each
measurement is a process of its own; the medians are shown.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"model_dim": 96, "num_layers": 2, "num_heads": 3, "num_kv_heads": 1, "hidden_dim": 256},
    "small": {"model_dim": 256, "num_layers": 4, "num_heads": 8, "num_kv_heads": 2, "hidden_dim": 704},
    "medium": {"model_dim": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 2, "hidden_dim": 1408},
    "large": {"model_dim": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 4, "hidden_dim": 2048},
}
POLL_SECONDS = 0.005
STEPS_BETWEEN_SAVES = 8
FLOOR = """
import sys
if {withheld}: sys.modules["mlflow"] = None
import torch, deepspeed
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


def main() -> None:
    options = _options()
    if options.child:
        _measure_saves(*options.child)
        return
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            saves = _saves(size, folder, options.saves)
            command = _command(size, _token_set(Path(folder)))
            stalls = {f"run_{n}": _stalls(command, Path(folder), n, options.saves) for n in (1, 2)}
            resumes = _resumes(command, Path(folder), options.resumes)
        rows.append({"size": size} | saves | stalls | resumes)
        _say(json.dumps(rows[-1]), sys.stderr)
    _show(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--saves", type=int, default=5, help="of each kind and size")
    parser.add_argument("--resumes", type=int, default=3, help="of each size")
    parser.add_argument("--dir", help="where to save; a folder for temporary files if left out")
    parser.add_argument("--quick", action="store_true", help="tiny and small, two saves and one resume")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.saves, options.resumes = ["tiny", "small"], 2, 1
    return options


def _saves(size: str, folder: str, num_saves: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--child", size, folder, str(num_saves)]
    answer = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return measured


def _measure_saves(size: str, folder: str, num_saves: str) -> None:
    """In a process of its own: trains a step before each save, so that every save has something new."""
    import torch

    from benchmarks.step_contenders import Shape, our_parts
    from training.engine.connection import connect
    from training.engine.engine import Engine
    from training.objectives import Learner
    from training.saving import checkpoints
    from training.saving.background import in_background

    torch.set_num_threads(1)
    shape = Shape(**SIZES[size], grid=(4, 4, 4), clips=1, dtype="fp32", compile=False)
    config, objective, clips = our_parts(shape)
    engine = Engine(Learner(objective), config, connect())
    examples = objective.examples(clips, None)
    num_targets = objective.count_targets(examples)
    seconds: dict[str, list[float]] = {}

    def step(kind: str) -> None:
        began = time.monotonic()
        engine.update([examples], seeds=[0], lr=1e-4, num_targets=num_targets)
        seconds.setdefault(kind, []).append(time.monotonic() - began)

    def synchronous(name: str) -> float:
        began = time.monotonic()
        records = engine.snapshot(folder, name, {}, copied=False).write()
        checkpoints.commit(folder, name=name, step=1, state={}, files=records)
        return time.monotonic() - began

    def background(name: str) -> float:
        engine.take_copying_seconds()
        began = time.monotonic()
        writing = in_background(engine.snapshot(folder, name, {}, copied=True).write)
        stalled = time.monotonic() - began
        step("step_beside")
        checkpoints.commit(folder, name=name, step=1, state={}, files=writing.result())
        return stalled + engine.take_copying_seconds()

    def deepspeeds(name: str) -> float:
        inner = engine._engine
        own = vars(inner.checkpoint_engine)
        hooked = {hook: own.pop(hook) for hook in ("save", "makedirs")}  # its own ones serve now
        began = time.monotonic()
        inner.save_checkpoint(folder, tag=name, save_latest=True)
        took = time.monotonic() - began
        own.update(hooked)
        return took

    def plain(name: str) -> float:
        began = time.monotonic()
        os.makedirs(os.path.join(folder, name))
        state = (engine._engine.module.state_dict(), engine._engine.optimizer.state_dict())
        torch.save(state, os.path.join(folder, name, "state.pt"))
        return time.monotonic() - began

    kinds = {
        "background": background,
        "synchronous": synchronous,
        "deepspeed": deepspeeds,
        "torch_save": plain,
    }
    num_bytes = 0
    for turn in range(int(num_saves) + 1):
        for kind, save in kinds.items():
            step("step_alone")
            name = f"{kind}-{turn}"
            took = save(name)
            files = [path for path in Path(folder, name).rglob("*") if path.is_file()]
            num_bytes = max(num_bytes, sum(path.stat().st_size for path in files))
            shutil.rmtree(Path(folder, name))
            seconds.setdefault(kind, []).append(took)
        if not turn:
            seconds.clear()  # it warmed up
    parameters = sum(parameter.numel() for parameter in engine._engine.module.parameters())
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    _say(json.dumps({"parameters": parameters, "bytes": num_bytes} | medians))


def _command(size: str, data: str) -> list[str]:
    shape = [f"--objective.model.{name.replace('_', '-')}={value}" for name, value in SIZES[size].items()]
    return [
        sys.executable, "-m", "reelgpt", "train", "gpt_tiny", f"--data={data}", *shape,
        "--batches.global-batch=2", "--batches.micro-batch=1", "--evaluation.every-steps=1000000",
        "--log-every-steps=1", "--objective.prefix-frames=1", "--no-track",
    ]  # fmt: skip


def _stalls(command: list[str], folder: Path, num_workers: int, num_saves: int) -> dict[str, float]:
    """Seconds of a save that the steps of a whole run stand still for, beside them and waited for: those that
    the run tells of from a save to the next, without the first save and the one at the end."""
    stalls = {}
    for kind, option in (("background", []), ("synchronous", ["--checkpoints.no-background"])):
        run_dir = folder / f"{kind}-{num_workers}"
        run = [
            *command, f"--run-dir={run_dir}", f"--num-workers={num_workers}", "--launcher=torchrun", *option,
            f"--steps={STEPS_BETWEEN_SAVES * (num_saves + 2)}",
            f"--checkpoints.every-steps={STEPS_BETWEEN_SAVES}",
        ]  # fmt: skip
        subprocess.run(run, env=ENVIRONMENT, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        of_saves = [0.0] * (num_saves + 3)
        for line in lines:
            of_saves[line["step"] // STEPS_BETWEEN_SAVES] += line["save_stall_seconds"]
        stalls[kind] = statistics.median(of_saves[2:-1])
        shutil.rmtree(run_dir)
    return stalls


def _resumes(command: list[str], folder: Path, num_resumes: int) -> dict[str, Any]:
    run_dir = folder / "run"
    command = [
        *command, f"--run-dir={run_dir}", "--num-workers=1", "--steps=1000000", "--checkpoints.every-steps=2"
    ]  # fmt: skip
    _start_and_kill(command, run_dir, until_step=2)
    resumes, steps, floors, lower = [], [], [], []
    for _ in range(num_resumes):
        newest = max((run_dir / "checkpoints").glob("*/MANIFEST.json")).parent
        files = sorted(newest.glob("*.pt"))
        floors.append(_floor(files, withheld=False))
        lower.append(_floor(files, withheld=True))
        took, step = _start_and_kill(command, run_dir, until_step=int(newest.name.split("-")[1]))
        resumes.append(took - step)
        steps.append(step)
    medians = {"resume": resumes, "step": steps, "floor": floors, "lower_floor": lower}
    return {name: statistics.median(seconds) for name, seconds in medians.items()}


def _start_and_kill(command: list[str], run_dir: Path, *, until_step: int) -> tuple[float, float]:
    """Seconds until the step after `until_step` is logged, and those of this step; killed once a newer
    checkpoint exists."""
    before = set((run_dir / "checkpoints").glob("*/MANIFEST.json"))
    began, began_at = time.monotonic(), time.time()
    with open(run_dir.parent / "log.txt", "a") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    took, step = None, 0.0
    while took is None or not set((run_dir / "checkpoints").glob("*/MANIFEST.json")) - before:
        if process.poll() is not None:
            sys.exit((run_dir.parent / "log.txt").read_text()[-2000:])
        if took is None and (line := _last_line(run_dir, since=began_at)) and line["step"] > until_step:
            took, step = time.monotonic() - began, line["seconds_per_step"]
        time.sleep(POLL_SECONDS)
    process.kill()
    process.wait()
    return took, step


def _last_line(run_dir: Path, *, since: float) -> dict[str, float] | None:
    """Of the metrics, if it is of after `since`: a process that was killed may have got further."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        last: dict[str, float] = json.loads(lines[-1])
    except (FileNotFoundError, ValueError, IndexError):
        return None
    return last if last["timestamp_ms"] >= since * 1000 else None


def _floor(files: list[Path], *, withheld: bool) -> float:
    began, code = time.monotonic(), FLOOR.format(withheld=withheld)
    subprocess.run([sys.executable, "-c", code, *map(str, files)], env=ENVIRONMENT, check=True)
    return time.monotonic() - began


def _token_set(folder: Path) -> str:
    """Clips of a few codes, so that a step is short; their number makes no difference to a resume."""
    import torch

    from model.bundle import save_bundle
    from model.tokenizer import Tokenizer
    from tests.training.conftest import TINY_TOKENIZER, drifting_codes, write_shard_set

    torch.set_num_threads(1)
    bundle = str(folder / "tokenizer")
    save_bundle(bundle, Tokenizer(TINY_TOKENIZER), lineage={"run": {"recipe": "none"}}, card="A benchmark's.")
    clips = {"train": drifting_codes(32), "validation": drifting_codes(2, seed=1)}
    return write_shard_set(str(folder / "tokens"), "tokens", clips, tokenizer=bundle).uri


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = {
        "model": lambda row: f"{row['size']}, {row['parameters'] / 1e6:.1f}M",
        "MB saved": lambda row: f"{row['bytes'] / 1e6:,.0f}",
        "stall, s": lambda row: f"{row['background']:.3f}",
        "waiting, s": lambda row: f"{row['synchronous']:.3f}",
        "stall / waiting": lambda row: f"{row['background'] / row['synchronous']:.1%}",
        "in a run of 1, ms": lambda row: _shares(row["run_1"]),
        "in a run of 2, ms": lambda row: _shares(row["run_2"]),
        "step beside / alone": lambda row: f"{row['step_beside'] / row['step_alone']:.2f}",
        "DeepSpeed, s": lambda row: f"{row['deepspeed']:.3f}",
        "stall / DeepSpeed": lambda row: f"{row['background'] / row['deepspeed']:.1%}",
        "torch.save, s": lambda row: f"{row['torch_save']:.3f}",
        "to the next step, s": lambda row: f"{row['resume']:.2f}",
        "the step, s": lambda row: f"{row['step']:.2f}",
        "import and read, s": lambda row: f"{row['floor']:.2f}",
        "ratio": lambda row: f"{row['resume'] / row['floor']:.2f}",
        "without MLflow, s": lambda row: f"{row['lower_floor']:.2f}",
        "its ratio": lambda row: f"{row['resume'] / row['lower_floor']:.2f}",
    }
    table = Table(title="Saving and resuming, one worker, fp32", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(value(row) for value in columns.values()))
    Console(width=220).print(table)


def _shares(stalls: dict[str, float]) -> str:
    background, synchronous = (1000 * stalls[kind] for kind in ("background", "synchronous"))
    return f"{background:.1f} / {synchronous:.1f} = {background / synchronous:.1%}"


def _say(text: str, stream: Any = sys.stdout) -> None:
    print(text, file=stream, flush=True)


if __name__ == "__main__":
    main()
