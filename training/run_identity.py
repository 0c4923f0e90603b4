"""Whether a command may go on with a run that another began: what the steps done so far depend on."""

from collections.abc import Iterator, Sequence
from typing import Any

from infra import configs
from infra.errors import ConfigError
from training.config import RunConfig
from training.configs.batches import skipped_until
from training.configs.engine import OptimizerConfig
from training.data import TrainingData
from training.going_back import GoingBack

FREE_SETTINGS = (
    "name",
    "batches.allow_uneven",
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
    "use_gpu",
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
    "engine.checkpoint_activations",
    "engine.compile",
    "engine.deterministic",
    "engine.offload_optimizer",
    "engine.offload_parameters",
    "engine.zero_stage",
    "threads_per_worker",
)
"""May change between two commands of one run: the steps already done do not depend on them, but for last
digits: another number of workers, ZeRO stage, offload or choice of kernels goes on with the same clips."""

SCHEDULE = (
    "steps",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.decay_share",
    "optimizer.final_lr_share",
)
"""What nothing but the learning rates of the steps depends on."""
STEPWISE = ("batches.skip_steps", *SCHEDULE)
"""May change where every step done so far would have been the same: they say of a step whether it is taken
and at which learning rate. So a run is lengthened while its learning rate does not fall yet."""


def identity(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """What every step done so far depends on, one value a setting."""
    settings = _flat(configs.to_dict(config))
    return data.identity | {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def alike_until(begun: dict[str, Any], wanted: dict[str, Any], step: int) -> int:
    """The last step up to `step` until which two runs, of one identity but for STEPWISE, are one."""
    if all(begun[name] == wanted[name] for name in STEPWISE):
        return step
    pairs = zip(_rates(begun, step), _rates(wanted, step), strict=True)
    return next((done for done, (one, other) in enumerate(pairs) if one != other), step)


def refuse_mismatch(
    begun: dict[str, Any],
    wanted: dict[str, Any],
    place: str,
    *,
    step: int,
    ways_back: Sequence[GoingBack] | None = None,
) -> None:
    """Raises ConfigError with both values and the remedy where a run would go on as another after `step`.

    `ways_back`: those that there are, the newest step first; None where nobody looked for any.
    """
    begun = {name: value for name, value in begun.items() if name not in FREE_SETTINGS}  # of other builds
    if strange := sorted(begun.keys() ^ wanted.keys()):
        raise ConfigError(
            f"the run in {place} is of another kind: only one of the two has {', '.join(strange[:3])}; "
            f"go on with the recipe in its config.json, or give another --run-dir"
        )
    names = [name for name in sorted(begun) if begun[name] != wanted[name]]
    alike = alike_until(begun, wanted, step)
    if alike == step:  # they differ in steps to come
        names = [name for name in names if name not in STEPWISE]
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
    back = _back(alike, ways_back) if alike < step else ""
    raise ConfigError(
        f"the run in {place} is another: {changes}; go on {remedy}{back}, or give another --run-dir"
    )


def _rates(settings: dict[str, Any], last: int) -> Iterator[float | None]:
    """Learning rates of the steps up to `last`; None of one that is not taken."""
    own = {name: value for name, value in settings.items() if name.startswith("optimizer.")}
    optimizer = configs.from_dict(
        OptimizerConfig, {name.removeprefix("optimizer."): value for name, value in own.items()}
    )
    skipped, steps = skipped_until(last, settings["batches.skip_steps"]), settings["steps"]
    for step in range(1, last + 1):
        is_taken = step <= steps and step not in skipped
        yield optimizer.learning_rate(step, steps) if is_taken else None


def _back(alike: int, ways_back: Sequence[GoingBack] | None) -> str:
    """How to come to where both runs are one still."""
    if way := next((way for way in ways_back or () if way.step <= alike), None):
        return f", go back with --resume {way}, as both are the same up to step {alike}"
    none_left = "" if ways_back is None else ", and no checkpoint is left of then"
    return f" (both are the same up to step {alike}{none_left})" if alike else ""


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
