import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from infra.errors import ConfigError
from training.config import RunConfig
from training.configs.engine import EngineConfig
from training.engine.deepspeed_keys import KEYS, VERSION
from training.engine.deepspeed_settings import inline, settings_of
from training.recipes import get_recipe


def with_json(theirs: dict[str, Any], tmp_path: Path, **engine: Any) -> RunConfig:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(theirs))
    return replace(get_recipe("gpt_tiny"), engine=EngineConfig(deepspeed_config=str(file), **engine))


def test_keys_that_no_setting_of_ours_decides_are_left_to_deepspeed(tmp_path: Path) -> None:
    theirs = {
        "zero_optimization": {"reduce_bucket_size": 1000, "stage": "auto"},
        "fp16": {"initial_scale_power": 8},
        "wall_clock_breakdown": False,
        "train_batch_size": 4,
    }
    settings = settings_of(with_json(theirs, tmp_path, zero_stage=1), world_size=2)
    assert settings["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert settings["fp16"] == {"enabled": False, "initial_scale_power": 8}
    assert settings["wall_clock_breakdown"] is False
    assert settings["gradient_accumulation_steps"] == 1


def test_every_contradiction_is_named_with_both_values_and_who_decides(tmp_path: Path) -> None:
    theirs = {
        "train_batch_size": 64,
        "gradient_accumulation_steps": 8,
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "optimizer": {"type": "Adam", "params": {"lr": 0.1}},
        "scheduler": {"type": "WarmupLR"},
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
    }
    with pytest.raises(ConfigError) as refusal:
        inline(with_json(theirs, tmp_path))
    for part in (
        "train_batch_size is 64 there, and --batches.global-batch makes it 4",
        "gradient_accumulation_steps is 8 there",
        "zero_optimization.stage is 3 there, and --engine.zero-stage makes it 2",
        "offload_optimizer.device is cpu there, and --engine.offload-optimizer makes it none",
        "optimizer.params.lr is 0.1 there, and that is for --optimizer.peak-lr",
        "scheduler.type is WarmupLR there",
        "bf16.enabled is True there, and --engine.dtype makes it False",
    ):
        assert part in str(refusal.value)
    assert "gradient_clipping" not in str(refusal.value)


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"bf16": True}, "bf16 is true"),
        ({"zero_optimization": 3}, "zero_optimization is 3"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, 'zero_optimization.offload_optimizer is "cpu"'),
    ],
)
def test_a_value_where_a_section_belongs_is_refused(
    theirs: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{named} there, and must be a section"):
        inline(with_json(theirs, tmp_path))


def test_the_old_spelling_of_bf16_is_known(tmp_path: Path) -> None:
    old = {"bfloat16": {"enabled": True, "check_grad_overflow": True}}
    settings = settings_of(with_json(old, tmp_path, dtype="bf16"), world_size=1)
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert "bfloat16" not in settings
    with pytest.raises(ConfigError, match=r"bf16\.enabled is True there, and --engine.dtype makes it False"):
        inline(with_json(old, tmp_path))
    with pytest.raises(ConfigError, match="bfloat16 and bf16, which are one"):
        inline(with_json(old | {"bf16": {"enabled": True}}, tmp_path, dtype="bf16"))


def test_a_json_travels_by_content(tmp_path: Path) -> None:
    """A worker elsewhere cannot read the file, and another content makes another run."""
    config = inline(with_json({"zero_optimization": {"reduce_bucket_size": 7}}, tmp_path))
    (tmp_path / "deepspeed.json").unlink()
    assert config.engine.deepspeed_config == '{"zero_optimization": {"reduce_bucket_size": 7}}'
    assert settings_of(config, world_size=1)["zero_optimization"]["reduce_bucket_size"] == 7
    assert inline(config) == config


@pytest.mark.parametrize("text", ["[1]", '"stage"', "{"])
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    engine = EngineConfig(deepspeed_config=str(tmp_path / "bad.json"))
    with pytest.raises(ConfigError, match="JSON"):
        inline(replace(get_recipe("gpt_tiny"), engine=engine))


def test_without_a_json_nothing_changes() -> None:
    config = get_recipe("gpt_tiny")
    assert inline(config) is config


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"gradient_cliping": 1.0}, r"gradient_cliping .*did you mean gradient_clipping\?"),
        ({"zero_optimisation": {"stage": 2}}, r"zero_optimisation .*did you mean zero_optimization\?"),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning is there, which DeepSpeed"),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, r"did you mean data_types.grad_accum_dtype\?"),
        (
            {"data_types": {"grad_accum_dtype": "int8"}},
            'grad_accum_dtype is "int8" there, and must be fp32 or',
        ),
        ({"communication_data_type": "fp7"}, "must be fp32 or fp16 or bf16"),
        ({"wall_clock_breakdown": "yes"}, "must be true or false"),
        ({"gradient_predivide_factor": 0}, "must be a number above 0"),
        ({"tensorboard": True}, "must be a section"),
    ],
)
def test_what_deepspeed_would_pass_over_or_break_off_at_is_refused_before(
    theirs: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        inline(with_json(theirs, tmp_path))


@pytest.mark.parametrize(
    "theirs",
    [
        {"checkpoint": {"load_universal": True}},
        {"checkpoint": {"writer": {"type": "fast"}}},
        {"datastates_ckpt": {"host_cache_size": 1}},
        {"zero_optimization": {"load_from_fp32_weights": False}},
        {"zero_optimization": {"elastic_checkpoint": True}},
    ],
)
def test_saving_and_loading_is_not_left_to_a_json(theirs: dict[str, Any], tmp_path: Path) -> None:
    """A run could be begun so that no command can go on with it."""
    with pytest.raises(
        ConfigError,
        match=r"and reelgpt, which saves and loads, makes|that is for reelgpt, which saves and loads to",
    ):
        inline(with_json(theirs, tmp_path))


def test_what_would_change_the_steps_arithmetic_is_refused_and_its_default_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gradient_allreduce_op is sum there"):
        inline(with_json({"gradient_allreduce_op": "sum"}, tmp_path))
    with pytest.raises(ConfigError, match="sequence_parallel_size is 2 there, and that is for --num-workers"):
        inline(with_json({"sequence_parallel_size": 2}, tmp_path))
    with pytest.raises(
        ConfigError, match="round_robin_gradients is True there, and reelgpt, which must know"
    ):
        inline(with_json({"zero_optimization": {"round_robin_gradients": True}}, tmp_path))
    inline(with_json({"zero_optimization": {"round_robin_gradients": False}}, tmp_path))
    inline(with_json({"gradient_allreduce_op": "mean", "checkpoint": {"load_universal": False}}, tmp_path))


def test_a_file_that_is_not_there_is_called_that_and_no_bad_json(tmp_path: Path) -> None:
    engine = EngineConfig(deepspeed_config=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"none\.json is not there; give a file") as refusal:
        inline(replace(get_recipe("gpt_tiny"), engine=engine))
    assert "no JSON" not in str(refusal.value)


class Asked(dict[str, Any]):
    """Remembers every key that it was asked for, also in its copies."""

    names: ClassVar[set[str]] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


@pytest.mark.deepspeed
@pytest.mark.slow
def test_the_known_keys_are_those_that_the_installed_deepspeed_asks_for() -> None:
    from training.engine.connection import deepspeed

    reader = importlib.import_module("deepspeed.runtime.config")
    deepspeed.DeepSpeedConfig(Asked(train_batch_size=1))
    removed = set(reader._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    for_a_mesh = {"sequence_parallel_size", "data_parallel_size"}  # which deepspeed.initialize reads itself
    assert (Asked.names - removed - {"bfloat16"}) | for_a_mesh == KEYS
    assert deepspeed.__version__ == VERSION
