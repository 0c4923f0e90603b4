"""A checkpoint made fit for another world size or ZeRO stage: DeepSpeed's universal checkpoint, made once.

    step-00000040-5c1f20ab/universal.json       last: names the folder, every file's size and SHA-256
    step-00000040-5c1f20ab/universal-93a0f2d1/  weights and moments of each parameter, whole, in fp32

Stages differ in what they leave there and in what they want to find, and stage 0 knows nothing of it: here
all of them leave and find the same. What a conversion that was killed leaves is not named, and is swept away
by the next one.
"""

import argparse
import contextlib
import glob
import hashlib
import io
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT, PARAM, PARAM_GROUPS
from torch import Tensor

from infra import configs, storage
from infra.errors import CheckpointError
from infra.leases import Lease
from training.engine.connection import deepspeed
from training.engine.engine_files import only_data
from training.ranks import Ranks
from training.saving.manifest import FORMAT_VERSION, UNREADABLE, Checkpoint, FileRecord
from training.saving.verified_files import VerifiedFiles, problem_of

RECORD = "universal.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
WHOLE = ("fp32", *MOMENTS)
"""What there is of each parameter, beside the step."""
MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""What stages 0 to 2 call the file with the run's state in it, and what stage 3 does."""


def converted(
    root: str, checkpoint: Checkpoint, ranks: Ranks, *, order: Sequence[str]
) -> tuple[Checkpoint, VerifiedFiles]:
    """The universal form of a checkpoint whose files are verified, with files verified in their turn. All
    ranks must call together.

    `order`: names of the parameters as they follow each other in the optimizer's groups.

    Raises CheckpointError where it does not come out whole.
    """
    universal = ranks.on_first(lambda: _known(root, checkpoint) or _convert(root, checkpoint, order))
    files = VerifiedFiles(root, universal)
    mine = universal.files[ranks.rank :: ranks.world_size]
    problems = (problem_of(files.folder, record) for record in mine)
    if problem := ranks.first_of(next(filter(None, problems), None)):
        if ranks.is_first:
            storage.delete(storage.join(root, checkpoint.name, RECORD))
        raise CheckpointError(
            f"{checkpoint.name} as converted for another world size or ZeRO stage is damaged: {problem}; "
            f"repeat the command to convert it again"
        )
    return universal, files


def load(engine: Any, root: str, universal: Checkpoint) -> dict[str, Any]:
    """Puts the universal form into a fresh DeepSpeed engine of any stage and world size; gives DeepSpeed's
    client state. Every parameter group keeps the hyperparameters that the engine was built with."""
    groups = engine.optimizer.param_groups
    built = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    client_state = _load_plain(engine, root, universal) if not engine.zero_optimization() else None
    if client_state is None:
        client_state = _load_zero(engine, root, universal)
    for group, settings in zip(engine.optimizer.param_groups, built, strict=True):
        group |= settings  # under ZeRO-3 all groups have got those of the first
    _part_steps(getattr(engine.optimizer, "optimizer", engine.optimizer))
    return client_state


def _part_steps(optimizer: torch.optim.Optimizer) -> None:
    """Under ZeRO-3 all groups have got one tensor to count their steps in, which each would count up."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"], device=state["exp_avg"].device).clone()


def _load_zero(engine: Any, root: str, universal: Checkpoint) -> dict[str, Any]:
    engine._config.load_universal_checkpoint = True
    try:
        client_state: dict[str, Any] = engine.load_checkpoint(root, tag=universal.name)[1]
    finally:
        engine._config.load_universal_checkpoint = False
    return client_state


def _load_plain(engine: Any, root: str, universal: Checkpoint) -> dict[str, Any]:
    """Without ZeRO: the module, and the moments of torch's AdamW."""
    folder = os.path.join(root, universal.name)
    for name, parameter in engine.module.named_parameters():
        weights, *moments = (_read(folder, name, key).view_as(parameter) for key in WHOLE)
        parameter.data.copy_(weights)
        state = {key: value.to(parameter.device) for key, value in zip(MOMENTS, moments, strict=True)}
        engine.optimizer.state[parameter] = {"step": _read(folder, name, "step")} | state
    shared: dict[str, Any] = engine.checkpoint_engine.load(os.path.join(folder, MODEL_STATES[0]))
    engine.global_steps = shared["global_steps"]
    return shared


def _read(folder: str, name: str, key: str) -> Tensor:
    content = torch.load(os.path.join(folder, "zero", name, f"{key}.pt"), weights_only=True)
    value: Tensor = content[PARAM] if isinstance(content, dict) else torch.as_tensor(content)
    return value


def _known(root: str, checkpoint: Checkpoint) -> Checkpoint | None:
    """What an earlier conversion has left, if that is whole by its sizes."""
    place = storage.join(root, checkpoint.name, RECORD)
    try:
        known = configs.from_dict(Checkpoint, storage.read_json(place))
    except UNREADABLE:
        return None
    if not known.files or not known.name.startswith(f"{checkpoint.name}/"):
        return None
    sizes = {file.name: file.size for file in storage.list_files(storage.join(root, known.name))}
    return known if sizes == {record.name: record.size for record in known.files} else None


