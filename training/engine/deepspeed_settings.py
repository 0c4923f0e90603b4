"""What DeepSpeed is told: our settings, and a user's DeepSpeed JSON where it does not contradict them.

Pure and without DeepSpeed, so that a contradiction is refused before anything starts. Keys that no setting of
ours decides are left to DeepSpeed; which there are is `training.engine.deepspeed_keys`' matter.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from infra import storage
from infra.errors import ConfigError
from training.config import RunConfig
from training.engine.deepspeed_keys import LEFT_TO_US, faults

OURS_TO_SAVE = "reelgpt, which saves and loads,"
BREAKS_OFF = "reelgpt, at whose steps DeepSpeed breaks off with it,"

OWNERS = {
    "train_batch_size": "--batches.global-batch",
    "train_micro_batch_size_per_gpu": "--batches.micro-batch",
    "gradient_accumulation_steps": "--batches.global-batch, --batches.micro-batch and --num-workers",
    "gradient_clipping": "--optimizer.clip-norm",
    "optimizer": "--optimizer.peak-lr, --optimizer.weight-decay and the like",
    "scheduler": "--optimizer.schedule and --optimizer.warmup-steps",
    "zero_optimization.stage": "--engine.zero-stage",
    "zero_optimization.cpu_offload": "--engine.offload-optimizer",
    "zero_optimization.cpu_offload_param": "--engine.offload-parameters",
    "zero_optimization.offload_optimizer.device": "--engine.offload-optimizer",
    "zero_optimization.offload_param.device": "--engine.offload-parameters",
    "zero_allow_untested_optimizer": "reelgpt, whose AdamW is torch's",
    "zero_force_ds_cpu_optimizer": "reelgpt, whose AdamW is torch's",
    "bf16.enabled": "--engine.dtype",
    "fp16.enabled": "--engine.dtype",
    "torch_autocast": "--engine.dtype",
    "checkpoint": OURS_TO_SAVE,
    "datastates_ckpt": OURS_TO_SAVE,
    "zero_optimization.load_from_fp32_weights": OURS_TO_SAVE,
    "zero_optimization.elastic_checkpoint": OURS_TO_SAVE,
    "zero_optimization.round_robin_gradients": "reelgpt, which must know where each weight lies,",
    "zero_optimization.stage3_module_granularity_threshold": BREAKS_OFF,
    "zero_optimization.zenflow": BREAKS_OFF,
    "gradient_allreduce_op": "reelgpt, which counts on the mean,",
    "managed_gradient_accumulation": "reelgpt, which counts on it,",
    "data_efficiency": "the loader (--batches)",
    **dict.fromkeys(
        (
            "data_parallel_size",
            "expert_parallel",
            "hybrid_engine",
            "pipeline",
            "sequence_parallel_size",
            "tensor_parallel",
        ),
        "--num-workers, who all hold the same model,",
    ),
}
"""Who decides a key, or all keys below it."""

HARMLESS = {
    "checkpoint.load_universal": False,
    "gradient_allreduce_op": "mean",
    "managed_gradient_accumulation": True,
    "zero_optimization.cpu_offload": False,
    "zero_optimization.cpu_offload_param": False,
    "zero_optimization.elastic_checkpoint": False,
    "zero_optimization.load_from_fp32_weights": True,
    "zero_optimization.round_robin_gradients": False,
    "zero_optimization.stage3_module_granularity_threshold": 0,
}
"""What such a key may say: what DeepSpeed does without it. Its map from weights to partitions takes no notice
of a round-robin order, so that what is published, averaged or converted would be other weights'."""

NOT_OURS = object()
"""In place of a value: nothing that a file may say, whatever it is."""

SECTIONS = {path.rpartition(".")[0] for path in OWNERS} - {""}
"""Keys that hold others; a value of their own in a user's JSON would be lost where ours is put over it."""

RENAMED = {"bfloat16": "bf16"}
"""Sections under the names of older files, which DeepSpeed reads only where today's name is absent."""


def inline(config: RunConfig) -> RunConfig:
    """The config with its DeepSpeed JSON read in, so that it travels and is compared by content.

    Raises ConfigError naming every key that contradicts the config.
    """
    given = config.engine.deepspeed_config
    if given is None:
        return config
    text = json.dumps(_read(given), sort_keys=True)
    inlined = replace(config, engine=replace(config.engine, deepspeed_config=text))
    settings_of(inlined, config.num_workers)
    return inlined


