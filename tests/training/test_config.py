from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from infra import configs
from infra.errors import ConfigError
from training.config import BatchesConfig, EngineConfig, OptimizerConfig, ReconstructConfig, RunConfig
from training.recipes import RECIPES, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_travels_as_json_and_comes_back_the_same(name: str) -> None:
    config = get_recipe(name)
    assert configs.from_dict(RunConfig, configs.to_dict(config)) == config


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'gpt_tiny'.*tokenizer_tiny"):
        get_recipe("gpt_tinny")


@pytest.mark.parametrize(("world_size", "accumulated"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_a_global_batch_is_shared_out_evenly(world_size: int, accumulated: int) -> None:
    assert BatchesConfig(global_batch=12, micro_batch=2).micro_batches_per_worker(world_size) == accumulated


def test_a_global_batch_that_does_not_divide_is_refused_with_the_legal_sizes() -> None:
    with pytest.raises(ConfigError, match=r"global_batch=12 .* 2 workers .* 4 clips.*: 8 or 16"):
        BatchesConfig(global_batch=12, micro_batch=4).micro_batches_per_worker(2)


def test_uneven_shares_are_taken_where_they_are_allowed() -> None:
    uneven = BatchesConfig(global_batch=12, micro_batch=2, allow_uneven=True)
    assert [uneven.micro_batches_per_worker(world_size) for world_size in (1, 3, 4, 5, 6)] == [6, 2, 2, 2, 1]
    with pytest.raises(ConfigError, match=r"does not divide into 7 workers .*: 14$"):
        uneven.micro_batches_per_worker(7)
    with pytest.raises(ConfigError, match=r"13 does not divide into 3 workers .*: 12 or 14$"):
        replace(uneven, global_batch=13).micro_batches_per_worker(3)
    with pytest.raises(ConfigError, match=r"8 or 16; or give --batches\.allow-uneven$"):
        replace(uneven, allow_uneven=False).micro_batches_per_worker(4)
    with pytest.raises(ConfigError, match=r"10 or 15$"):
        replace(uneven, micro_batch=5, allow_uneven=False).micro_batches_per_worker(1)


def test_any_number_of_workers_may_be_left_where_shares_may_be_uneven() -> None:
    config = get_recipe("gpt_tiny")
    batches = replace(config.batches, global_batch=16, micro_batch=2)
    with pytest.raises(ConfigError, match=r"could be 3 workers.*: 1, 2, 4, 8; or give --batches\.allow"):
        replace(config, batches=batches, num_workers=8, min_workers=2)
    replace(config, batches=replace(batches, allow_uneven=True), num_workers=8, min_workers=2)


def test_the_learning_rate_warms_up_to_its_peak_and_ends_at_its_share() -> None:
    config = OptimizerConfig(peak_lr=1e-2, warmup_steps=10, final_lr_share=0.1)
    rates = [config.learning_rate(step, steps=50) for step in range(1, 51)]
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == rates[9] == 1e-2
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3)


def test_warmup_stable_decay_stays_at_its_peak_until_the_decay() -> None:
    config = OptimizerConfig(
        peak_lr=1.0, warmup_steps=10, schedule="wsd", decay_share=0.25, final_lr_share=0.1
    )
    rates = [config.learning_rate(step, steps=100) for step in range(1, 101)]
    assert rates[4] == pytest.approx(0.5)
    assert set(rates[9:75]) == {1.0}
    assert all(later < earlier for earlier, later in pairwise(rates[74:]))
    assert rates[-1] == pytest.approx(0.1)
    assert rates[87] == pytest.approx(1.0 - 0.9 * 13 / 25)


@pytest.mark.parametrize("steps", [1, 5, 11, 12])
def test_a_schedule_is_whole_where_warm_up_and_decay_meet(steps: int) -> None:
    for schedule in ("cosine", "wsd"):
        config = OptimizerConfig(peak_lr=1.0, warmup_steps=10, schedule=schedule, final_lr_share=0.0)
        rates = [config.learning_rate(step, steps=steps) for step in range(1, steps + 1)]
        assert all(0.0 <= rate <= 1.0 for rate in rates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offload_optimizer": True, "zero_stage": 0}, "offload_optimizer has no effect"),
        ({"offload_parameters": True, "zero_stage": 2}, "offload_parameters has no effect .* give stage 3"),
        ({"compile": True, "zero_stage": 3}, "give stage 0, 1 or 2"),
        ({"dtype": "fp16", "zero_stage": 0}, "needs ZeRO"),
    ],
)
def test_engine_settings_that_cannot_work_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**settings)


def test_optimizer_settings_without_effect_or_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"decay_share=0\.2 has no effect with schedule=cosine"):
        OptimizerConfig(peak_lr=1.0, decay_share=0.2)
    with pytest.raises(ConfigError, match=r"ema_decay=1\.0 must be above 0 and below 1"):
        OptimizerConfig(peak_lr=1.0, ema_decay=1.0)


def test_a_run_shorter_than_its_warm_up_keeps_warming_up() -> None:
    config = OptimizerConfig(peak_lr=1.0, warmup_steps=10)
    assert config.learning_rate(4, steps=4) == pytest.approx(0.4)


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="difference_weight has no effect"):
        ReconstructConfig(frames_per_clip=1, difference_weight=0.1)


def test_bf16_without_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"give engine\.zero_stage 1, 2 or 3"):
        EngineConfig(zero_stage=0, dtype="bf16")


def test_what_would_fail_at_the_end_of_a_run_is_refused_at_its_start() -> None:
    with pytest.raises(ConfigError, match="cannot name a model"):
        replace(get_recipe("gpt_tiny"), register_as="bad name")
    with pytest.raises(ConfigError, match="'None' would be a model of that name; give --no-register to"):
        replace(get_recipe("gpt_tiny"), register_as="None")
    with pytest.raises(ConfigError, match="must be below 9223372036854775808"):
        replace(get_recipe("gpt_tiny"), seed=1 << 63)
