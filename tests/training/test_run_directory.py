from dataclasses import replace
from pathlib import Path

import pytest

from infra import storage
from infra.errors import ConfigError, UsageError
from pipelines.shards import ShardSet
from training.config import RunConfig
from training.data import TrainingData, open_data
from training.recipes import get_recipe
from training.run_directory import RunDirectory, read_lines


@pytest.fixture
def config() -> RunConfig:
    return get_recipe("tokenizer_tiny")


@pytest.fixture
def data(config: RunConfig, frame_set: ShardSet) -> TrainingData:
    return open_data(config, frame_set.uri)


@pytest.fixture
def begun(run_dir: str, config: RunConfig, data: TrainingData) -> RunDirectory:
    directory = RunDirectory.at(run_dir)
    directory.check(config, data, resume="auto")
    directory.begin(config, data, resume="auto")
    return directory


def test_the_same_run_may_go_on(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    begun.check(config, data, resume="auto")


def test_a_run_may_be_made_longer(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    begun.check(replace(config, steps=config.steps * 2), data, resume="auto")


def test_another_seed_is_refused_with_both_values_and_the_remedy(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    with pytest.raises(ConfigError, match="seed is 0 there and 7 here; go on with --seed 0, or give another"):
        begun.check(replace(config, seed=7), data, resume="auto")


def test_other_shards_are_refused(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    other = ShardSet(data.shard_set.uri, replace(data.shard_set.manifest, fingerprint="f" * 64))
    with pytest.raises(ConfigError, match=r"shards is .* there and ffff"):
        begun.check(config, replace(data, shard_set=other), resume="auto")


def test_a_folder_with_something_else_is_refused(
    tmp_path: Path, config: RunConfig, data: TrainingData
) -> None:
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(UsageError, match="not a training run; give an empty --run-dir"):
        RunDirectory.at(str(tmp_path)).check(config, data, resume="auto")


def test_must_needs_a_checkpoint(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        begun.check(config, data, resume="must")


def test_never_refuses_where_there_are_checkpoints(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    storage.write_json(f"{begun.checkpoints}/step-00000010-abc/MANIFEST.json", {})
    with pytest.raises(UsageError, match="never starts a run anew"):
        begun.check(config, data, resume="never")


def test_a_remote_run_directory_is_refused() -> None:
    with pytest.raises(UsageError, match="not on a file system"):
        RunDirectory.at("s3://bucket/run")


def test_a_line_cut_off_by_a_kill_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "lo')
    assert list(read_lines(str(path))) == [{"step": 1, "loss": 0.1}]


def test_frames_are_refused_where_tokens_are_needed(frame_set: ShardSet) -> None:
    with pytest.raises(UsageError, match="holds frames, and gpt_tiny learns from tokens"):
        open_data(get_recipe("gpt_tiny"), frame_set.uri)


def test_a_tokenizer_that_is_not_there_is_refused(token_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say where its bundle is with --tokenizer"):
        open_data(get_recipe("gpt_tiny"), token_set.uri, tokenizer=str(tmp_path))
