"""docs/tracking.md names what MLflow is told: no more, no less."""

import re
from pathlib import Path

import pytest

from infra import configs, tracking
from pipelines.shards import ShardSet
from tests.training import runs
from training.recipes import RECIPES, get_recipe

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"
NAME = re.compile(r"`([^`]+)`")
ELSEWHERE = {"mfu", "loss_scale", "skipped_steps"}
"""On a GPU, or in fp16."""


def section(title: str) -> str:
    return PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def documented_metrics() -> set[str]:
    rows = [line for line in section("Metrics").splitlines() if line.startswith("| `")]
    return {name for row in rows for name in NAME.findall(row.split("|")[1])}


def documented_params() -> set[str]:
    found = set[str]()
    for line in section("Params").splitlines():
        if line.startswith("- "):
            before, colon, after = line.rpartition(":")
            prefix = NAME.findall(before)[0] if colon else ""
            found |= {prefix + name for name in NAME.findall(after)}
    return found


def test_every_setting_is_a_documented_param() -> None:
    recipes = [tracking.flatten(configs.to_dict(get_recipe(name))) for name in RECIPES]
    assert documented_params() == set[str]().union(*recipes)


def test_every_tag_is_documented() -> None:
    tags = {value for name, value in vars(tracking).items() if name.endswith("_TAG")}
    assert {name for name in NAME.findall(section("Tags")) if name.startswith("reelgpt.")} == tags


@pytest.mark.deepspeed
@pytest.mark.slow
def test_every_number_that_runs_send_is_documented(
    token_set: ShardSet, frame_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPT and of a tokenizer."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    gpt = ("gpt_tiny", f"--data={token_set.uri}", f"--run-dir={tmp_path}/gpt", *runs.GPT, "--num-workers=1")
    tokenizer = (
        "tokenizer_tiny",
        f"--data={frame_set.uri}",
        f"--run-dir={tmp_path}/tokenizer",
        *runs.TOKENIZER,
        "--num-workers=1",
    )
    summaries = [runs.run(*command) for command in (gpt, tokenizer)]
    told = [tracking.connect().get_run(summary["mlflow_run_id"]) for summary in summaries]
    assert set[str]().union(*(run.data.metrics for run in told)) == documented_metrics() - ELSEWHERE
    assert set[str]().union(*(run.data.params for run in told)) == documented_params()
    for run in told:
        files = [file.path for file in tracking.connect().list_artifacts(run.info.run_id)]
        assert sorted(files) == ["config.json", "images"]
