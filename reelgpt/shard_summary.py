"""What `extract` and `tokenize` say when they are done, and when too much of their input was bad."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from infra.errors import ConfigError
from pipelines.building.claim import scores_alone
from pipelines.building.job import Built
from pipelines.building.pace import sentence
from pipelines.error_classes import ERROR_CLASSES
from pipelines.selection.distributions import distributions
from pipelines.selection.filters import REJECT_REASONS
from pipelines.shards import ShardSet
from reelgpt import score_table
from reelgpt.command import Outcome

FAILED, OVER_FAILURE_BUDGET = 1, 3
MOST_NAMES = 1000
"""Of files that were passed over, in the JSON of a summary."""


def check_budget(max_failed: float) -> None:
    if not 0 <= max_failed <= 1:
        raise ConfigError(f"max_failed={max_failed:g} is not a share; give a number from 0 to 1, such as 0.1")


def outcome(built: Built, out: str, max_failed: float, mlflow_run_id: str | None = None) -> Outcome:
    """The result of a build; exit code 3 where a larger share of the sources failed than allowed, and 1 where
    some were refused.

    Sources fail where they are decoded: a set made from another set is not judged for them again.
    """
    totals = built.manifest.totals
    share = totals["failed_sources"] / max(1, totals["sources"])
    over = share > max_failed and "base" not in built.manifest.config
    summary = {
        "out": out,
        "kind": built.manifest.kind,
        "fingerprint": built.manifest.fingerprint,
        "recipe_id": built.manifest.recipe_id,
        "tokenizer_fingerprint": built.manifest.tokenizer_fingerprint,
        "units": built.units,
        "done_before": built.done_before,
        "done_now": built.done_now,
        "seconds": round(built.seconds, 3),
        "pace": built.pace.summary() if built.pace else None,
        "mlflow_run_id": mlflow_run_id,
        "sources_kept": built.sources_kept,
        "refused": list(built.refused),
        "passed_over": len(built.passed_over),
        "passed_over_files": built.passed_over[:MOST_NAMES],
        "failed_share": round(share, 6),
        "over_failure_budget": over,
        "totals": totals,
        "sidecar": built.manifest.sidecar,
    }
    text = _text(built, out, over, max_failed)
    if scores_alone(built.manifest.config):
        found = distributions(ShardSet.open(out))
        summary["scores"], text = score_table.as_dict(found), Group(text, score_table.as_table(found))
    return Outcome(
        summary=summary,
        text=text,
        exit_code=FAILED if built.refused else OVER_FAILURE_BUDGET if over else 0,
    )


def _text(built: Built, out: str, over: bool, max_failed: float) -> RenderableType:
    totals = built.manifest.totals
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(built, totals):
        table.add_row(name, value)
    lines: list[RenderableType] = [f"{built.manifest.kind} at {out}", table]
    if built.sources_kept:
        command = "tokenize" if built.manifest.kind == "tokens" else "extract"
        lines.append(
            f"{built.sources_kept:,} sources of earlier commands were not given this time, and stay in the "
            f"set; `reelgpt {command} {out} --exclude NAME --out OTHER` makes one without some"
        )
    if built.refused:
        lines.append(
            f"{len(built.refused):,} sources are in the set with another content, which it keeps: "
            f"{', '.join(built.refused[:5])}; give the new files other names or another output, or leave "
            f"them out with --exclude {built.refused[0]!r}"
        )
    if over:
        lines.append(
            f"{totals['failed_sources']} of {totals['sources']} sources failed, more than --max-failed "
            f"{max_failed:g} allows; the set is whole without them"
        )
    return Group(*lines)


def _rows(built: Built, totals: dict[str, Any]) -> list[tuple[str, str]]:
    clips, failed, damaged = totals["clips"], totals["failed"], totals["damaged"]
    rows = [
        ("sources", f"{totals['sources']:,} ({totals['hours'] * 3600:,.1f} s of video)"),
        ("done now", f"{built.done_now:,} of {built.units:,} units; {built.done_before:,} were done before"),
        ("clips", f"{clips['train']:,} train, {clips['validation']:,} validation"),
    ]
    if built.passed_over:
        rows.append(("passed over", f"{len(built.passed_over):,} files of the folders, for their suffix"))
    if "codes" in totals:
        rows.append(("codes", f"{totals['codes']:,}"))
    if said := built.manifest.sidecar:
        some = f", such as {', '.join(said['unmatched'])}" if said["unmatched"] else ""
        rows.append(("sidecar", f"{said['unmatched_rows']:,} of {said['rows']:,} rows match no source{some}"))
    rejected = totals["rejected_clips"].items()
    rows += [("rejected", f"{n:,} clips: {reason} ({REJECT_REASONS[reason]})") for reason, n in rejected]
    rows += [("failed", f"{count:,} spans: {name} ({ERROR_CLASSES[name]})") for name, count in failed.items()]
    rows += [("damaged", f"{count:,} spans in part: {name}") for name, count in damaged.items()]
    if built.pace:
        rows += _pace_rows(built.pace.summary())
    return [*rows, ("fingerprint", built.manifest.fingerprint), ("seconds", f"{built.seconds:.1f}")]


def _pace_rows(pace: dict[str, Any]) -> list[tuple[str, str]]:
    rates = (
        f"{pace['clips_per_second']:,.1f} clips/s, {pace['video_hours_per_hour']:,.1f} hours of video an hour"
    )
    return [("speed", rates), ("", sentence(pace))]