def _convert(root: str, checkpoint: Checkpoint, order: Sequence[str]) -> Checkpoint:
    folder = os.path.join(root, checkpoint.name)
    with Lease(os.path.join(folder, "universal-lease.json")):
        for left in glob.glob(os.path.join(glob.escape(folder), "universal-*", "")):
            shutil.rmtree(left)
        name = f"universal-{uuid.uuid4().hex[:8]}"
        output = os.path.join(folder, name)
        with only_data(), _unwritten_explained(checkpoint, output):
            if checkpoint.state["layout"]["zero_stage"]:
                _convert_zero(folder, output)
            else:
                _convert_plain(folder, output, order)
            files = tuple(_recorded(output))
        universal = Checkpoint(
            format_version=FORMAT_VERSION,
            name=f"{checkpoint.name}/{name}",
            step=checkpoint.step,
            committed_at=time.time(),
            state=checkpoint.state,
            files=files,
        )
        storage.write_json(os.path.join(folder, RECORD), configs.to_dict(universal))
    return universal


@contextlib.contextmanager
def _unwritten_explained(checkpoint: Checkpoint, output: str) -> Iterator[None]:
    """Raises CheckpointError where the disk does not take it all, of which torch tells but that it failed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(os.path.dirname(output)).free
        shutil.rmtree(output, ignore_errors=True)
        raise CheckpointError(
            f"{checkpoint.name} cannot be converted for another world size or ZeRO stage: {error}; make room "
            f"({free / 1e9:.2g} GB are free) and repeat the command"
        ) from error


def _convert_zero(folder: str, output: str) -> None:
    arguments = argparse.Namespace(
        input_folder=folder, output_folder=output, num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
    os.remove(os.path.join(folder, "latest_universal"))
    _level(output)


def _level(output: str) -> None:
    """Every stage finds what it looks for, whichever stage has left it."""
    place = os.path.join(output, "zero", "optimizer_state.pt")
    shared = torch.load(place, weights_only=True)
    folders = [os.path.dirname(path) for path in _found(output, "exp_avg.pt")]
    steps = [torch.load(os.path.join(output, path), weights_only=True) for path in _found(output, "step.pt")]
    step = steps[0] if steps else shared[OPTIMIZER_STATE_DICT]["state"][0]["step"]
    for folder in folders:
        torch.save(step, os.path.join(output, folder, "step.pt"))
        for key in WHOLE:
            _wrap(os.path.join(output, folder, f"{key}.pt"))
    _save_shared(place, shared, step)
    _double_model_state(output)


def _wrap(path: str) -> None:
    """Stage 3 leaves a bare tensor where the others look for a named one."""
    content = torch.load(path, weights_only=True)
    if not isinstance(content, dict):
        torch.save({PARAM: content}, path)


def _save_shared(place: str, shared: dict[str, Any], step: Tensor) -> None:
    """What is no parameter's own: `shared` with all that the stages look for in it."""
    groups = shared[PARAM_GROUPS]
    inner = {"state": {0: {"step": step}}, PARAM_GROUPS: groups}
    added = {OPTIMIZER_STATE_DICT: inner, "ds_version": deepspeed.__version__}
    torch.save(shared | added, place)


def _double_model_state(output: str) -> None:
    """The file with the run's state and DeepSpeed's counters, under the names of all stages."""
    places = [os.path.join(output, name) for name in MODEL_STATES]
    found = next(filter(os.path.exists, places))
    for place in places:
        if place != found:
            shutil.copy2(found, place)


def _convert_plain(folder: str, output: str, order: Sequence[str]) -> None:
    """Without ZeRO, torch's own state: weights by name, moments by the parameter's place in the groups."""
    source = os.path.join(folder, MODEL_STATES[0])
    saved = torch.load(source, map_location="cpu", weights_only=True)
    states = saved["optimizer"]["state"]
    for place, name in enumerate(order):
        parameter = os.path.join(output, "zero", name)
        os.makedirs(parameter)
        torch.save(states[place]["step"], os.path.join(parameter, "step.pt"))
        whole = {"fp32": saved["module"][name].float()} | {key: states[place][key] for key in MOMENTS}
        for key, value in whole.items():
            torch.save({PARAM: value}, os.path.join(parameter, f"{key}.pt"))
    shared = {PARAM_GROUPS: saved["optimizer"][PARAM_GROUPS]}
    _save_shared(os.path.join(output, "zero", "optimizer_state.pt"), shared, states[0]["step"])
    shutil.copy2(source, output)
    _double_model_state(output)


def _recorded(output: str) -> Iterator[FileRecord]:
    """Every file, once it is on the disk."""
    for name in _found(output, ""):
        with open(os.path.join(output, name), "rb+") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            yield FileRecord(name=name, size=os.fstat(file.fileno()).st_size, sha256=sha256, rank=0)


def _found(output: str, ending: str) -> list[str]:
    """Names of the files that end so, relative to `output`."""
    return [file.name for file in storage.list_files(output) if file.name.endswith(ending)]
