"""What `extract` and `tokenize` tell MLflow: a run for every command that made or added to a shard set.

The set is sealed by then: where MLflow is away, a line says so and nothing is lost but the run.
"""

import sys

from infra import storage, tracking
from infra.errors import RegistryError
from infra.tracking import ShardSetInput
from pipelines.building.job import Built


def record(command: str, built: Built, out: str) -> str | None:
    """The id of the run; None where nothing was done, or MLflow is not in use here or does not answer."""
    if built.pace is None or not tracking.is_set_up():
        return None
    made = ShardSetInput(uri=storage.absolute(out), fingerprint=built.manifest.fingerprint)
    try:
        return tracking.record_build(command, config=_config(built), metrics=_metrics(built), made=made)
    except RegistryError as error:
        sys.stderr.write(f"{error}; the shard set is whole, and its pace.json tells how fast it went\n")
        return None


def _config(built: Built) -> dict[str, object]:
    """Settings of the set, and what binds: a param, since it is a word."""
    assert built.pace is not None
    manifest = built.manifest
    known = {"tokenizer": manifest.tokenizer, "tokenizer_fingerprint": manifest.tokenizer_fingerprint}
    return {**manifest.config, **known, "bottleneck": built.pace.bottleneck}


def _metrics(built: Built) -> dict[str, float]:
    """Counts of the whole set, and the numbers of this command's pace."""
    assert built.pace is not None
    totals, clips = built.manifest.totals, built.manifest.totals["clips"]
    counts: dict[str, float] = {
        name: totals[name] for name in ("sources", "hours", "failed_sources", "codes") if name in totals
    }
    counts |= {f"clips_{split}": clips[split] for split in clips}
    counts |= {"units_done": built.done_now, "units_done_before": built.done_before, "seconds": built.seconds}
    numbers = {k: v for k, v in built.pace.summary().items() if isinstance(v, int | float)}
    return counts | numbers
