import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from infra import configs
from infra.errors import ConfigError
from model.config import GPTConfig
from model.gpt import GPT
from pipelines.shards import ShardSet
from tests.training import runs
from tests.training.memory_probe import objective, run_config
from training.configs.batches import BatchesConfig
from training.configs.engine import EngineConfig
from training.configs.objective import PredictConfig, ReconstructConfig
from training.data import open_data
from training.flops import count_parameters, training_flops_per_token
from training.objectives import Examples, Learner, Losses, Reconstruct
from training.plan import GB, STAGES, Machine, activation_bytes, plan, state_bytes, with_world_size
from training.recipes import get_recipe

TOLERANCE = 0.08
"""For buckets, padding, and the one parameter that two ranks share."""

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
    paper: dict[Literal[1, 2, 3], float] = {1: 31.4, 2: 16.6, 3: 1.9}
    for stage, gigabytes in paper.items():
        engine = EngineConfig(zero_stage=stage, dtype="bf16")
        states = state_bytes(7_500_000_000, engine, world_size=64)
        assert states.device.total / GB == pytest.approx(gigabytes, abs=0.05)


def test_a_lone_worker_in_fp32_holds_no_copies_at_any_stage() -> None:
    for stage in STAGES:
        states = state_bytes(1000, EngineConfig(zero_stage=stage), world_size=1)
        assert (states.device.optimizer, states.device.total) == (8000, 16000)
    written_for = EngineConfig(zero_stage=2, deepspeed_config="{}")
    assert state_bytes(1000, written_for, world_size=1).device.optimizer == 12000


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
    (chosen,) = (states for states in facts["states"] if states["is_chosen"])
    cramped = plan(config, data, Machine(memory_gb=chosen["device"]["total"] / GB))
    assert cramped["largest_micro_batch"] == 0


def test_clips_of_several_grids_count_as_many_tokens_as_they_have(
    token_set: ShardSet, two_grid_set: ShardSet
) -> None:
    """Sequences of 19 tokens, and of 13 and 10 clips 19 and 7, three quarters to one quarter."""
    config = get_recipe("gpt_tiny")
    config = replace(config, objective=replace(config.objective, task="generate", prefix_frames=None))
    config = replace(config, batches=replace(config.batches, weights=(0.75, 0.25)))
    data = open_data(config, [token_set.uri, two_grid_set.uri])
    long, short = data.longest_sequence, data.longest_sequence - 3 * 4
    facts = plan(config, data, Machine(memory_gb=1.0))
    share = 0.25 * 10 / 23
    assert facts["tokens"] == pytest.approx(150 * 4 * ((1 - share) * long + share * short))
    assert facts["tokens_of_longest_clip"] == long
    assert facts["tokens_per_clip"] == pytest.approx(facts["tokens"] / 600)


def test_more_memory_never_makes_the_largest_micro_batch_smaller(token_set: ShardSet) -> None:
    config = replace(get_recipe("gpt_tiny"), num_workers=1)
    config = replace(config, batches=replace(config.batches, global_batch=24, micro_batch=1))
    data = open_data(config, token_set.uri)
    sizes = [plan(config, data, Machine(memory_gb=i / 2000))["largest_micro_batch"] for i in range(1, 60)]
    assert sizes == sorted(sizes)
    assert set(sizes) <= {0, 1, 2, 3, 4, 6, 8, 12, 24}
    assert len(set(sizes)) > 2


def test_where_shares_are_uneven_what_is_done_for_nothing_takes_time(token_set: ShardSet) -> None:
    """Of 9 rounds of three workers' 8 micro-batches, one counts for nothing."""
    config = replace(get_recipe("gpt_tiny"), num_workers=1)
    config = replace(config, batches=BatchesConfig(global_batch=16, micro_batch=2, allow_uneven=True))
    data, machine = open_data(config, token_set.uri), Machine(memory_gb=1.0)
    alone, three = (plan(with_world_size(config, size), data, machine) for size in (1, 3))
    assert three["hours"] == pytest.approx(alone["hours"] / 3 * 9 / 8)
    assert three["largest_micro_batch"] == 4


@pytest.mark.slow
def test_a_tokenizer_is_counted_too(frame_set: ShardSet) -> None:
    config = get_recipe("tokenizer_tiny")
    assert isinstance(config.objective, ReconstructConfig)
    facts = plan(config, open_data(config, frame_set.uri), Machine())
    learner, side = Learner(Reconstruct(config.objective)), config.objective.model.frame_size
    frames = torch.rand(1, config.objective.frames_per_clip, 3, side, side)
    with FlopCounterMode(display=False) as flops:
        kept = bytes_kept(learner, {"frames": frames}, then=lambda losses: losses[0].backward())
    assert facts["parameters"] == sum(parameter.numel() for parameter in learner.parameters())
    num_clips = config.steps * config.batches.global_batch
    assert facts["exaflops"] * 1e18 == pytest.approx(num_clips * flops.get_total_flops(), rel=1e-6)
    assert facts["activation_bytes_per_clip"] == pytest.approx(kept, rel=0.02)
    machine = Machine()
    per_second = config.num_workers * machine.peak_tflops * 1e12 * machine.mfu
    assert facts["hours"] * 3600 == pytest.approx(facts["exaflops"] * 1e18 / per_second)
    assert facts["largest_micro_batch"] == config.batches.global_batch // config.num_workers


