"""Whether a command may go on with a run that another began: what the steps done so far depend on."""

from typing import Any

from infra import configs
from infra.errors import ConfigError
from training.config import RunConfig
from training.configs.batches import skipped_until
from training.data import TrainingData

FREE_SETTINGS = (
    "name",
    "batches.cache_dir",
    "batches.cache_gb",
    "batches.prefetch_steps",
    "batches.reader_threads",
    "log_every_steps",
    "max_failures",
    "min_workers",
    "num_workers",
    "register_as",
    "track",
    "watchdog.factor",
    "watchdog.floor_seconds",
    "watchdog.grace_seconds",
    "checkpoints.background",
    "checkpoints.copy_to",
    "checkpoints.every_steps",
    "checkpoints.keep_every_steps",
    "checkpoints.keep_last",
    "evaluation.every_steps",
    "evaluation.keep_bundles",
    "evaluation.max_clips",
    "evaluation.num_samples",
    "engine.zero_stage",
)
"""May change between two commands of one run: the steps already done do not depend on them. Another number of
workers or ZeRO stage goes on with the same clips, and with losses that differ in their last digits."""

SKIPPED = "batches.skip_steps"
"""May change where it names steps to come: what was done so far does not depend on those."""


def identity(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """What every step done so far depends on, one value a setting."""
    settings = _flat(configs.to_dict(config))
    return data.identity | {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def refuse_mismatch(begun: dict[str, Any], wanted: dict[str, Any], place: str, *, step: int) -> None:
    """Raises ConfigError with both values and the remedy where a run would go on as another after `step`."""
    if strange := sorted(begun.keys() ^ wanted.keys()):
        raise ConfigError(
            f"the run in {place} is of another kind: only one of the two has {', '.join(strange[:3])}; "
            f"go on with the recipe in its config.json, or give another --run-dir"
        )
    names = [name for name in sorted(begun) if begun[name] != wanted[name]]
    if SKIPPED in names and skipped_until(step, begun[SKIPPED]) == skipped_until(step, wanted[SKIPPED]):
        names.remove(SKIPPED)  # they differ in steps to come
    if not names:
        return
    changes = "; ".join(f"{name} is {begun[name]} there and {wanted[name]} here" for name in names)
    options = [_as_option(name, begun[name]) for name in names]
    given, left_out = (
        " ".join(word for word, is_given in options if is_given is which) for which in (True, False)
    )
    remedy = " and ".join(
        part for part in (given and f"with {given}", left_out and f"without {left_out}") if part
    )
    back = ", go back before the steps to skip with --resume STEP" if SKIPPED in names else ""
    raise ConfigError(
        f"the run in {place} is another: {changes}; go on {remedy}{back}, or give another --run-dir"
    )


def _as_option(name: str, value: Any) -> tuple[str, bool]:
    """As the command line takes it, and whether to give it or to leave it out: a switch is on unless its
    `no-` is given, and None cannot be given."""
    if name in ("shards", "tokenizer"):
        values = value if isinstance(value, list) else [value]
        return f"the {name} {' '.join(str(each)[:12] for each in values)}", True
    if name == "init_from" and value is not None:
        return f"--init-from the model {str(value)[:12]}", True
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        owner, dot, switch = option.removeprefix("--").rpartition(".")
        return f"--{owner}{dot}no-{switch}", not value
    if value in (None, []):
        return option, False
    return f"{option} {' '.join(map(str, value)) if isinstance(value, list) else value}", True


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