def started_with(config: RunConfig, world_size: int, *, has_gpu: bool) -> dict[str, Any]:
    """What `deepspeed.initialize` is given: `settings_of`, and what fits the place where these are silent."""
    settings = settings_of(config, world_size)
    zero = settings["zero_optimization"]
    zero.setdefault("overlap_comm", has_gpu and world_size > 1)
    if world_size == 1 and not config.engine.offload_optimizer:
        zero.setdefault("contiguous_gradients", False)  # a copy that serves sending, and nobody is there
    return settings


def settings_of(config: RunConfig, world_size: int) -> dict[str, Any]:
    """What a run decides of DeepSpeed's. Raises ConfigError where the user's JSON contradicts it."""
    ours = _ours(config, world_size)
    given = config.engine.deepspeed_config
    read = {} if given is None else _read(given)
    if found := list(faults(read)):
        raise ConfigError(
            f"engine.deepspeed_config is nothing that DeepSpeed takes: {'; '.join(found)}; correct those keys"
        )
    theirs = _without_auto(read)
    if conflicts := list(_conflicts(ours, theirs)):
        raise ConfigError(
            f"engine.deepspeed_config contradicts the run: {'; '.join(conflicts)}; "
            f"take those keys out of it, or change the settings"
        )
    merged = {"steps_per_print": None} | _merged(theirs, ours)
    merged["train_batch_size"] = (  # DeepSpeed wants the product; a user's JSON names the clips of a step
        merged["train_micro_batch_size_per_gpu"] * merged["gradient_accumulation_steps"] * world_size
    )
    if not config.engine.stage_among(world_size):
        merged["gradient_clipping"] = 0.0  # done by the engine, which then knows the norm
    return merged


def _ours(config: RunConfig, world_size: int) -> dict[str, Any]:
    engine, batches = config.engine, config.batches
    zero: dict[str, Any] = {"stage": engine.stage_among(world_size)}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": batches.global_batch,
        "train_micro_batch_size_per_gpu": batches.micro_batch,
        "gradient_accumulation_steps": batches.micro_batches_per_worker(world_size),
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": engine.dtype == "bf16"},
        "fp16": {"enabled": engine.dtype == "fp16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"tag_validation": "Ignore"},  # all ranks would compare the name at every save
    }


def _read(given: str) -> dict[str, Any]:
    text = given if given.lstrip().startswith("{") else _fetch(given)
    try:
        theirs = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"engine.deepspeed_config={given} is no JSON: {error}") from None
    if not isinstance(theirs, dict):
        raise ConfigError(f"engine.deepspeed_config={given} holds no JSON object, as DeepSpeed's files do")
    return _with_todays_names(theirs)


def _with_todays_names(theirs: dict[str, Any]) -> dict[str, Any]:
    for old, new in RENAMED.items():
        if old in theirs and new in theirs:
            raise ConfigError(f"engine.deepspeed_config has {old} and {new}, which are one; leave {old} out")
    return {RENAMED.get(key, key): value for key, value in theirs.items()}


def _fetch(uri: str) -> bytes:
    if not storage.exists(uri):
        raise ConfigError(
            f"engine.deepspeed_config={uri} is not there; give a file, a URI or the JSON itself"
        )
    return storage.read_bytes(uri)


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != LEFT_TO_US
    }


def _conflicts(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    known = dict(_leaves(ours))
    for path, value in _leaves(theirs):
        if path in SECTIONS:
            yield f"{path} is {json.dumps(value)} there, and must be a section {{...}}"
        owner = next((OWNERS[prefix] for prefix in _prefixes(path) if prefix in OWNERS), None)
        here = known.get(path, _absent(path))
        if owner is None or value == here:
            continue
        if here is NOT_OURS:
            yield f"{path} is {value} there, and that is for {owner.rstrip(',')} to decide"
        else:
            yield f"{path} is {value} there, and {owner} makes it {here}"


def _absent(path: str) -> Any:
    """What a key means that our settings leave out."""
    if path in HARMLESS:
        return HARMLESS[path]
    return "none" if path.endswith(".device") else False if path.endswith("enabled") else NOT_OURS


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def _merged(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(theirs[key], ours[key])
        for key in theirs.keys() & ours.keys()
        if isinstance(theirs[key], dict) and isinstance(ours[key], dict)
    }
    return theirs | ours | both
