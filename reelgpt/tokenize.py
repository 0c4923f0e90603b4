"""`reelgpt tokenize`: videos or frame shards to token shards."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from infra.errors import ConfigError, UsageError
from model.config import TokenizerConfig
from pipelines.build import build_from_frames, build_from_videos
from pipelines.config import (
    DecodeLimits,
    DuplicateConfig,
    ExtractConfig,
    FilterConfig,
    PackConfig,
    Resources,
    SamplingConfig,
    SplitConfig,
)
from pipelines.derive import derive
from pipelines.job import DeriveJob, FramesJob, TokenizerRef, VideoJob
from pipelines.shards import ShardSet
from pipelines.sidecar import Sidecar
from reelgpt import shard_summary, tracked_build
from reelgpt.command import InputUri, Outcome, OutputUri, find_bundle
from reelgpt.console import track
from reelgpt.given_set import given_set, refuse_without_effect
from reelgpt.stopping import stoppable

IN_THE_FRAMES = (
    "validation",
    "validation_share",
    "exclude",
    "max_failed",
    "sampling",
    "filters",
    "duplicates",
    "keep_rejected",
    "limits",
    "sidecar",
)
IN_THE_CODES = ("tokenizer", "keep_rejected", "max_failed", "sampling", "limits", "resources")
"""What is settled where a set was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenize:
    """Videos or frame shards to token shards, by a Ray Data graph. Repeating the command does what is
    missing; with more videos it appends. From token shards it derives others, as without some sources.

    Example: reelgpt tokenize frames --tokenizer models:/tokenizer_tiny@latest --out tokens
    """

    inputs: Positional[tuple[InputUri, ...]]
    """One set of frames or of tokens, or files, folders, globs or fsspec URIs of videos and still images."""
    tokenizer: InputUri | None = None
    """A tokenizer's bundle: a path, an fsspec URI, models:/NAME/VERSION or models:/NAME@ALIAS. A set of
    tokens brings its own."""
    out: OutputUri
    """The shard set to make."""
    validation: tuple[str, ...] = ()
    """Names of the sources to hold out; by default the share below. A set of frames brings its own split."""
    validation_share: float = SplitConfig().validation_share
    """Share of the sources to hold out."""
    exclude: tuple[str, ...] = ()
    """Names or URIs of sources to leave out of the set of tokens given."""
    keep_rejected: bool = False
    """Keep the codes of rejected clips beside the set, of all that is decoded from now on, so that thresholds
    can be loosened, too, without decoding again."""
    sidecar: InputUri | None = None
    """Parquet, CSV or JSON lines (.jsonl) with a column source, the name or URI of a video, and of label,
    caption and action (a list of whole numbers) what is known of its clips; start_seconds and end_seconds
    limit a row to the clips whose middle lies between them, and the narrowest row counts."""
    redo: bool = False
    """Do again what these settings ask for where OUT was made with others; rows that still fit are kept."""
    max_failed: float = 0.1
    """Share of the sources that may fail before the exit code is 3."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    pack: PackConfig = field(default_factory=PackConfig)
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    track: bool = True
    """Record counts and speed in MLflow, where MLFLOW_TRACKING_URI is set or an mlflow.db is here."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        shard_summary.check_budget(self.max_failed)
        given = given_set(self.inputs)
        self._check_effects(given)
        with stoppable(), track("tokenize") as bar:
            if given is None:
                built = build_from_videos(self._video_job(), bar.update)
            elif given.manifest.kind == "frames":
                built = build_from_frames(self._frames_job(given), bar.update)
            else:
                built = derive(self._derive_job(given), bar.update)
        run_id = tracked_build.record("tokenize", built, self.out) if self.track else None
        return shard_summary.outcome(built, self.out, self.max_failed, run_id)

    def _check_effects(self, given: ShardSet | None) -> None:
        default = Tokenize(inputs=(), out="")
        if given is None:
            refuse_without_effect(self, default, ["exclude"], "videos; leave out what is not to be read")
        elif given.manifest.kind == "frames":
            why = f"the frames of {given.uri}; set it where they are extracted, or derive others by `extract`"
            refuse_without_effect(self, default, IN_THE_FRAMES, why)
        else:
            why = "codes that are there; set it where they are made"
            refuse_without_effect(self, default, IN_THE_CODES, why)

    def _frames_job(self, frames: ShardSet) -> FramesJob:
        return FramesJob(
            frames=frames.uri,
            out=self.out,
            tokenizer=tokenizer_of(self.tokenizer),
            pack=self.pack,
            resources=self.resources,
            redo=self.redo,
        )

    def _derive_job(self, tokens: ShardSet) -> DeriveJob:
        return DeriveJob(
            base=tokens.uri,
            out=self.out,
            exclude=self.exclude,
            filters=self.filters,
            duplicates=self.duplicates,
            split=SplitConfig(validation=self.validation, validation_share=self.validation_share),
            pack=self.pack,
            sidecar=Sidecar.read(self.sidecar) if self.sidecar else None,
            redo=self.redo,
        )

    def _video_job(self) -> VideoJob:
        return VideoJob(
            videos=self.inputs,
            out=self.out,
            config=ExtractConfig(
                sampling=self.sampling,
                filters=self.filters,
                limits=self.limits,
                keep="all" if self.keep_rejected else "kept",
            ),
            duplicates=self.duplicates,
            sidecar=Sidecar.read(self.sidecar) if self.sidecar else None,
            split=SplitConfig(validation=self.validation, validation_share=self.validation_share),
            pack=self.pack,
            resources=self.resources,
            redo=self.redo,
            tokenizer=tokenizer_of(self.tokenizer),
        )


def tokenizer_of(reference: str | None) -> TokenizerRef:
    """What the driver knows of the tokenizer that a path, a URI or a `models:/` reference names."""
    from model.bundle import read_bundle

    if reference is None:
        raise ConfigError("codes need a tokenizer; give its bundle with --tokenizer")
    info = read_bundle(find_bundle(reference))
    if not isinstance(info.config, TokenizerConfig):
        raise UsageError(f"{reference} is a {info.kind}, not a tokenizer; a tokenizer's bundle is needed")
    return TokenizerRef(
        uri=info.uri,
        fingerprint=info.fingerprint,
        num_codes=info.config.num_codes,
        frame_size=info.config.frame_size,
    )
