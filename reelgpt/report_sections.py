"""What the report says, section by section: facts and pictures from a shard set, a run, a generated video."""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra import storage
from infra.errors import UsageError
from model.bundle import RECORD, BundleInfo, read_bundle
from model.metrics import psnr
from pipelines.building.pace import recorded, sentence
from pipelines.selection.distributions import distributions
from pipelines.selection.filters import REJECT_REASONS
from pipelines.shards import ShardSet, Split, frames_of
from reelgpt import score_table
from reelgpt.lineage_facts import facts
from reelgpt.pictures import Curve, Frames, chart, film_strip
from training.run_directory import RunDirectory

MOST_ROWS = 200
"""Sources and rejects listed; a page of a million rows serves nobody."""
MOST_PICTURES = 8
"""Frames that are shown reconstructed."""


def describe_data(data: ShardSet) -> dict[str, Any]:
    """The sources with what each gave, and the spans or clips that were left out, with their reasons."""
    totals, found = data.manifest.totals, distributions(data)
    spans = data.spans().to_pylist()
    rejects = [row for span in spans for row in _reject_rows(span)]
    clips = totals["clips"]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in totals["spans"].items())
    return {
        "sentence": f"{totals['sources']} sources of {totals['hours'] * 3600:,.0f} s gave {clips['train']:,} "
        f"clips to learn from and {clips['validation']:,} held out. Of their spans: {outcomes}.",
        "sources": _source_rows(data, spans),
        "num_sources_unlisted": max(0, totals["sources"] - MOST_ROWS),
        "rejects": rejects[:MOST_ROWS],
        "num_rejects_unlisted": max(0, len(rejects) - MOST_ROWS),
        "scores": score_table.as_rows(found),
        "scores_of": score_table.title(found),
    }


def describe_paces(sets: Sequence[ShardSet]) -> list[dict[str, str]]:
    """How fast each set was made, and what the machine would have allowed."""
    paces = [(data.manifest.kind, recorded(data.uri)) for data in sets]
    return [
        {
            "made": kind,
            "clips/s": f"{pace['clips_per_second']:,.1f}",
            "hours of video an hour": f"{pace['video_hours_per_hour']:,.1f}",
            "beside the limit": sentence(pace),
        }
        for kind, pace in paces
        if pace
    ]


