"""What a checkpoint will hold is what was there when it was begun, whatever happens until it is written."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from infra.errors import CheckpointError
from pipelines.shards import ShardSet
from tests.training.engines import SCALED_WELL, Training, load, save, tiny
from training.engine.engine_files import Snapshot, only_data
from training.saving.manifest import FileRecord

WALKED_THROUGH = (
    "buffer_names", "param_shapes", "shared_params", "frozen_param_shapes", "frozen_param_fragments"
)  # fmt: skip

pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("connected")]


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


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_is_walked_through_once_is_what_deepspeed_finds_at_each_save(
    stage: int, token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walked(root: Path) -> dict[str, Any]:
        training = Training(tiny(zero_stage=stage), token_set)
        (root / "before").mkdir(parents=True)  # DeepSpeed puts scripts there
        save(training.engine, root / "before", {})
        training.step(1)
        save(training.engine, root, {})
        with only_data():
            (path,) = root.glob("step-1/*model_states.pt")
            state = torch.load(path, weights_only=True)
        return {name: state[name] for name in WALKED_THROUGH}

    ours = walked(tmp_path / "ours")
    monkeypatch.setattr("training.engine.engine.hasten", lambda *_, **__: None)
    assert ours == walked(tmp_path / "theirs")
    assert not stage or len(ours["param_shapes"][0]) > 3


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


def test_where_the_host_has_no_memory_for_a_copy_the_remedy_is_named(
    token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny(zero_stage=1), token_set)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", refuse)
        snapshot = training.engine.snapshot(str(tmp_path), "step-1", {}, copied=True)
    with pytest.raises(CheckpointError, match=r"too little memory .*can't allocate.* --checkpoints.no-"):
        snapshot.write()


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
