"""Whole runs in processes of their own: whatever happens to them, they end as if nothing had."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import tracking
from pipelines.shards import ShardSet
from tests.training import runs

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]

Undisturbed = Callable[[int], tuple[Path, dict[str, Any]]]
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return runs.bare_environment(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, token_set: ShardSet, bare: dict[str, str]
) -> Undisturbed:
    """The run directory and summary of a GPT that two workers under torchrun trained without interruption."""
    known: dict[int, tuple[Path, dict[str, Any]]] = {}

    def train(stage: int) -> tuple[Path, dict[str, Any]]:
        if stage not in known:
            run_dir = tmp_path_factory.mktemp(f"zero{stage}") / "run"
            known[stage] = run_dir, runs.run(*gpt(token_set, run_dir, stage), env=bare)
        return known[stage]

    return train


def gpt(token_set: ShardSet, run_dir: Path, stage: int, launcher: str = "torchrun") -> tuple[str, ...]:
    places = f"--data={token_set.uri}", f"--run-dir={run_dir}", f"--launcher={launcher}"
    return "gpt_tiny", *places, *runs.GPT, f"--engine.zero-stage={stage}"


def ended_the_same(run_dir: Path, summary: dict[str, Any], expected: tuple[Path, dict[str, Any]]) -> bool:
    """Every number of every line, and every weight, to the last bit."""
    assert runs.metrics(run_dir) == runs.metrics(expected[0])
    assert summary["fingerprint"] == expected[1]["fingerprint"]
    return True


def forget_the_end(run_dir: Path) -> None:
    """As if the run had been killed just before its result."""
    (run_dir / "result.json").unlink()


def newest_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").iterdir(), key=lambda path: path.name)


@pytest.mark.faults
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_moment_and_repeated_it_ends_the_same(
    stage: int, undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    """SIGKILL of the command takes its workers along; then a torchrun of the user's goes on with the run."""
    run_dir, kill_step = tmp_path / "run", random.Random(stage).randrange(1, runs.STEPS)
    process = runs.start(*gpt(token_set, run_dir, stage), env=bare)
    runs.kill_once(process, lambda: runs.steps_logged(run_dir) >= kill_step)
    arguments = [argument for argument in gpt(token_set, run_dir, stage) if "--launcher" not in argument]
    summary = runs.run(*arguments, env=bare, before=runs.TORCHRUN)
    assert 0 <= summary["resumed_from"] <= kill_step + 1
    assert ended_the_same(run_dir, summary, undisturbed(stage))


def test_every_zero_stage_learns_the_same(undisturbed: Undisturbed) -> None:
    plain, *sharded = ([line["loss"] for line in runs.metrics(undisturbed(stage)[0])] for stage in STAGES)
    for losses in sharded:
        assert losses == pytest.approx(plain, rel=1e-4)


def test_a_finished_run_repeated_does_nothing(
    undisturbed: Undisturbed, token_set: ShardSet, bare: dict[str, str]
) -> None:
    run_dir, summary = undisturbed(2)
    before = (run_dir / "metrics.jsonl").stat().st_mtime_ns
    again = runs.run(*gpt(token_set, run_dir, 2), env=bare)
    assert again["was_finished"]
    assert again["fingerprint"] == summary["fingerprint"]
    assert (run_dir / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_run_in_the_same_folder_is_refused(
    undisturbed: Undisturbed, token_set: ShardSet, bare: dict[str, str]
) -> None:
    refusal = runs.run(*gpt(token_set, undisturbed(2)[0], 2), "--seed=1", env=bare, code=2)
    assert "seed is 0 there and 1 here; go on with --seed 0" in refusal["error"]


@pytest.mark.faults
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed(2)[0], run_dir)
    forget_the_end(run_dir)
    damaged = newest_checkpoint(run_dir)
    victim = next(damaged.glob("*rank_1*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    summary = runs.run(*gpt(token_set, run_dir, 2), env=bare)
    assert f"passed over a damaged checkpoint: {damaged.name}: {victim.name}" in summary["stderr"]
    assert summary["resumed_from"] == 9
    assert ended_the_same(run_dir, summary, undisturbed(2))


@pytest.mark.faults
def test_where_no_checkpoint_is_whole_the_run_stops(
    undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed(2)[0], run_dir)
    forget_the_end(run_dir)
    for weights in (run_dir / "checkpoints").glob("*/mp_rank_00_model_states.pt"):
        os.truncate(weights, 100)
    refusal = runs.run(*gpt(token_set, run_dir, 2), env=bare, code=1)
    assert "no checkpoint in" in refusal["error"]
    assert "has 100 bytes, committed with" in refusal["error"]


@pytest.mark.faults
def test_a_signal_stops_it_with_everything_saved(
    frame_set: ShardSet, tmp_path: Path, bare: dict[str, str]
) -> None:
    places = {name: tmp_path / name for name in ("stopped", "whole")}
    commands = {
        name: ("tokenizer_tiny", f"--data={frame_set.uri}", f"--run-dir={place}", *runs.TOKENIZER)
        for name, place in places.items()
    }
    process = runs.start(*commands["stopped"], env=bare)
    runs.wait_until(lambda: runs.steps_logged(places["stopped"]) >= 4, process)
    process.send_signal(signal.SIGTERM)
    stopped = runs.finish(process, code=75)
    assert "saved; repeat the command to go on" in stopped["error"]
    summary = runs.run(*commands["stopped"], env=bare)
    assert summary["resumed_from"] >= 4
    assert ended_the_same(
        places["stopped"], summary, (places["whole"], runs.run(*commands["whole"], env=bare))
    )


@pytest.mark.ray
@pytest.mark.faults
def test_under_ray_train_a_killed_worker_changes_nothing(
    undisturbed: Undisturbed, token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group restarts from the newest whole checkpoint, and MLflow has one run with every step once."""
    expected = undisturbed(2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run_dir = tmp_path / "run"
    process = runs.start(*gpt(token_set, run_dir, 2, launcher="ray"))
    runs.wait_until(lambda: runs.steps_logged(run_dir) >= 4, process)
    os.kill(runs.ray_workers(process.pid)[-1], signal.SIGKILL)
    summary = runs.finish(process)
    assert summary["resumed_from"] >= 3
    assert ended_the_same(run_dir, summary, expected)
    client = tracking.connect()
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
    history = client.get_metric_history(summary["mlflow_run_id"], "loss")
    assert [metric.step for metric in history] == list(range(1, runs.STEPS + 1))
    assert summary["model_version"] == "models:/gpt-tiny/1"
