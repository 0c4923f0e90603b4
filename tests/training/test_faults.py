"""SIGKILL of any worker at any moment, and the command repeated: the run ends as if nothing had happened."""

from pathlib import Path

import pytest

from tests.training import faults, runs
from tests.training.faults import Bench, Moment

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]

RANKS = (0, 1)


def killings(count: int, what: str) -> list[tuple[int, Moment]]:
    return [
        (stage, moment)
        for stage in faults.STAGES
        for rank in RANKS
        for moment in faults.by_chance(count, rank=rank, what=f"{what} {stage}")
    ]


def stage_option(stage: int) -> str:
    return f"--engine.zero-stage={stage}"


def kill_and_go_on(bench: Bench, run_dir: Path, stage: int, moment: Moment) -> None:
    bench.killed(run_dir, stage_option(stage), rank=moment.rank, faults=[faults.at(moment)])
    bench.goes_on(run_dir, stage_option(stage))


@pytest.mark.parametrize("rank", RANKS)
def test_a_killed_worker_changes_nothing(bench: Bench, tmp_path: Path, rank: int) -> None:
    """One moment a rank of those that are drawn."""
    (moment,) = faults.by_chance(1, rank=rank, what="sample")
    kill_and_go_on(bench, tmp_path / "run", 2, moment)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("stage", "moment"), killings(2, "all"), ids=str)
def test_a_worker_killed_anywhere_changes_nothing(
    bench: Bench, tmp_path: Path, stage: int, moment: Moment
) -> None:
    kill_and_go_on(bench, tmp_path / "run", stage, moment)


VARIANTS = [
    (2, 2, ("--engine.dtype=bf16", "--engine.offload-optimizer", "--optimizer.ema-decay=0.8")),
    (1, 2, ("--engine.dtype=fp16", "--optimizer.ema-decay=0.8")),
    (3, 2, ("--engine.dtype=bf16", "--engine.offload-optimizer", "--engine.offload-parameters")),
    (3, 2, ("--engine.dtype=fp16", "--engine.checkpoint-activations", "--batches.micro-batch=4")),
    (2, 3, ("--batches.global-batch=8", "--batches.micro-batch=2", "--batches.allow-uneven")),
]
"""ZeRO stage, workers and options."""


@pytest.mark.parametrize(
    ("stage", "world_size", "options"),
    [pytest.param(*v, marks=pytest.mark.exhaustive if number else []) for number, v in enumerate(VARIANTS)],
)
def test_a_killed_worker_changes_nothing_whatever_the_engine_does(
    bench: Bench, tmp_path: Path, stage: int, world_size: int, options: tuple[str, ...]
) -> None:
    run_dir, options = tmp_path / "run", (stage_option(stage), *options)
    (moment,) = faults.by_chance(1, rank=world_size - 1, what=f"variant {options}")
    kill = faults.at(moment)
    bench.killed(run_dir, *options, rank=moment.rank, faults=[kill], world_size=world_size)
    bench.goes_on(run_dir, *options, world_size=world_size)


@pytest.mark.exhaustive
@pytest.mark.parametrize("stage", faults.STAGES)
def test_killed_over_and_over_it_comes_to_its_end(bench: Bench, tmp_path: Path, stage: int) -> None:
    """A checkpoint each step, and a kill every few: the run loses two steps at most each time."""
    run_dir, options = tmp_path / "run", (stage_option(stage), "--checkpoints.every-steps=1")
    moments = [Moment(step % 2, step, place) for step, place in ((3, "update"), (6, "beside"), (9, "data"))]
    for moment in moments:
        bench.killed(run_dir, *options, rank=moment.rank, faults=[faults.at(moment)])
        assert runs.newest_committed(run_dir) >= moment.step - 3
    bench.goes_on(run_dir, *options)
