import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from training.config import RunConfig
from training.configs.engine import EngineConfig
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
        "optimizer.params.lr is 0.1 there, and --optimizer.peak-lr",
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
