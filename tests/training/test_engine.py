"""DeepSpeed engines in this process, at one worker; several workers are `test_launch.py`'s matter."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra import hashing
from infra.errors import CheckpointError, ConfigError, TrainingError
from model.gpt import Block
from pipelines.shards import ShardSet
from tests.training.engines import SCALED_WELL, Training, load, save, tiny
from training.engine.connection import connect
from training.engine.engine import Engine
from training.engine.engine_files import only_data
from training.engine.hastened import _partitions_norm
from training.saving.manifest import Checkpoint, FileRecord

NO_LOSS_SCALE_LEFT = '{"fp16": {"initial_scale_power": 40, "min_loss_scale": 1099511627776, "hysteresis": 1}}'
SCALED_TOO_HIGH = '{"fp16": {"initial_scale_power": 30, "hysteresis": 1}}'
pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("connected")]
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@STAGES
def test_an_average_is_kept_measured_published_and_resumed_at_every_stage(
    stage: int, token_set: ShardSet, tmp_path: Path
) -> None:
    plain = Training(tiny(zero_stage=stage), token_set)
    expected = plain.weights()
    average = {name: value.clone() for name, value in expected.items()}
    kept = Training(tiny(zero_stage=stage, ema_decay=0.5), token_set)
    for number in (1, 2):
        assert plain.step(number) == kept.step(number)
        expected = plain.weights()
        average = {name: value.lerp(expected[name], 0.5) for name, value in average.items()}
    torch.testing.assert_close(kept.weights(), average)
    before = kept.engine.losses(kept.examples[0])["loss"]
    with kept.engine.averaged():
        assert kept.engine.losses(kept.examples[0])["loss"] != before
    assert kept.engine.losses(kept.examples[0])["loss"] == before
    saved = save(kept.engine, tmp_path, {"step": 2})
    assert "ema-00000.safetensors" in {record.name for record in saved.files}
    after = kept.steps(3, 4), kept.weights()
    resumed = Training(tiny(zero_stage=stage, ema_decay=0.5), token_set)
    assert load(resumed.engine, tmp_path, saved) == {"step": 2}
    assert resumed.steps(3, 4) == after[0]
    assert all(torch.equal(value, after[1][name]) for name, value in resumed.weights().items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_lone_worker_in_fp32_does_at_every_stage_what_it_does_at_0(
    stage: int, token_set: ShardSet, tmp_path: Path
) -> None:
    plain = Training(tiny(zero_stage=0), token_set)
    expected = plain.steps(1, 2, 3, 4)
    lone = Training(tiny(zero_stage=stage, deepspeed_config=None), token_set)
    assert lone.steps(1, 2) == expected[:2]
    saved = save(lone.engine, tmp_path, {"step": 2})
    resumed = Training(tiny(zero_stage=0), token_set)
    load(resumed.engine, tmp_path, saved)
    assert resumed.steps(3, 4) == expected[2:]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (0, {"checkpoint_activations": True}),
        (2, {"checkpoint_activations": True}),
        (3, {"checkpoint_activations": True}),
        (1, {"offload_optimizer": True}),
        (2, {"offload_optimizer": True}),
        (3, {"offload_optimizer": True, "offload_parameters": True}),
    ],
)
def test_what_saves_memory_changes_no_loss(stage: int, changes: dict[str, Any], token_set: ShardSet) -> None:
    plain = Training(tiny(zero_stage=stage), token_set).steps(1, 2, 3)
    assert Training(tiny(zero_stage=stage, **changes), token_set).steps(1, 2, 3) == pytest.approx(
        plain, rel=1e-5
    )


@STAGES
def test_blocks_that_forget_are_computed_twice(stage: int, token_set: ShardSet) -> None:
    def times_computed(**changes: Any) -> int:
        training, calls = Training(tiny(zero_stage=stage, **changes), token_set), []
        blocks = [module for module in training.engine._engine.module.modules() if isinstance(module, Block)]
        for block in blocks:
            block.attention_norm.register_forward_hook(lambda *_: calls.append(1))
        training.step(1)
        return len(calls) // len(blocks)

    assert times_computed() == 2  # micro-batches
    assert times_computed(checkpoint_activations=True) == 4


@STAGES
@pytest.mark.parametrize("clip_norm", [1e-3, 1e6])
def test_gradients_are_clipped_and_their_norm_told(stage: int, clip_norm: float, token_set: ShardSet) -> None:
    """The first moment after the first step is a tenth of the gradient."""
    training = Training(tiny(zero_stage=stage, clip_norm=clip_norm), token_set)
    training.step(1)
    optimizer = training.engine._engine.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    moment = torch.cat([state["exp_avg"].flatten() for state in states]).norm().item()
    norm = training.engine.metrics()["grad_norm"]
    assert 0.1 < norm < 1e3
    assert moment == pytest.approx(0.1 * min(norm, clip_norm), rel=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_that_would_run_code_does_not(stage: int, token_set: ShardSet, tmp_path: Path) -> None:
    training = Training(tiny(zero_stage=stage), token_set)
    saved = save(training.engine, tmp_path, {})
    for record in saved.files:
        path, trace = tmp_path / saved.name / record.name, tmp_path / "trace"
        whole = path.read_bytes()
        with only_data():
            state = torch.load(path, weights_only=True)
        torch.save(state | {"more": Touch(trace)}, path)
        with pytest.raises(Exception, match=r"weights_only|Weights only"):
            load(training.engine, tmp_path, rehashed(saved, tmp_path))
        assert not trace.exists()
        path.write_bytes(whole)


class Touch:
    """As a pickle it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def rehashed(checkpoint: Checkpoint, root: Path) -> Checkpoint:
    """As if it had been committed with the bytes that it has now."""

    def now(record: FileRecord) -> FileRecord:
        data = (root / checkpoint.name / record.name).read_bytes()
        return replace(record, size=len(data), sha256=hashing.sha256_bytes(data))

    return replace(checkpoint, files=tuple(map(now, checkpoint.files)))


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (0, {"checkpoint_activations": True}),
        (1, {"offload_optimizer": True}),
        (2, {"offload_optimizer": True, "dtype": "bf16"}),
        (3, {"offload_optimizer": True, "offload_parameters": True, "dtype": "bf16"}),
        (3, {"offload_optimizer": True, "checkpoint_activations": True}),
    ],
)
@pytest.mark.parametrize("is_taken_up", [True, False])
def test_a_run_goes_on_with_and_without_what_saves_memory(
    stage: int, changes: dict[str, Any], is_taken_up: bool, token_set: ShardSet, tmp_path: Path
) -> None:
    saving = {name: False for name in changes if name != "dtype"}
    ways = [tiny(zero_stage=stage, **changes), tiny(zero_stage=stage, **(changes | saving))]
    before, after = reversed(ways) if is_taken_up else ways
    training = Training(before, token_set)
    training.steps(1, 2)
    saved = save(training.engine, tmp_path, {"step": 2})
    expected = training.steps(3, 4, 5)
    resumed = Training(after, token_set)
    load(resumed.engine, tmp_path, saved)
    assert resumed.steps(3, 4, 5) == pytest.approx(expected, rel=1e-5 if "dtype" not in changes else 2e-3)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_half_precision_learns_what_full_precision_learns(
    stage: int, dtype: str, token_set: ShardSet
) -> None:
    full = Training(tiny(zero_stage=stage), token_set).steps(*range(1, 6))
    config = tiny(zero_stage=stage, dtype=dtype, deepspeed_config=SCALED_WELL)
    half = Training(config, token_set).steps(*range(1, 6))
    assert half == pytest.approx(full, rel=2e-2)
    assert half[-1] < half[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_whose_gradients_overflow_changes_no_weight_and_resumes_the_same(
    stage: int, token_set: ShardSet, tmp_path: Path
) -> None:
    config = tiny(zero_stage=stage, dtype="fp16", deepspeed_config=SCALED_TOO_HIGH)
    training = Training(config, token_set)
    before = training.weights()
    training.step(1)
    skipped = training.engine.metrics()
    assert skipped["skipped_steps"] == 1
    assert "grad_norm" not in skipped
    assert all(torch.equal(value, before[name]) for name, value in training.weights().items())
    saved = save(training.engine, tmp_path, {"step": 1, "layout": {"zero_stage": stage}})
    numbers = range(2, 20)
    expected = training.steps(*numbers), training.engine.metrics(), training.weights()
    assert 1 < expected[1]["skipped_steps"] < 19
    assert expected[1]["loss_scale"] < skipped["loss_scale"]
    resumed = Training(config, token_set)
    load(resumed.engine, tmp_path, saved)
    assert resumed.steps(*numbers) == expected[0]
    assert resumed.engine.metrics() == expected[1]
    assert all(torch.equal(value, expected[2][name]) for name, value in resumed.weights().items())
    converted = Training(config, token_set)
    converted.engine.load_from_other_layout(str(tmp_path), saved)
    assert converted.steps(*numbers) == pytest.approx(expected[0])
    assert converted.engine.metrics() == pytest.approx(expected[1])


def test_gradients_that_overflow_at_the_smallest_scale_end_the_run_with_a_remedy(token_set: ShardSet) -> None:
    training = Training(tiny(zero_stage=2, dtype="fp16", deepspeed_config=NO_LOSS_SCALE_LEFT), token_set)
    with pytest.raises(TrainingError, match=r"lower --optimizer\.peak-lr, or train in bf16"):
        training.steps(1, 2, 3)


def test_weights_of_another_builds_model_are_refused(token_set: ShardSet, tmp_path: Path) -> None:
    training = Training(tiny(zero_stage=2), token_set)
    block = training.engine._engine.module.model.blocks[0]
    block.older_name = block.__dict__["_modules"].pop("feed_forward_norm")
    saved = save(training.engine, tmp_path, {})
    with pytest.raises(CheckpointError, match=r"of other names .* go on with the build that wrote it"):
        load(Training(tiny(zero_stage=2), token_set).engine, tmp_path, saved)


def test_the_norm_of_nothing_but_padding_is_0() -> None:
    connect()
    padding = torch.ones(3)
    padding._zero_padding = True  # type: ignore[attr-defined]
    assert _partitions_norm(None, [padding], None) == 0.0


def test_an_optimizer_of_a_jsons_own_choice_is_left_as_it_is(token_set: ShardSet) -> None:
    """DeepSpeed has another one for bf16 with gradients that add up in fp32."""
    in_fp32 = '{"data_types": {"grad_accum_dtype": "fp32"}}'
    training = Training(tiny(zero_stage=1, dtype="bf16", deepspeed_config=in_fp32), token_set)
    losses = training.steps(*range(1, 6))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_hastened_gives_what_deepspeed_gives(
    stage: int, dtype: str, token_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def followed() -> tuple[Any, ...]:
        training = Training(tiny(zero_stage=stage, dtype=dtype), token_set)
        learnt = [(training.step(number), training.engine.metrics()) for number in (1, 2, 3)]
        before = training.weights()
        break_a_weight(training.engine)
        training.step(4)
        skips = all(torch.equal(value, before[name]) for name, value in training.weights().items())
        return learnt, before, skips

    losses, weights, skips = followed()
    monkeypatch.setattr("training.engine.engine.hasten", lambda *_, **__: None)
    their_losses, their_weights, they_skip = followed()
    assert losses == their_losses
    assert all(torch.equal(value, their_weights[name]) for name, value in weights.items())
    assert skips
    assert they_skip


def break_a_weight(engine: Engine) -> None:
    """What is computed with is no number then; what the optimizer steps is as it was."""
    next(engine._engine.module.parameters()).data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ('{"zero_optimization": {"reduce_bucket_sise": 1}}', "reduce_bucket_sise: Extra inputs"),
        ('{"zero_optimization": {"mics_shard_size": 2}}', "MiCS ZeRO-3 sharding has been removed"),
        ('{"data_types": {"param_dtype": "bf16"}}', "param_dtype='bf16' conflicts with"),
        ('{"weight_quantization": {"enabled": 3, "q": 4}}', "enabled: "),
    ],
)
def test_what_deepspeed_refuses_of_a_json_is_one_sentence(
    theirs: str, named: str, token_set: ShardSet
) -> None:
    """It says so in four kinds of exceptions."""
    with pytest.raises(ConfigError, match=f"DeepSpeed refuses engine.deepspeed_config: .*{named}"):
        Training(tiny(deepspeed_config=theirs), token_set)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++")
def test_compiled_it_learns_the_same(token_set: ShardSet) -> None:
    plain = Training(tiny(zero_stage=2, dropout=0.0), token_set).steps(1, 2, 3)
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters
    counts.clear()
    compiled = Training(tiny(zero_stage=2, dropout=0.0, compile=True), token_set).steps(1, 2, 3)
    assert counts["stats"]["unique_graphs"] >= 1
    assert not counts["graph_break"]
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_without_a_compiler_the_run_says_so_and_goes_on(
    token_set: ShardSet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = Training(tiny(zero_stage=2), token_set).steps(1, 2)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    compiled = Training(tiny(zero_stage=2, compile=True), token_set)
    assert compiled.steps(1, 2) == plain
    shapes = [{"tokens": torch.zeros(2, length)} for length in (8, 8, 9, 8)]
    assert [compiled.engine.compiles_for([each]) for each in shapes] == [True, False, True, False]
    assert "no g++ or clang++ on their PATH; going on without compiling" in capfd.readouterr().err
