"""How fast is a step? Ours beside a bare PyTorch loop of the same model, and beside transformers + DeepSpeed.

    python benchmarks/step.py      on a CPU: a tiny and a small GPT in fp32
    torchrun --nproc-per-node 1 benchmarks/step.py --shapes gpt_350m --dtype bf16 --compile --peers none
                                   on a GPU, with MFU; it needs no package beyond those of a training machine

A lone worker of ours in fp32 runs stage 0 whatever is asked for (decision 0016): there our two rows differ by
chance alone. A user who asks for ZeRO 2 gets it of DeepSpeed.

All run in processes of their own, and take turns of some steps, so that what else the machine does hits all
alike. All are started several times, since where its memory lies makes a process up to 5 % faster or slower
for as long as it lives. The table has the median turn of each, and the median over the turns of the ratio to
ours. On a CPU that others use much, --clock cpu counts the seconds that a contender computes, each in one
thread.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.peers import peer_python
from benchmarks.step_contenders import CODES, CONTENDERS, LEVELS, NEEDS_FP32, Shape
from model.vocabulary import Vocabulary
from training.configs.objective import GPTShape
from training.flops import peak_tflops, training_flops_per_token

PEERS = ("transformers==5.24.0", "accelerate==1.15.0")
SHAPES = {
    "tiny": {"model_dim": 96, "num_layers": 2, "num_heads": 3, "num_kv_heads": 1, "hidden_dim": 256,
             "grid": (4, 8, 8), "clips": 4},
    "small": {"model_dim": 256, "num_layers": 4, "num_heads": 8, "num_kv_heads": 2, "hidden_dim": 704,
              "grid": (4, 8, 8), "clips": 4},
    "gpt_350m": {"model_dim": 1024, "num_layers": 24, "num_heads": 8, "num_kv_heads": 2, "hidden_dim": 3840,
                 "grid": (16, 16, 16), "clips": 8},
}  # fmt: skip
WARM_UP_STEPS = 5


def main() -> None:
    options = _options()
    for name in options.shapes:
        shape = Shape(**SHAPES[name], dtype=options.dtype, compile=options.compile)
        names = _contenders(options)
        os.environ["STEP_CLOCK"] = options.clock  # for the contenders
        starts = [
            measure(names, shape, peers=options.peers, turns=options.turns, steps=options.steps)
            for _ in range(options.starts)
        ]
        seconds = {name: [turn for start in starts for turn in start[name]] for name in names}
        print(table(name, shape, seconds), flush=True)  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny", "small"])
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all of them")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="what is counted")
    parser.add_argument("--starts", type=int, default=3, help="of each contender")
    parser.add_argument("--turns", type=int, default=8, help="after each start")
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS),
                        help="side by side they must fit a GPU's memory")  # fmt: skip
    parser.add_argument("--peers", choices=["pinned", "installed", "none"], default="pinned",
                        help="in an environment of their own; as this Python has them; left out")  # fmt: skip
    return parser.parse_args()


def _contenders(options: argparse.Namespace) -> list[str]:
    names = [name for name in options.contenders if options.peers != "none" or not _is_peer(name)]
    names = [name for name in names if options.dtype == "fp32" or name != NEEDS_FP32]
    return names or sys.exit("none of these contenders can run with these options")


def _is_peer(name: str) -> bool:
    return "transformers" in name


def measure(names: list[str], shape: Shape, *, peers: str, turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of every contender, one number a turn."""
    contenders = {name: _start(name, shape, peers) for name in names}
    try:
        for process in contenders.values():  # at once, as each may have to compile
            _ask(process, WARM_UP_STEPS)
        for process in contenders.values():
            _answer(process)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(turns):
            for name, process in contenders.items():
                _ask(process, steps)
                seconds[name].append(_answer(process) / steps)
        return seconds
    finally:
        for process in contenders.values():
            process.kill()
            process.wait()


def _start(name: str, shape: Shape, peers: str) -> "subprocess.Popen[str]":
    python = peer_python("step", *PEERS) if _is_peer(name) and peers == "pinned" else sys.executable
    root = str(Path(__file__).parent.parent)
    spoken = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in spoken}
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    if _is_peer(name):
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"} | _alone()
    command = [python, "-W", "ignore", "-m", "benchmarks.step_contenders", name]
    return subprocess.Popen(
        [*command, json.dumps(dataclasses.asdict(shape))],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _alone() -> dict[str, str]:
    """The words of a launcher with one worker, which DeepSpeed looks for: any port that is free by then."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | place


def _ask(process: "subprocess.Popen[str]", steps: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()


def _answer(process: "subprocess.Popen[str]") -> float:
    """Waits for the turn to end; the seconds that it took."""
    assert process.stdout is not None
    answer = process.stdout.readline()
    if not answer:
        sys.exit(f"{process.args} ended; what it said is above")
    return float(answer)


def table(name: str, shape: Shape, seconds: dict[str, list[float]]) -> str:
    tokens = shape.clips * shape.num_tokens
    peak = peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    flops = tokens * _flops_per_token(shape)
    head = f"| {name}: {shape.clips} x {shape.num_tokens} tokens, {shape.dtype} | ms a step | tokens/s |"
    lines = [head + " time / bare loop | time / ours, ZeRO 2 | MFU |", "|---|---|---|---|---|---|"]
    for contender, times in seconds.items():
        median = statistics.median(times)
        bare, ours = (_ratio(times, seconds.get(other)) for other in ("bare PyTorch loop", "reelgpt, ZeRO 2"))
        mfu = f"{flops / median / peak / 1e12:.1%}" if peak else "-"
        lines.append(
            f"| {contender} | {median * 1e3:.1f} | {tokens / median:,.0f} | {bare} | {ours} | {mfu} |"
        )
    return "\n".join([*lines, ""])


def _ratio(times: list[float], others: list[float] | None) -> str:
    if others is None:
        return "-"
    return f"{statistics.median(mine / other for mine, other in zip(times, others, strict=True)):.3f}"


def _flops_per_token(shape: Shape) -> float:
    names = ("model_dim", "num_layers", "num_heads", "num_kv_heads", "hidden_dim")
    model = GPTShape(**{name: getattr(shape, name) for name in names})
    config = model.config(
        vocabulary_size=Vocabulary(num_codes=CODES).size, context_tokens=shape.num_tokens, code_levels=LEVELS
    )
    return training_flops_per_token(config, shape.num_tokens)


if __name__ == "__main__":
    main()
