from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from infra.errors import ConfigError
from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer import Tokenizer
from pipelines.shards import ShardSet
from tests.training.test_engine import Training, tiny
from training.data import open_data
from training.flops import count_parameters, training_flops_per_token
from training.objective_config import ReconstructConfig
from training.plan import GB, Machine, plan, state_bytes, with_world_size
from training.recipes import get_recipe

SHAPES = (
    GPTConfig(vocabulary_size=300, context_tokens=8, model_dim=24, num_layers=1, num_heads=3, num_kv_heads=1),
    GPTConfig(
        vocabulary_size=1300, context_tokens=8, model_dim=64, num_layers=3, num_heads=4, num_kv_heads=2,
        hidden_dim=160, code_levels=(8, 5, 5, 5),
    ),
)  # fmt: skip


@pytest.mark.parametrize("config", SHAPES)
def test_parameters_are_counted_as_the_model_has_them(config: GPTConfig) -> None:
    model = GPT(config)
    counts = count_parameters(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert counts.embedding == sum(parameter.numel() for parameter in model.embedding.parameters())


def test_half_precision_takes_what_the_zero_paper_says() -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters on 64 GPUs, in GB."""
    paper = {0: 120.0, 1: 31.4, 2: 16.6, 3: 1.9}
    for stage, gigabytes in paper.items():
        states = state_bytes(7_500_000_000, dtype="bf16", stage=stage, world_size=64)
        assert states.total / GB == pytest.approx(gigabytes, abs=0.05)


def test_a_tokens_flops_are_palms() -> None:
    config = SHAPES[1]
    counts = count_parameters(config)
    assert training_flops_per_token(config, 100) == 6 * (counts.blocks + counts.head) + 12 * 3 * 64 * 100


def test_a_plan_adds_up(token_set: ShardSet) -> None:
    config = with_world_size(get_recipe("gpt_tiny"), 2)
    data = open_data(config, token_set.uri)
    facts = plan(config, data, Machine(memory_gb=1.0, peak_tflops=10.0, mfu=0.5))
    assert facts["clips"] == 23
    assert facts["epochs"] == pytest.approx(150 * 4 / 23)
    assert facts["tokens"] == 150 * 4 * data.longest_sequence
    assert facts["tokens_per_parameter"] == pytest.approx(facts["tokens"] / facts["parameters"])
    assert facts["hours"] == pytest.approx(facts["exaflops"] * 1e18 / (2 * 10e12 * 0.5 * 3600))
    assert facts["largest_micro_batch"] == 2
    cramped = plan(config, data, Machine(memory_gb=facts["state_bytes_by_zero_stage"]["2"] / GB))
    assert cramped["largest_micro_batch"] == 0


def test_more_memory_never_makes_the_largest_micro_batch_smaller(token_set: ShardSet) -> None:
    config = replace(get_recipe("gpt_tiny"), num_workers=1)
    config = replace(config, batches=replace(config.batches, global_batch=24, micro_batch=1))
    data = open_data(config, token_set.uri)
    sizes = [plan(config, data, Machine(memory_gb=i / 2000))["largest_micro_batch"] for i in range(1, 60)]
    assert sizes == sorted(sizes)
    assert set(sizes) <= {0, 1, 2, 3, 4, 6, 8, 12, 24}
    assert len(set(sizes)) > 2


def test_a_tokenizer_is_counted_too(frame_set: ShardSet) -> None:
    config = get_recipe("tokenizer_tiny")
    assert isinstance(config.objective, ReconstructConfig)
    facts = plan(config, open_data(config, frame_set.uri), Machine())
    model = Tokenizer(config.objective.model)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_world_size_that_the_batch_does_not_divide_into_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide into 3 workers"):
        with_world_size(get_recipe("gpt_tiny"), 3)


def test_a_machine_beyond_its_peak_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mfu=1\.5"):
        Machine(mfu=1.5)


@pytest.fixture
def connected() -> Iterator[None]:
    yield
    from training.connection import disconnect

    disconnect()


@pytest.mark.deepspeed
@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("dtype", "stage"), [("fp32", 0), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 3)]
)
def test_weights_and_optimizer_take_what_a_real_engine_holds(
    dtype: str, stage: int, token_set: ShardSet
) -> None:
    config = tiny(zero_stage=stage, dtype=dtype)
    training = Training(config, token_set)
    training.steps(1, 2)
    engine: Any = training.engine._engine
    parameters = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    optimizer = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    if stage == 3:
        masters = engine.optimizer.fp32_partitioned_groups_flat
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*parameters, *masters]}
    moments = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    ]
    num_parameters = sum(training.weights()[name].numel() for name in training.weights())
    planned = state_bytes(num_parameters, dtype=dtype, stage=stage, world_size=1)
    real = sum(held.values()) + sum(value.untyped_storage().nbytes() for value in moments)
    assert real == pytest.approx(planned.weights + planned.optimizer, rel=0.01)
