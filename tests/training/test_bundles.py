"""Which of the models that a run makes at its evaluations are kept."""

from dataclasses import replace

import pytest

from model.tokenizer import Tokenizer
from pipelines.shards import ShardSet
from tests.training.conftest import TINY_TOKENIZER
from training import going_on
from training.bundles import Origin, export_bundle
from training.data import open_data
from training.listeners import MetricsFile
from training.objectives import build_objective
from training.ranks import Ranks
from training.recipes import get_recipe
from training.run import Run
from training.run_directory import Attempt, RunDirectory

LOSSES = {10: 5.0, 20: 3.0, 30: 4.0, 40: 3.0, 50: 2.0, 60: 6.0}


def a_run(frame_set: ShardSet, run_dir: str, *, keep_bundles: int) -> Run:
    config = get_recipe("tokenizer_tiny")
    config = replace(config, evaluation=replace(config.evaluation, keep_bundles=keep_bundles))
    data, directory = open_data(config, frame_set.uri), RunDirectory.at(run_dir)
    going_on.begin(directory, config, data, resume="auto", attempt="first")
    objective, attempt = build_objective(config, data), Attempt(directory, "first")
    return Run(config=config, data=data, objective=objective, ranks=Ranks(), attempt=attempt)


@pytest.mark.parametrize(
    ("keep_bundles", "kept"),
    [
        (1, [[10], [20], [20, 30], [20, 40], [50], [50, 60]]),
        (2, [[10], [10, 20], [20, 30], [20, 30, 40], [40, 50], [50, 60]]),
    ],
)
def test_the_last_and_the_best_are_kept_and_of_equals_the_first(
    frame_set: ShardSet, run_dir: str, keep_bundles: int, kept: list[list[int]]
) -> None:
    run, model = a_run(frame_set, run_dir, keep_bundles=keep_bundles), Tokenizer(TINY_TOKENIZER)
    lines = MetricsFile(run.attempt, resumed_step=0)
    found = []
    for step, loss in LOSSES.items():
        metrics = {"loss": 1.0, "val_loss": loss}
        lines(step, metrics)
        export_bundle(run, model, Origin(step=step, checkpoint=None, run_key="", mlflow_run_id=None), metrics)
        found.append(run.directory.bundle_steps())
    assert found == kept


def test_where_nothing_is_held_out_the_last_are_kept(frame_set: ShardSet, run_dir: str) -> None:
    run, model = a_run(frame_set, run_dir, keep_bundles=1), Tokenizer(TINY_TOKENIZER)
    for step in (10, 20):
        export_bundle(run, model, Origin(step=step, checkpoint=None, run_key="", mlflow_run_id=None), {})
    assert run.directory.bundle_steps() == [20]