def _source_rows(data: ShardSet, spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    clips: Counter[str] = Counter()
    for span in spans:
        clips[span["source_id"]] += span["num_clips"]
    return [
        {
            "source": source["name"],
            "seconds": "unknown"
            if source["duration_seconds"] is None
            else f"{source['duration_seconds']:.1f}",
            "clips": clips[source["source_id"]],
            "split": source["split"],
        }
        for source in data.sources().slice(0, MOST_ROWS).to_pylist()
    ]


def _reject_rows(span: dict[str, Any]) -> list[dict[str, Any]]:
    where = {"source": span["source"], "from second": f"{span['start_seconds']:.0f}"}
    failed = [{**where, "class": span["error_class"], "why": span["error"]}] if span["error_class"] else []
    filtered = [
        {**where, "class": reason, "why": f"{count} clips: {REJECT_REASONS[reason]}"}
        for reason, count in dict(span["rejected"] or []).items()
    ]
    return failed + filtered


def show_reconstructions(data: ShardSet, tokenizer_uri: str) -> dict[str, Any] | None:
    """Held-out frames (those to learn from, where none is held out) above what the tokenizer gives back."""
    import torch

    from model.bundle import load_tokenizer
    from model.tokenizer import to_bytes
    from training.objectives import square

    tokenizer = load_tokenizer(tokenizer_uri)
    chosen = _some_frames(data)
    if not chosen:
        return None
    source = to_bytes(square(torch.tensor(np.stack(chosen)), tokenizer.config.frame_size))  # (T, S, S, 3)
    codes = tokenizer.encode(source[None])  # (1, t, h, w)
    decoded = tokenizer.decode(codes)[0].numpy()
    rows = {"source": source.numpy(), "reconstruction": decoded}
    return {
        "strip": _data_uri("image/png", film_strip(rows)),
        "codes": codes[0, 0].numel(),
        "num_codes": tokenizer.config.num_codes,
        "psnr": psnr(source.numpy(), decoded),
    }


def _some_frames(data: ShardSet) -> list[Frames]:
    """The middle frames of clips taken evenly from the held-out ones."""
    split: Split = "validation" if data.num_clips("validation") else "train"
    chosen = set(
        np.linspace(0, max(0, data.num_clips(split) - 1), MOST_PICTURES).round().astype(int).tolist()
    )
    clips = (clip for table in data.tables(split, ["shape", "frames"]) for clip in frames_of(table))
    return [clip[len(clip) // 2] for index, clip in enumerate(clips) if index in chosen]


def show_continuation(path: str) -> dict[str, Any]:
    """What `reelgpt generate` left beside the mp4 file at `path`."""
    record = path.removesuffix(".mp4") + ".json"
    if not storage.exists(record):
        raise UsageError(f"`reelgpt generate` did not make {path}: there is no {record}; give what it made")
    summary = storage.read_json(record)["summary"]
    if summary is None:
        raise UsageError(f"{path} was not finished; repeat the `reelgpt generate` that makes it")
    ahead = range(1, summary["predicted_frames"] + 1)
    curves = [
        Curve(label="predicted", x=ahead, y=summary["psnr_predicted"]),
        Curve(label="copy of the last frame", x=ahead, y=summary["psnr_copy_last"]),
        Curve(label="ceiling: the tokenizer", x=ahead, y=summary["psnr_ceiling"], dashed=True),
    ]
    beside = {
        "truth": summary["truth"],
        "predicted": summary["out"],
        "copy of the last frame": summary["copy_last"],
    }
    return {
        "input_name": summary["input"].rpartition("/")[2],
        "given_frames": summary["given_frames"],
        "predicted_frames": summary["predicted_frames"],
        "videos": {name: _data_uri("video/mp4", storage.read_bytes(uri)) for name, uri in beside.items()},
        "strip": _data_uri("image/png", storage.read_bytes(summary["strip"])),
        "chart": chart(curves, x_label="frames ahead", y_label="PSNR, dB"),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One run directory, read: what the run was, how its losses went, what it came to."""

    name: str
    config: dict[str, Any]
    result: dict[str, Any]
    """Empty while the run is not finished."""
    chart: str
    bundle: BundleInfo | None

    @property
    def is_tokenizer(self) -> bool:
        return "frames_per_clip" in self.config["objective"]


def read_training(run_dir: str) -> Training:
    run = RunDirectory.at(run_dir)
    if not storage.exists(run.config):
        raise UsageError(
            f"{run_dir} is no run directory: it has no config.json; give what `reelgpt train` made"
        )
    result = storage.read_json(run.result) if storage.exists(run.result) else {}
    return Training(
        name=storage.read_json(run.config)["recipe"],
        config=storage.read_json(run.config)["config"],
        result=result,
        chart=_loss_chart(run.read_metrics(), baselines(result, "val_loss")),
        bundle=read_bundle(run.bundle) if storage.exists(storage.join(run.bundle, RECORD)) else None,
    )


def baselines(result: dict[str, Any], metric: str) -> dict[str, float]:
    """Those of a metric: their names go on where its own ends, as `val_loss_unigram`."""
    prefix = f"{metric}_"
    return {name.removeprefix(prefix): value for name, value in result.items() if name.startswith(prefix)}


def _loss_chart(rows: Sequence[dict[str, float]], levels: dict[str, float]) -> str:
    curves = [_curve(rows, "loss", "learned from"), _curve(rows, "val_loss", "held out")]
    return chart(curves, x_label="step", y_label="loss", levels=levels)


def _curve(rows: Sequence[dict[str, float]], name: str, label: str) -> Curve:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return Curve(label=label, x=[step for step, _ in points], y=[value for _, value in points])


def headline(
    data: ShardSet | None, tokens: ShardSet | None, trainings: Sequence[Training]
) -> list[dict[str, Any]]:
    """The few numbers that say how it went."""
    numbers: list[tuple[str, Any]] = []
    if data:
        totals = data.manifest.totals
        numbers += [("videos", totals["sources"]), ("clips", sum(totals["clips"].values()))]
    if tokens:
        numbers.append(("codes", tokens.manifest.totals.get("codes", 0)))
    for training in trainings:
        numbers += _results(training)
    return [{"label": label, "value": value} for label, value in numbers]


def _results(training: Training) -> list[tuple[str, Any]]:
    result = training.result
    if training.is_tokenizer:
        return (
            [("dB, held-out frames through the tokenizer", result["val_psnr"])]
            if "val_psnr" in result
            else []
        )
    if "val_loss" not in result:
        return []
    beside = [
        (f"nats a code, {name} baseline", value) for name, value in baselines(result, "val_loss").items()
    ]
    return [("nats a code, held-out loss of the GPT", result["val_loss"]), *beside]


def training_rows(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """One row a training, for the table below the curves."""
    return [
        {
            "recipe": training.name,
            "steps": training.result.get("steps_done", 0),
            "workers": training.config["num_workers"],
            "ZeRO": training.config["engine"]["zero_stage"],
            "seconds a step": training.result.get("seconds_per_step", "unfinished"),
            "held out": _against(training.result, "val_psnr" if training.is_tokenizer else "val_loss"),
            "model version": training.result.get("model_version") or "not registered",
        }
        for training in trainings
    ]


def _against(result: dict[str, Any], metric: str) -> str:
    """A metric beside its baselines, in words."""
    if metric not in result:
        return "not measured"
    beside = ", ".join(
        f"{name.replace('_', ' ')} {value:.2f}" for name, value in baselines(result, metric).items()
    )
    unit = "dB" if metric == "val_psnr" else "nats a code"
    return f"{result[metric]:.2f} {unit}" + (f" ({beside})" if beside else "")


def lineage(trainings: Sequence[Training], data: ShardSet | None) -> list[dict[str, Any]]:
    """From the last model back to the sources, a link each."""
    links = [
        link for training in reversed(trainings) if training.bundle for link in _model_links(training.bundle)
    ]
    if data:
        links.append(_sources_link(data))
    return links


def _sources_link(data: ShardSet) -> dict[str, Any]:
    num_sources = data.manifest.totals["sources"]
    names = [source["name"] for source in data.sources().slice(0, MOST_ROWS).to_pylist()]
    unlisted = [f"and {num_sources - MOST_ROWS:,} more"] if num_sources > MOST_ROWS else []
    return {"what": f"{num_sources} source videos", "facts": [", ".join(names + unlisted)]}


def _model_links(bundle: BundleInfo) -> list[dict[str, Any]]:
    known = bundle.lineage
    links = [{"what": f"the {bundle.kind}", "facts": [bundle.uri, f"fingerprint {bundle.fingerprint}"]}]
    parts = [part for part in ("run", "checkpoint", "shard_set") if known.get(part)]
    return links + [
        {"what": f"its {part.replace('_', ' ')}", "facts": list(facts(known[part]))} for part in parts
    ]


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
