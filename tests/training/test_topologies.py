"""A run that goes on with more or fewer workers, and at another ZeRO stage: the clips are the same, and the
losses and weights within what each dtype is worth.

To the last bit they are the same only where the topology is: sums over ranks are added up in another order.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.shards import ShardSet
from tests.training import faults, runs
from tests.training.conftest import drifting_codes, write_shard_set
from tests.training.faults import Bench, Moment
from tests.training.workers import Workers

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]

TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 5e-3}
"""Relative, of any loss."""
WEIGHT_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}
"""Of the largest difference between two weights of one parameter, to the largest weight in it."""
NO_OVERFLOW = '--engine.deepspeed-config={"fp16": {"initial_scale_power": 6}}'
"""At DeepSpeed's own first scale gradients overflow in some steps, on one topology and not on another."""
STOP = "os.kill(os.getpid(), signal.SIGTERM)"
IN_MID_ACCUMULATION = """
import os, signal
import training.engine.engine

take, calls = training.engine.engine.Engine._step, [0]


def _step(self):
    take(self)
    calls[0] += 1
    if rank in {ranks!r} and calls[0] == {call}:
        os.kill(os.getpid(), signal.SIGTERM)


training.engine.engine.Engine._step = _step
"""
Leg = tuple[int, int, int]
"""Workers, ZeRO stage, and the last step that they do."""


