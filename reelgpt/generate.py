"""`reelgpt generate`: a video from a model, beside the truth and beside a copy of the last frame."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from tyro.conf import Positional

from infra import storage
from infra.errors import UsageError
from infra.hashing import digest
from infra.registry import find_bundle
from model.bundle import TOKENIZER, BundleInfo, read_bundle
from model.config import GPTConfig, TokenizerConfig
from model.metrics import psnr
from model.tasks import NUM_SPECIAL_TOKENS, get_task
from pipelines.config import SamplingConfig
from reelgpt.command import InputUri, Outcome, OutputUri
from reelgpt.console import track

Frames = NDArray[np.uint8]

RECORD = ".json"
"""Ending of the file that says what was made and how; while the others are written, without a summary."""
TRUTH, COPY_LAST, STRIP = ENDINGS = (".truth.mp4", ".copy-last.mp4", ".png")
MOST_DECIBELS = 99.0
"""Stands for the PSNR of equal frames, which is infinite."""


class Continuation(NamedTuple):
    """Videos of one length, (T, H, W, 3) each; `predicted` and `copy_last` begin with the given frames."""

    truth: Frames
    predicted: Frames
    copy_last: Frames
    ceiling: Frames
    """The truth through the tokenizer: what a perfect prediction would look like."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continues a video: the first frames are given, the model predicts the rest.

    Beside FILE.mp4 lie FILE.truth.mp4 and FILE.copy-last.mp4, FILE.png with the frames of all in rows, and
    FILE.json with how far each is from the truth. What was made in the same way before is not made again.

    Example: reelgpt generate models:/gpt-tiny@latest --task continue --input street.mp4 --out next.mp4
    """

    model: Positional[InputUri]
    """A GPT: a bundle's path, an fsspec URI, models:/NAME/VERSION or models:/NAME@ALIAS."""
    input: InputUri
    """The video whose first frames are given and whose others are the truth."""
    out: OutputUri
    """The mp4 file to write."""
    task: str = "continue"
    """What to do with the video; the model must have been trained for it."""
    given_frames: int | None = None
    """Frames given; by default as many as in training."""
    start_seconds: float = 0.0
    """Where in the video the first given frame lies."""
    fps: float | None = None
    """Frames a second, sampled by timestamp; by default as many as in training."""
    temperature: float = 1.0
    """Below 1 draws likelier codes; 0 takes the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest codes alone."""
    seed: int = 0
    json: bool = False
    """Print one JSON object as the last line, instead of the table."""

    def run(self) -> Outcome:
        self._check_options()
        bundle = _find_gpt(self.model, self.task)
        recipe = self._recipe(bundle)
        summary = self._find_done(recipe)
        done_before = summary is not None
        if summary is None:
            summary = self._make(bundle, recipe)
        return Outcome(summary=summary | {"done_before": done_before}, text=_table(summary))

    def _check_options(self) -> None:
        if self.task != "continue":
            raise UsageError(f"generate can do --task continue, and was asked for {self.task!r}")
        if not self.out.endswith(".mp4"):
            raise UsageError(f"--out {self.out} must end in .mp4, the one format that generate writes")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UsageError(f"--fps {self.fps:g} must be above 0, and 1000 at most")
        if self.start_seconds < 0:
            raise UsageError(f"--start-seconds {self.start_seconds:g} must not be below 0")

    def _recipe(self, bundle: BundleInfo) -> str:
        """Hash of all that the files depend on; of the input its name, size and last change."""
        media = storage.describe(self.input)
        if media is None:
            raise UsageError(f"there is no file at {self.input}; give --input a video or a picture")
        draw = [self.temperature, self.top_k, self.seed]
        sampled = [self.start_seconds, self._fps(bundle), self._num_given(bundle)]
        return digest([bundle.fingerprint, media.uri, media.size, media.modified, *draw, *sampled])

    def _fps(self, bundle: BundleInfo) -> float:
        sampling = (bundle.lineage.get("shard_set") or {}).get("sampling") or {}
        return self.fps or cast(float | None, sampling.get("fps")) or SamplingConfig().fps

    def _num_given(self, bundle: BundleInfo) -> int:
        if self.given_frames is not None:
            return self.given_frames
        objective = bundle.lineage.get("config", {}).get("objective", {})
        return cast(int | None, objective.get("prefix_frames")) or 1

    def _find_done(self, recipe: str) -> dict[str, Any] | None:
        """The summary of an earlier call that was given the same. Refuses to replace what others made."""
        record = self._record()
        files = [self.out, *map(self._beside, ENDINGS)]
        there = [file for file in files if storage.exists(file)]
        if there and record is None:
            raise UsageError(f"{there[0]} is something that generate did not make; give another --out")
        if record is None or record["recipe"] != recipe or there != files:
            return None
        return cast(dict[str, Any] | None, record["summary"])

    def _record(self) -> dict[str, Any] | None:
        place = self._beside(RECORD)
        if not storage.exists(place):
            return None
        record = storage.read_json(place)
        if not isinstance(record, dict) or not {"recipe", "summary"} <= record.keys():
            raise UsageError(f"{place} is something that generate did not make; give another --out")
        return record

    def _make(self, bundle: BundleInfo, recipe: str) -> dict[str, Any]:
        from pipelines.decoding.decode import read_frames

        num_frames, size = clip_shape(bundle)
        num_given, fps, start = self._num_given(bundle), self._fps(bundle), self.start_seconds
        if not 0 < num_given < num_frames:
            raise UsageError(
                f"--given-frames {num_given}: {self.model} writes clips of {num_frames} frames, "
                f"so it can be given 1 to {num_frames - 1}"
            )
        truth = read_frames(self.input, size=size, fps=fps, num_frames=num_frames, start_seconds=start)
        with track("generate", total=num_frames) as bar:
            videos = continue_clip(
                bundle, truth, num_given, temperature=self.temperature, top_k=self.top_k, seed=self.seed
            )
            bar.update(num_frames)
        summary = self._facts(bundle, num_given, num_frames) | decibels_by_frame(videos, num_given)
        # before the files: where it is stopped among them, the command repeated knows them for its own
        storage.write_json(self._beside(RECORD), {"recipe": recipe, "summary": None})
        self._write(videos, num_given, fps)
        storage.write_json(self._beside(RECORD), {"recipe": recipe, "summary": summary})
        return summary

    def _facts(self, bundle: BundleInfo, num_given: int, num_frames: int) -> dict[str, Any]:
        return {
            "out": self.out,
            "truth": self._beside(TRUTH),
            "copy_last": self._beside(COPY_LAST),
            "strip": self._beside(STRIP),
            "input": self.input,
            "start_seconds": self.start_seconds,
            "fps": self._fps(bundle),
            "model": bundle.uri,
            "model_fingerprint": bundle.fingerprint,
            "given_frames": num_given,
            "predicted_frames": num_frames - num_given,
        }

    def _write(self, videos: Continuation, num_given: int, fps: float) -> None:
        from pipelines.video_writer import write_video
        from reelgpt.pictures import film_strip

        write_video(self.out, videos.predicted, fps=fps)
        write_video(self._beside(TRUTH), videos.truth, fps=fps)
        write_video(self._beside(COPY_LAST), videos.copy_last, fps=fps)
        rows = {
            "truth": videos.truth,
            "predicted": videos.predicted,
            "copy of the last frame": videos.copy_last,
        }
        strip = film_strip(rows | {"truth through the tokenizer": videos.ceiling}, num_given=num_given)
        storage.write(self._beside(STRIP), strip)

    def _beside(self, ending: str) -> str:
        return self.out.removesuffix(".mp4") + ending


