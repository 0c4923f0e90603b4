"""DeepSpeed engines in this process, at one worker; several workers are `test_launch.py`'s matter."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from infra.errors import CheckpointError, ConfigError, TrainingError
from pipelines.shards import ShardSet
from training.config import RunConfig
from training.configs.batches import BatchesConfig
from training.configs.objective import PredictConfig
from training.data import open_data
from training.engine.engine import Engine
from training.engine.engine_files import Snapshot, only_data
from training.objectives import Examples, Learner, Predict, build_objective
from training.recipes import get_recipe
from training.saving import checkpoints, manifest
from training.saving.manifest import Checkpoint, FileRecord
from training.saving.verified_files import VerifiedFiles

NO_LOSS_SCALE_LEFT = '{"fp16": {"initial_scale_power": 40, "min_loss_scale": 1099511627776, "hysteresis": 1}}'
SCALED_WELL = '{"fp16": {"initial_scale_power": 6}}'
SCALED_TOO_HIGH = '{"fp16": {"initial_scale_power": 30, "hysteresis": 1}}'


def save(engine: Engine, root: Path, state: dict[str, Any]) -> Checkpoint:
    snapshot = engine.snapshot(str(root), "step-1", state, copied=False)
    checkpoints.commit(str(root), name="step-1", step=1, state=state, files=snapshot.write())
    return manifest.read_manifest(str(root), "step-1")


def load(engine: Engine, root: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    return engine.load(str(root), checkpoint, VerifiedFiles(str(root), checkpoint))


def tiny(**engine: Any) -> RunConfig:
    """With a DeepSpeed JSON, so that even a lone worker runs the stage that is asked for."""
    recipe = get_recipe("gpt_tiny")
    assert isinstance(recipe.objective, PredictConfig)
    shape = replace(
        recipe.objective.model, model_dim=16, num_heads=2, num_kv_heads=1, hidden_dim=32, dropout=0.1
    )
    average = engine.pop("ema_decay", None)
    engine = {"deepspeed_config": "{}"} | engine
    return replace(
        recipe,
        objective=replace(recipe.objective, prefix_frames=1, model=shape),
        optimizer=replace(recipe.optimizer, ema_decay=average),
        batches=BatchesConfig(global_batch=4, micro_batch=2),
        engine=replace(recipe.engine, **engine),
        num_workers=1,
    )


class Training:
    """An engine with what it is fed, at one worker."""

    def __init__(self, config: RunConfig, token_set: ShardSet) -> None:
        from training.engine.connection import connect
        from training.engine.engine import Engine

        self.config = config
        objective = build_objective(config, open_data(config, token_set.uri))
        torch.manual_seed(0)
        self.engine = Engine(Learner(objective), config, connect())
        self.examples = micro_batches(objective)
        self.num_targets = sum(map(objective.count_targets, self.examples))

    def step(self, number: int) -> float:
        losses = self.engine.update(
            self.examples, seeds=[2 * number, 2 * number + 1], lr=1e-2, num_targets=self.num_targets
        )
        return float(losses["loss"])

    def steps(self, *numbers: int) -> list[float]:
        return [self.step(number) for number in numbers]

    def weights(self) -> dict[str, torch.Tensor]:
        weights = self.engine.weights()
        assert weights is not None
        return weights


def micro_batches(objective: Any) -> list[Examples]:
    assert isinstance(objective, Predict)
    import numpy as np

    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 16, (4, 2, 2)).astype(np.uint16) for _ in range(4)]
    return [objective.examples(clips[:2], None), objective.examples(clips[2:], None)]


@pytest.fixture
def connected() -> Iterator[None]:
    yield
    from training.engine.connection import disconnect

    disconnect()


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


@pytest.mark.parametrize(
    ("stage", "changes"),
    [(stage, {}) for stage in (0, 1, 2, 3)]
    + [(stage, {"dtype": dtype}) for dtype in ("bf16", "fp16") for stage in (1, 2, 3)]
    + [(2, {"offload_optimizer": True}), (3, {"offload_optimizer": True, "offload_parameters": True})],
)
def test_a_snapshot_stays_as_it_is_while_training_goes_on(
    stage: int, changes: dict[str, Any], token_set: ShardSet, tmp_path: Path
) -> None:
    config = tiny(zero_stage=stage, ema_decay=0.5, deepspeed_config=SCALED_WELL, **changes)
    training = Training(config, token_set)
    written = []
    for number in (1, 2):  # the second one's buffers are those of the first
        training.step(number)
        at_once, snapshot = both_snapshots(training, tmp_path, number)
        training.step(number + 2)  # nobody has copied anything before it
        written.append((at_once, snapshot.write()))
    for at_once, later in written:
        assert [record.name for record in later] == [record.name for record in at_once]
    for number in (1, 2):
        same_snapshots(written[0][0], tmp_path, number)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_snapshot_stays_as_it_is_while_the_average_is_looked_at(
    stage: int, token_set: ShardSet, tmp_path: Path
) -> None:
    training = Training(tiny(zero_stage=stage, ema_decay=0.5), token_set)
    training.step(1)
    at_once, snapshot = both_snapshots(training, tmp_path, 1)
    with training.engine.averaged():
        snapshot.write()
    same_snapshots(at_once, tmp_path, 1)


def test_a_snapshot_stays_as_it_is_where_a_checkpoint_is_loaded(token_set: ShardSet, tmp_path: Path) -> None:
    training = Training(tiny(zero_stage=1), token_set)
    older = save(training.engine, tmp_path, {})
    training.step(1)
    at_once, snapshot = both_snapshots(training, tmp_path, 1)
    load(training.engine, tmp_path, older)
    snapshot.write()
    same_snapshots(at_once, tmp_path, 1)


def test_copying_that_a_step_waited_for_is_told_once(
    token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny(zero_stage=1), token_set)
    training.engine.snapshot(str(tmp_path), "step-1", {}, copied=True)
    fill = torch._foreach_copy_

    def fill_slowly(*given: Any, **options: Any) -> None:
        time.sleep(0.2)
        fill(*given, **options)

    monkeypatch.setattr(torch, "_foreach_copy_", fill_slowly)
    training.step(1)
    assert training.engine.take_copying_seconds() >= 0.2
    assert training.engine.take_copying_seconds() == 0


def both_snapshots(training: Training, root: Path, number: int) -> tuple[list[FileRecord], Snapshot]:
    """The same state, once written at once, and once to be written later."""
    at_once = training.engine.snapshot(str(root), f"a-{number}", {}, copied=False).write()
    return at_once, training.engine.snapshot(str(root), f"b-{number}", {}, copied=True)


def same_snapshots(records: list[FileRecord], root: Path, number: int) -> None:
    for record in records:
        same(root / f"a-{number}" / record.name, root / f"b-{number}" / record.name)


def same(one: Path, other: Path) -> None:
    if one.suffix == ".safetensors":
        assert one.read_bytes() == other.read_bytes()
        return
    with only_data():
        states = [torch.load(path, weights_only=True) for path in (one, other)]
    flat = [[leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)] for state in states]
    assert len(flat[0]) == len(flat[1]) > 2
    assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


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
    from training.engine.connection import connect
    from training.engine.hastened import _partitions_norm

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
