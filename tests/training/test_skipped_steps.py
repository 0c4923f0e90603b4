"""`--batches.skip-steps`: steps are left out with their data, and nothing else changes."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from infra.errors import ConfigError
from pipelines.shards import ShardSet
from tests.training import faults, runs
from tests.training.faults import Bench, Moment
from training.config import RunConfig
from training.configs.batches import BatchesConfig, skipped_until
from training.loading.batches import Batches
from training.loading.samples_digest import chained, digest_halves
from training.loading.shelf import Shelf
from training.recipes import get_recipe
from training.saving.manifest import MANIFEST

SKIP = ("--batches.skip-steps", "4", "6-7")
TAKEN = [1, 2, 3, 5, 8, 9, 10, 11, 12]


def batches_config(*skip_steps: str) -> BatchesConfig:
    return BatchesConfig(global_batch=8, micro_batch=2, skip_steps=skip_steps)


def a_run(*skip_steps: str, steps: int = 40, every: int = 10, logged: int = 5) -> RunConfig:
    config = get_recipe("gpt_tiny")
    return replace(
        config,
        steps=steps,
        log_every_steps=logged,
        batches=replace(config.batches, skip_steps=skip_steps),
        checkpoints=replace(config.checkpoints, every_steps=every),
        evaluation=replace(config.evaluation, every_steps=every),
    )


def test_ranges_may_overlap_in_any_order() -> None:
    config = batches_config("6-7", "4", "5-6", "4")
    assert skipped_until(5, config.skip_steps) == {4, 5}
    assert list(config.steps_taken(3, 9)) == [3, 8, 9]
    assert [config.clips_taken(step) for step in (3, 8, 9)] == [24, 32, 40]
    assert [config.step_before(step) for step in (1, 4, 8, 9)] == [0, 3, 3, 8]


def test_a_run_may_begin_with_what_it_leaves_out() -> None:
    assert batches_config("1-3").step_before(4) == 0


@pytest.mark.parametrize("text", ["", "4-", "-4", "0", "0-3", "5-4", "4..6", "4,6", "four"])
def test_what_is_no_range_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ConfigError, match="is no range of steps; give the first and the last, as 120-140"):
        batches_config(text)


def test_the_last_step_is_taken() -> None:
    with pytest.raises(ConfigError, match="holds the last of steps=40"):
        a_run("38-50")


def test_what_is_due_at_a_step_that_is_left_out_happens_at_the_next() -> None:
    config = a_run("10", "19-21", "25", "30-31")
    taken = list(config.batches.steps_taken(1, config.steps))
    assert [step for step in taken if config.is_saved(step)] == [11, 22, 32, 40]
    assert [step for step in taken if config.is_evaluated(step)] == [11, 22, 32, 40]
    assert [step for step in taken if config.is_logged(step)] == [5, 11, 15, 22, 26, 32, 35, 40]


def test_what_is_due_several_times_happens_once() -> None:
    config = a_run("8-35")
    assert [step for step in config.batches.steps_taken(1, 40) if config.is_saved(step)] == [36, 40]


def test_where_nothing_is_left_out_it_is_due_at_every_multiple() -> None:
    config = a_run(steps=34)
    assert [step for step in range(1, 35) if config.is_saved(step)] == [10, 20, 30, 34]


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
def test_a_run_killed_before_steps_to_skip_leaves_them_out_and_ends_the_same(
    bench: Bench, token_set: ShardSet, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    saved = faults.WAIT_FOR.format(pattern=f"{run_dir}/checkpoints/step-00000003-*/{MANIFEST}")
    kill = faults.at(Moment(0, 8, "update"), f"exec({saved!r}); {faults.KILL}")
    bench.killed(run_dir, *SKIP, rank=0, faults=[kill], world_size=1)
    assert runs.newest_committed(run_dir) == 3
    bench.goes_on(run_dir, *SKIP, world_size=1, resumed_from=3)
    assert faults.clips_taken(run_dir) == clips_of(token_set, TAKEN)
    assert [line["step"] for line in runs.metrics(run_dir) if "val_loss" in line] == [8, 12]


def clips_of(token_set: ShardSet, steps: list[int]) -> list[tuple[float, float]]:
    """As `faults.clips_taken`, of these steps of a run that skips none."""
    shelf = Shelf(token_set, tuple(token_set.shards("train")))
    reading = Batches([shelf], [Fraction(1)], batches_config(), seed=0)
    digest, told = 0, []
    for step in steps:
        digest = chained(digest, digest_halves(reading.micro_batches(step)))
        told.append((step, float(digest)))
    reading.close()
    return told
