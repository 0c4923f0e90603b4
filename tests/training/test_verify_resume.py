"""`train --verify-resume`, with the processes and the kill that a user gets."""

from pathlib import Path
from typing import Any

import pytest

from infra.errors import TrainingError, UsageError
from pipelines.shards import ShardSet
from reelgpt.train import Train, with_default_half
from tests.training import runs

GPT = ("gpt_tiny", *runs.GPT, "--checkpoints.every-steps=6", "--num-workers=1")
OTHER_CLIPS_ONCE_RESUMED = """
import glob

if glob.glob({resumed!r}):
    import training.loop

    make = training.loop.step_input
    training.loop.step_input = lambda run, batches, step: make(run, batches, step + 1)
"""


def verify(data: ShardSet | tuple[ShardSet, ...], run_dir: Path, *more: str) -> Any:
    uris = [each.uri for each in (data if isinstance(data, tuple) else (data,))]
    places = "--data", *uris, f"--run-dir={run_dir}"
    return Train.parse((*GPT, *places, "--verify-resume", *more)).run()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--verify-resume"], ["--verify-resume", "5"]),
        (["--verify-resume", "--json"], ["--verify-resume", "5", "--json"]),
        (["--verify-resume", "3"], ["--verify-resume", "3"]),
        (["--verify-resume=3"], ["--verify-resume=3"]),
    ],
)
def test_the_number_may_be_left_out(given: list[str], meant: list[str]) -> None:
    assert with_default_half(given) == meant


def test_a_run_that_is_too_short_is_refused(token_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"compares runs of 14 steps, and the run has 12; .* from 1 to 6"):
        verify(token_set, tmp_path / "run", "7")


def test_a_run_of_which_too_much_is_skipped_is_refused(token_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"compares runs of 10 steps, and the run has 9; .* from 1 to 4"):
        verify(token_set, tmp_path / "run", "5", "--batches.skip-steps", "2-4")


def test_under_a_launcher_it_is_refused_before_anything(
    token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"without it, with --num-workers 2 --launcher torchrun"):
        verify(token_set, tmp_path / "run", "2")
    assert not list(tmp_path.iterdir())


def test_a_stage_at_which_a_lone_worker_does_not_run_is_refused(token_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lone worker in fp32 runs at stage 0; give --verify-workers 2"):
        verify(token_set, tmp_path / "run", "2", "--verify-zero-stage=3")


def test_how_to_go_on_has_no_effect_without_it(token_set: ShardSet, tmp_path: Path) -> None:
    places = f"--data={token_set.uri}", f"--run-dir={tmp_path}"
    with pytest.raises(UsageError, match="have no effect without --verify-resume"):
        Train.parse((*GPT, *places, "--verify-workers=2")).run()


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(800)
def test_a_run_that_resumes_exactly_is_found_to(token_set: ShardSet, tmp_path: Path) -> None:
    """Steps are skipped, so that none of 2N steps is step N or 2N."""
    outcome = verify(token_set, tmp_path / "run", "2", "--batches.skip-steps", "2", "4")
    assert outcome.exit_code == 0
    assert outcome.summary["agrees"]
    assert outcome.summary["steps"] == 4
    assert outcome.summary["killed_after"] >= 3
    assert outcome.summary["resumed_from"] >= 3
    assert [item["difference"] for item in outcome.summary["comparisons"]] == [0.0, 0.0, 0.0]
    assert not list(tmp_path.glob("run*"))


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(800)
def test_a_run_that_does_not_resume_exactly_is_found_not_to(
    token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is resumed, its steps take the clips of others."""
    run_dir = tmp_path / "run"
    resumed = f"{run_dir}.verify-resume/interrupted/checkpoints/*/MANIFEST.json"
    env = runs.bare_environment(tmp_path / "site", fault=OTHER_CLIPS_ONCE_RESUMED.format(resumed=resumed))
    monkeypatch.setenv("PYTHONPATH", env["PYTHONPATH"])
    outcome = verify(token_set, run_dir, "2")
    assert outcome.exit_code == 1
    assert not outcome.summary["agrees"]
    assert {item["what"]: item["agrees"] for item in outcome.summary["comparisons"]} == {
        "losses": False, "weights": False, "samples": False,
    }  # fmt: skip
    assert (tmp_path / "run.verify-resume/interrupted").exists()


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.timeout(800)
def test_steps_that_change_nothing_show_nothing(token_set: ShardSet, tmp_path: Path) -> None:
    scale = '--engine.deepspeed-config={"fp16": {"initial_scale_power": 30, "hysteresis": 1}}'
    with pytest.raises(TrainingError, match=r"each of the 2 steps .* give a larger number"):
        verify(token_set, tmp_path / "run", "1", "--engine.dtype=fp16", scale)


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.timeout(800)
def test_on_another_topology_it_agrees_within_what_is_stated(
    token_set: ShardSet, two_grid_set: ShardSet, tmp_path: Path
) -> None:
    """Of a mixture of two sets, one of which holds clips of two grids."""
    outcome = verify(
        (token_set, two_grid_set), tmp_path / "run", "3", "--verify-workers=2", "--verify-zero-stage=3",
        "--launcher=auto", "--objective.task=generate", "--objective.prefix-frames=None",
        "--batches.weights", "0.4", "0.6",
    )  # fmt: skip
    losses, weights, samples = outcome.summary["comparisons"]
    assert outcome.exit_code == 0
    assert 0.0 <= losses["difference"] < losses["tolerance"] == 1e-4
    assert 0.0 <= weights["difference"] < weights["tolerance"] == 1e-3
    assert samples["difference"] == 0.0


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.timeout(800)
def test_where_the_kill_came_too_late_the_run_is_told_to_go_back(
    token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are so short that all are done before anybody looks."""
    monkeypatch.setattr("training.verify_commands.POLL_SECONDS", 30.0)
    outcome = verify(token_set, tmp_path / "run", "2")
    assert outcome.exit_code == 0
    assert outcome.summary["killed_after"] == runs.STEPS
    assert (outcome.summary["resume"], outcome.summary["resumed_from"]) == ("2", 2)