@pytest.fixture(scope="session")
def long_bench(workers: Workers, tokenizer_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """An epoch of it is eight steps of the twelve."""
    folder = tmp_path_factory.mktemp("long")
    clips = {"train": drifting_codes(64, seed=5), "validation": drifting_codes(5, seed=1)}
    data: ShardSet = write_shard_set(str(folder / "tokens"), "tokens", clips, tokenizer=tokenizer_bundle)
    return Bench(workers, data, folder)


def walk(bench: Bench, run_dir: Path, legs: Sequence[Leg], *options: str) -> list[int]:
    """Each leg but the last ends with a signal; gives the steps that they went on from."""
    resumed = []
    for world_size, stage, last in legs:
        how = f"--engine.zero-stage={stage}", *options
        if last == runs.STEPS:
            resumed.append(bench.run(run_dir, *how, world_size=world_size)["resumed_from"])
            continue
        stop = faults.at(Moment(0, last, "update"), STOP)
        bench.run(run_dir, *how, world_size=world_size, faults=[stop], code=75)
        assert runs.newest_committed(run_dir) == last
    return resumed


def require_alike(bench: Bench, run_dir: Path, *options: str, dtype: str = "fp32") -> None:
    """Asserts that the run is the undisturbed one of `options`, within what the dtype allows."""
    expected = bench.undisturbed(*options).run_dir
    assert faults.clips_taken(run_dir) == faults.clips_taken(expected)
    assert faults.losses(run_dir) == pytest.approx(faults.losses(expected), rel=TOLERANCES[dtype])
    found, wanted = (load_file(place / "model" / "model.safetensors") for place in (run_dir, expected))
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        difference = (found[name] - weight).abs().max() / weight.abs().max().clamp(min=1e-3)
        assert difference <= WEIGHT_TOLERANCES[dtype], (name, float(difference))
        assert torch.isfinite(weight).all()


@pytest.mark.parametrize(
    "stage",
    [pytest.param(stage, marks=[] if stage == 2 else pytest.mark.exhaustive) for stage in (0, 1, 2, 3)],
)
def test_two_workers_then_one_then_four_then_two(long_bench: Bench, tmp_path: Path, stage: int) -> None:
    """Three times within one epoch."""
    legs = [(2, stage, 2), (1, stage, 4), (4, stage, 7), (2, stage, runs.STEPS)]
    assert walk(long_bench, tmp_path / "run", legs) == [7]
    require_alike(long_bench, tmp_path / "run", f"--engine.zero-stage={stage}")


@pytest.mark.parametrize(
    ("dtype", "stage"),
    [
        pytest.param(dtype, stage, marks=[] if (dtype, stage) == ("fp32", 2) else pytest.mark.exhaustive)
        for dtype, stages in {"fp32": (0, 1, 2, 3), "bf16": (2,), "fp16": (3,)}.items()
        for stage in stages
    ],
)
def test_three_who_are_left_of_four_share_four_micro_batches_unevenly(
    long_bench: Bench, tmp_path: Path, dtype: str, stage: int
) -> None:
    run_dir = tmp_path / "run"
    options = f"--engine.dtype={dtype}", *([NO_OVERFLOW] if dtype == "fp16" else [])
    legs = [(4, stage, 3), (3, stage, runs.STEPS)]
    assert walk(long_bench, run_dir, legs, *options, "--batches.allow-uneven") == [3]
    require_alike(long_bench, run_dir, f"--engine.zero-stage={stage}", *options, dtype=dtype)


def test_every_zero_stage_learns_the_same(long_bench: Bench) -> None:
    plain, *sharded = (
        faults.losses(long_bench.undisturbed(f"--engine.zero-stage={stage}").run_dir)
        for stage in faults.STAGES
    )
    for losses in sharded:
        assert losses == pytest.approx(plain, rel=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("stages", [(0, 1, 3, 2), (3, 0, 2, 1)])
def test_every_zero_stage_goes_on_from_every_other(
    long_bench: Bench, tmp_path: Path, stages: tuple[int, int, int, int]
) -> None:
    legs = [(1 + i % 2, stage, 3 * i + 3) for i, stage in enumerate(stages)]
    walk(long_bench, tmp_path / "run", legs)
    require_alike(long_bench, tmp_path / "run", "--engine.zero-stage=2")


VARIANTS = [
    ("fp32", ("--optimizer.ema-decay=0.8",), (0, 3)),
    ("bf16", ("--engine.dtype=bf16", "--optimizer.ema-decay=0.8"), (1, 2, 3)),
    ("fp16", ("--engine.dtype=fp16",), (2,)),
    ("fp32", ("--engine.offload-optimizer", "--optimizer.ema-decay=0.8"), (2, 3)),
    ("bf16", ("--engine.offload-optimizer", "--engine.dtype=bf16"), (1,)),
    ("bf16", ("--engine.offload-optimizer", "--engine.offload-parameters", "--engine.dtype=bf16"), (3,)),
    ("fp32", ("--engine.checkpoint-activations",), (3,)),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("dtype", "options", "stage"),
    [(dtype, options, stage) for dtype, options, stages in VARIANTS for stage in stages],
)
def test_whatever_the_engine_does_another_number_of_workers_goes_on(
    long_bench: Bench, tmp_path: Path, dtype: str, options: tuple[str, ...], stage: int
) -> None:
    walk(long_bench, tmp_path / "run", [(2, stage, 4), (1, stage, 8), (2, stage, runs.STEPS)], *options)
    require_alike(long_bench, tmp_path / "run", f"--engine.zero-stage={stage}", *options, dtype=dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("stages", [(1, 3, 2), (3, 2, 1)])
def test_in_bf16_every_zero_stage_goes_on_from_every_other(
    long_bench: Bench, tmp_path: Path, stages: tuple[int, int, int]
) -> None:
    options = "--engine.dtype=bf16", "--optimizer.ema-decay=0.8"
    legs = [(2 - i % 2, stage, 4 * i + 4) for i, stage in enumerate(stages)]
    walk(long_bench, tmp_path / "run", legs, *options)
    require_alike(long_bench, tmp_path / "run", "--engine.zero-stage=2", *options, dtype="bf16")


@pytest.mark.exhaustive
def test_a_kill_in_each_leg_changes_nothing(long_bench: Bench, tmp_path: Path) -> None:
    """Two, one and four workers, each killed in mid-step after a save of their own."""
    run_dir, options = tmp_path / "run", ("--engine.zero-stage=2", "--checkpoints.every-steps=2")
    for world_size, step in ((2, 4), (1, 7), (4, 10)):
        kill = faults.at(Moment(world_size - 1, step, "update"))
        long_bench.killed(run_dir, *options, rank=world_size - 1, faults=[kill], world_size=world_size)
    saved = runs.newest_committed(run_dir)
    assert long_bench.run(run_dir, *options)["resumed_from"] == saved > 0
    require_alike(long_bench, run_dir, "--engine.zero-stage=2")


@pytest.mark.parametrize(
    "ranks", [pytest.param((1,)), *(pytest.param(r, marks=pytest.mark.exhaustive) for r in ((0,), (0, 1)))]
)
def test_a_signal_in_mid_accumulation_stops_after_the_whole_step(
    long_bench: Bench, tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    """Between the two micro-batches of step 4, where no checkpoint is due."""
    run_dir, option = tmp_path / "run", "--engine.zero-stage=2"
    group = long_bench.start(run_dir, option, faults=[IN_MID_ACCUMULATION.format(ranks=ranks, call=7)])
    assert group.codes() == [75, 75], group.said()
    assert "stopped after step 4 of 12, saved; repeat the command to go on" in group.output()
    long_bench.goes_on(run_dir, option, resumed_from=4)