def continue_clip(
    bundle: BundleInfo, truth: Frames, num_given: int, *, temperature: float, top_k: int | None, seed: int
) -> Continuation:
    """What the GPT says follows the first `num_given` frames of `truth` (T, H, W, 3), and its comparisons."""
    import torch

    from model.bundle import load_gpt
    from model.sampling import sample

    gpt, vocabulary, tokenizer = load_gpt(bundle.uri)
    codes = tokenizer.encode(torch.tensor(truth)[None])  # (1, t, h, w)
    _, rows, columns = codes[0].shape
    grid = (len(truth), rows, columns)
    prefix = get_task("continue").prefix(codes[0, :num_given].numpy(), grid, vocabulary)
    sampled = sample(gpt, vocabulary, prefix, grid, temperature=temperature, top_k=top_k, seed=seed)
    decoded = tokenizer.decode(torch.from_numpy(sampled)[None])[0].numpy()
    given = truth[:num_given]
    return Continuation(
        truth=truth,
        predicted=np.concatenate([given, decoded[num_given:]]),
        copy_last=np.concatenate([given, np.repeat(given[-1:], len(truth) - num_given, axis=0)]),
        ceiling=tokenizer.decode(codes)[0].numpy(),
    )


def decibels_by_frame(videos: Continuation, num_given: int) -> dict[str, list[float]]:
    """PSNR against the truth of each predicted frame, the nearest first."""
    return {
        f"psnr_{name}": [_decibels(frames[i], videos.truth[i]) for i in range(num_given, len(videos.truth))]
        for name, frames in videos._asdict().items()
        if name != "truth"
    }


def clip_shape(bundle: BundleInfo) -> tuple[int, int]:
    """Frames of the longest clip that a GPT can write, and the pixels along their side."""
    tokenizer = cast(TokenizerConfig, read_bundle(storage.join(bundle.uri, TOKENIZER)).config)
    _, rows, columns = tokenizer.grid(1, tokenizer.frame_size, tokenizer.frame_size)
    num_codes = cast(GPTConfig, bundle.config).context_tokens - NUM_SPECIAL_TOKENS
    return num_codes // (rows * columns), tokenizer.frame_size


def _find_gpt(model: str, task: str) -> BundleInfo:
    bundle = read_bundle(find_bundle(model))
    if bundle.kind != "gpt":
        raise UsageError(
            f"{model} is a {bundle.kind}, and generate needs a GPT; give one that `train gpt_tiny` made"
        )
    if task not in bundle.tasks:
        raise UsageError(f"{model} was trained for {', '.join(bundle.tasks)}, not for {task}")
    return bundle


def _decibels(a: Frames, b: Frames) -> float:
    return min(MOST_DECIBELS, round(psnr(a, b), 3))


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['out']}: {summary['given_frames']} frames given, PSNR in dB of the others")
    horizon = range(1, summary["predicted_frames"] + 1)
    for heading in ("", *(f"+{ahead}" for ahead in horizon), "mean"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in ("predicted", "copy_last", "ceiling"):
        values = summary[f"psnr_{name}"]
        table.add_row(
            name.replace("_", " "), *(f"{value:.1f}" for value in [*values, math.fsum(values) / len(values)])
        )
    return table