def test_a_world_size_that_the_batch_does_not_divide_into_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide into 3 workers"):
        with_world_size(get_recipe("gpt_tiny"), 3)


def test_a_machine_beyond_its_peak_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mfu=1\.5"):
        Machine(mfu=1.5)


CASES = [
    *(EngineConfig(zero_stage=stage, dtype="bf16") for stage in STAGES[1:]),
    *(EngineConfig(zero_stage=stage, dtype="bf16", offload_optimizer=True) for stage in STAGES[2:3]),
    EngineConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True),
]


@pytest.mark.deepspeed
@pytest.mark.slow
def test_two_real_ranks_hold_what_was_planned() -> None:
    """Weights, gradients and optimizer, wherever they lie: without a GPU, host and device are one."""
    asked = json.dumps([configs.to_dict(case) for case in CASES])
    command = [sys.executable, *runs.TORCHRUN, "-m", "tests.training.memory_probe", asked]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case, real in zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        planned = state_bytes(real["parameters"], case, world_size=2, accumulates=True)
        assert real["bytes"] == pytest.approx(planned.device.total + planned.host.total, rel=TOLERANCE), case


def bytes_kept(learner: Learner, examples: Examples, then: Callable[[Losses], None] = lambda _: None) -> int:
    """From forward to backward, but for the weights."""
    kept = dict[int, Tensor]()
    own = {parameter.untyped_storage().data_ptr() for parameter in learner.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        then(learner(examples))
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)


@pytest.mark.parametrize(("layers", "hidden", "grid"), [(6, 256, (4, 4, 4)), (2, 384, (4, 8, 8))])
def test_a_forward_pass_keeps_what_was_planned(layers: int, hidden: int, grid: tuple[int, int, int]) -> None:
    """In fp32, without a GPU."""
    base = run_config(EngineConfig(zero_stage=2), 1)
    assert isinstance(base.objective, PredictConfig)
    shape = replace(base.objective.model, model_dim=128, num_layers=layers, hidden_dim=hidden, dropout=0.0)
    config = replace(base, objective=replace(base.objective, model=shape))
    predict = objective(config, num_codes=1000, code_levels=(8, 5, 5, 5))
    learner, clips = Learner(predict), [np.zeros(grid, np.uint16)] * 2
    examples = predict.examples(clips, None)
    real = bytes_kept(learner, examples)
    num_tokens, num_targets = examples["inputs"].shape[1], len(examples["places"]) // 2
    planned = 2 * activation_bytes(predict._gpt_config, num_tokens, num_targets, config)
    assert real == pytest.approx(planned, rel=0.12)


def test_what_is_offloaded_leaves_the_device() -> None:
    engine = EngineConfig(zero_stage=3, dtype="bf16", offload_optimizer=True, offload_parameters=True)
    all_of_it = state_bytes(1000, engine, world_size=2, has_average=True)
    assert all_of_it.device.total == 0.0
    optimizer = state_bytes(1000, replace(engine, offload_parameters=False), world_size=2, has_average=True)
    assert optimizer.device.total == optimizer.device.weights == 1000.0
    stage_2 = state_bytes(1000, replace(CASES[1], offload_optimizer=True), world_size=2)
    assert stage_2.device.total == 2000.0 + 1000.0
    assert stage_2.host.total == 6000.0 + 2000.0


def test_every_way_to_lay_the_states_is_shown_once(token_set: ShardSet) -> None:
    config = with_world_size(get_recipe("gpt_tiny"), 2)
    states = plan(config, open_data(config, token_set.uri), Machine())["states"]
    ways = [(s["zero_stage"], s["offload_optimizer"], s["offload_parameters"]) for s in states]
    assert len(ways) == len(set(ways)) == 1 + 2 + 2 + 4
    assert [s["zero_stage"] for s in states if s["is_chosen"]] == [config.engine.zero_stage]


@pytest.mark.parametrize("recipe", ["gpt_tiny", "gpt_350m"])
def test_every_recipe_of_a_gpt_can_be_planned(recipe: str, token_set: ShardSet) -> None:
    config = get_recipe(recipe)
    facts = plan(config, open_data(config, token_set.uri), Machine())
    assert sum(states["is_chosen"] for states in facts["states"]) == 1
