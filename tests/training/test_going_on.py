from dataclasses import replace
from pathlib import Path

import pytest

from infra import storage
from infra.errors import ConfigError, TrainingError, UsageError
from pipelines.shards import ShardSet
from reelgpt.train import Train
from tests.training.tiny_run import summary
from training.config import RunConfig
from training.configs.objective import ReconstructConfig
from training.data import TrainingData, open_data
from training.going_on import begin, check
from training.recipes import get_recipe
from training.run_directory import Attempt, RunDirectory
from training.run_identity import refuse_mismatch


@pytest.fixture
def config() -> RunConfig:
    return get_recipe("tokenizer_tiny")


@pytest.fixture
def data(config: RunConfig, frame_set: ShardSet) -> TrainingData:
    return open_data(config, frame_set.uri)


@pytest.fixture
def begun(run_dir: str, config: RunConfig, data: TrainingData) -> RunDirectory:
    directory = RunDirectory.at(run_dir)
    check(directory, config, data, resume="auto")
    begin(directory, config, data, resume="auto", attempt="first")
    return directory


def test_the_same_run_may_go_on(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    check(begun, config, data, resume="auto")


def test_another_length_is_another_run(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    """Here the learning rate of every step after the warm-up depends on how many there will be."""
    storage.write_json(begun.result, summary(500))
    with pytest.raises(ConfigError, match="steps is 500 there and 250 here; go on with --steps 500"):
        check(begun, replace(config, steps=250), data, resume="auto")


def test_what_a_killed_command_left_is_swept_up(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    for name in ("ray-1234/progress.json", "save-1234", "stop-1234", "stop-1234.job.json"):
        storage.write(f"{begun.path}/{name}", b"")
    begin(begun, config, data, resume="auto", attempt="second")
    assert [file.name for file in storage.list_files(begun.path)] == ["config.json"]


def test_the_newest_command_is_the_one_that_may_write(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    begin(begun, config, data, resume="auto", attempt="second")
    Attempt(begun, "second").require_newest()
    with pytest.raises(TrainingError, match="another command goes on with the run"):
        Attempt(begun, "first").require_newest()


@pytest.mark.parametrize(
    "options",
    [
        ("--objective.no-flip",),
        ("--objective.model.levels", "8", "8"),
        ("--objective.frames-per-clip", "3"),
        ("--optimizer.peak-lr", "0.0001"),
        ("--objective.no-flip", "--seed", "3"),
    ],
)
def test_the_remedy_is_a_command_line_that_parses(
    options: tuple[str, ...], run_dir: str, config: RunConfig, data: TrainingData
) -> None:
    words = "tokenizer_tiny", "--data", "frames", "--run-dir", "run"
    begun = Train.parse((*words, *options)).config
    assert begun is not None
    begin(RunDirectory.at(run_dir), begun, data, resume="auto", attempt="first")
    with pytest.raises(ConfigError) as refused:
        check(RunDirectory.at(run_dir), config, data, resume="auto")
    remedy = str(refused.value).partition("go on with ")[2].partition(", or give")[0]
    assert Train.parse((*words, *remedy.split())).config == begun


def test_a_switch_that_was_left_on_is_left_out_again(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    objective = config.objective
    assert isinstance(objective, ReconstructConfig)
    with pytest.raises(ConfigError, match=r"go on without --objective\.no-flip, or"):
        check(begun, replace(config, objective=replace(objective, flip=False)), data, resume="auto")


def test_a_setting_that_only_one_has_makes_another_kind_of_run() -> None:
    with pytest.raises(ConfigError, match=r"another kind: only one of the two has model\.dim, z;"):
        refuse_mismatch({"z": None, "seed": 0}, {"model.dim": 1, "seed": 0}, "run", step=0)


@pytest.mark.parametrize(
    "content", ['{"model_type": "gpt2"}', "[]", "{not json", '{"identity": 3}', '{"gone_back": 7}']
)
def test_the_config_of_somebody_else_is_refused(
    content: str, tmp_path: Path, config: RunConfig, data: TrainingData
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="not a training run; give an empty --run-dir"):
        check(RunDirectory.at(str(tmp_path)), config, data, resume="auto")


def test_another_seed_is_refused_with_both_values_and_the_remedy(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    with pytest.raises(ConfigError, match="seed is 0 there and 7 here; go on with --seed 0, or give another"):
        check(begun, replace(config, seed=7), data, resume="auto")


def test_other_shards_are_refused(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    other = ShardSet(data.shard_set.uri, replace(data.shard_set.manifest, fingerprint="f" * 64))
    with pytest.raises(ConfigError, match=r"shards is .* there and ffff"):
        check(begun, config, replace(data, shard_sets=(other,)), resume="auto")


def test_a_folder_with_something_else_is_refused(
    tmp_path: Path, config: RunConfig, data: TrainingData
) -> None:
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(UsageError, match="not a training run; give an empty --run-dir"):
        check(RunDirectory.at(str(tmp_path)), config, data, resume="auto")


def test_must_needs_a_checkpoint(begun: RunDirectory, config: RunConfig, data: TrainingData) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        check(begun, config, data, resume="must")


def test_never_refuses_where_there_are_checkpoints(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    storage.write_json(f"{begun.checkpoints}/step-00000010-abc/MANIFEST.json", {})
    with pytest.raises(UsageError, match="never starts a run anew"):
        check(begun, config, data, resume="never")


def test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew_by_accident(
    begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    """At step 200 it waits until that of step 100 is committed."""
    storage.append(begun.metrics, b'{"step": 200}\n')
    check(begun, config, data, resume="auto")
    storage.append(begun.metrics, b'{"step": 205}\n')
    often = replace(config, checkpoints=replace(config.checkpoints, every_steps=5))
    for same in (config, often):
        with pytest.raises(UsageError, match="no checkpoint left, though it saved that of step 100; bring"):
            check(begun, same, data, resume="auto")
    check(begun, config, data, resume="never")


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "lo\n',
        b"\0\0\0\n",
        b"\xff\n",
        b"2\n",
        b'{"step": null}\n',
        b'{"step": 2, "loss": "a"}\n',
    ],
)
def test_a_damaged_line_of_the_metrics_is_one_sentence(
    line: bytes, begun: RunDirectory, config: RunConfig, data: TrainingData
) -> None:
    Path(begun.metrics).write_bytes(b'{"step": 1}\n' + line + b'{"step": 3}\n')
    with pytest.raises(TrainingError, match=r"no record of a step.*delete that line"):
        check(begun, config, data, resume="auto")


def test_frames_are_refused_where_tokens_are_needed(frame_set: ShardSet) -> None:
    with pytest.raises(UsageError, match="holds frames, and gpt_tiny learns from tokens"):
        open_data(get_recipe("gpt_tiny"), frame_set.uri)


def test_a_tokenizer_that_is_not_there_is_refused(token_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say where its bundle is with --tokenizer"):
        open_data(get_recipe("gpt_tiny"), token_set.uri, tokenizer=str(tmp_path))
