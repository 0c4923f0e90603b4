"""The keys of a DeepSpeed JSON: which there are at its top, and what each takes.

DeepSpeed reads these keys by hand: it passes over one that is misspelt, and breaks off in the midst of its
own code at a value that it cannot use. Below the top its sections check themselves, but for `data_types`.
Pure and without DeepSpeed; a test compares the names with those that the installed one asks for.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

VERSION = "0.19.8"
"""Of DeepSpeed, where the names were read."""

SWITCHES = frozenset({
    "dataloader_drop_last", "disable_allgather", "disable_python_gc", "dump_state",
    "managed_gradient_accumulation", "memory_breakdown", "prescale_gradients",
    "use_data_before_expert_parallelism", "wall_clock_breakdown", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
})  # fmt: skip
SECTIONS = frozenset({
    "activation_checkpointing", "aio", "autotuning", "bf16", "checkpoint", "comet", "comms_logger", "compile",
    "csv_monitor", "data_efficiency", "data_types", "datastates_ckpt", "expert_parallel", "flops_profiler",
    "fp16", "hybrid_engine", "optimizer", "pipeline", "scheduler", "tensor_parallel", "tensorboard", "timers",
    "torch_autocast", "wandb", "weight_quantization", "zero_optimization",
})  # fmt: skip
NUMBERS = frozenset({"gradient_predivide_factor", "steps_per_print", "vocabulary_size"})
DECIDED = frozenset({
    "data_parallel_size", "gradient_accumulation_steps", "gradient_clipping", "sequence_parallel_size",
    "train_batch_size", "train_micro_batch_size_per_gpu",
})  # fmt: skip
"""By settings of ours, with which their values are compared."""
CHOICES = {
    "communication_data_type": ("fp32", "fp16", "bf16"),
    "seq_parallel_communication_data_type": ("fp32", "fp16", "bf16"),
    "gradient_allreduce_op": ("mean", "sum"),
    "log_level": ("debug", "info", "warning", "error", "critical"),
}
KEYS = SWITCHES | SECTIONS | NUMBERS | DECIDED | CHOICES.keys()

DTYPES = ("fp32", "fp16", "bf16")
DATA_TYPES = {
    "grad_accum_dtype": DTYPES,
    "param_dtype": DTYPES,
    "buffer_dtype": DTYPES,
    "keep_in_fp32_modules": None,
}
"""What `data_types` takes, which DeepSpeed does not check: it would add gradients up in int8."""

LEFT_TO_US = "auto"
"""What files for Hugging Face's Trainer say where somebody else is to decide."""


def faults(theirs: Mapping[str, Any]) -> Iterator[str]:
    """What DeepSpeed would not take, or would pass over, a phrase each."""
    for key, value in theirs.items():
        if key not in KEYS:
            yield _unknown(key, KEYS)
        elif value != LEFT_TO_US and (wanted := _wanted(key, value)):
            yield f"{key} is {json.dumps(value)} there, and must be {wanted}"
    types = theirs.get("data_types")
    for key, value in types.items() if isinstance(types, dict) else ():
        if key not in DATA_TYPES:
            yield _unknown(key, DATA_TYPES, "data_types.")
        elif (names := DATA_TYPES[key]) and value is not None and value not in (LEFT_TO_US, *names):
            yield f"data_types.{key} is {json.dumps(value)} there, and must be {' or '.join(names)}"


def _wanted(key: str, value: Any) -> str | None:
    """What belongs there instead of `value`."""
    if key in SECTIONS:
        return None if isinstance(value, dict) else "a section {...}"
    if key in SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if key in CHOICES:
        fits = value is None or (isinstance(value, str) and value.lower() in CHOICES[key])
        return None if fits else " or ".join(CHOICES[key])
    if key not in NUMBERS or (key == "steps_per_print" and value is None):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_number and 0 < value < float("inf") else "a number above 0"


def _unknown(key: str, known: Mapping[str, Any] | frozenset[str], section: str = "") -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {section}{near[0]}?)" if near else ""
    return f"{section}{key} is there, which DeepSpeed {VERSION} does not know{hint}"
