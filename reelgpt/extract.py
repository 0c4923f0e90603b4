"""`reelgpt extract`: videos to frame shards."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from infra.errors import ConfigError, UsageError
from pipelines.build import build_from_videos
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
from pipelines.job import DeriveJob, VideoJob
from pipelines.shards import ShardSet
from pipelines.sidecar import Sidecar
from reelgpt import shard_summary, tracked_build
from reelgpt.command import InputUri, Outcome, OutputUri
from reelgpt.console import track
from reelgpt.given_set import given_set, refuse_without_effect
from reelgpt.stopping import stoppable


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """Videos to frame shards, by a Ray Data graph. Repeating the command does what is missing; with more
    videos it appends. From frame shards it derives others, as without some sources.

    Example: reelgpt extract s3://bucket/videos --out frames --sampling.fps 8 --validation bikes.mp4
    """

    videos: Positional[tuple[InputUri, ...]]
    """Files, folders, globs or fsspec URIs of videos and still images; or one set of frames."""
    out: OutputUri
    """The shard set to make."""
    validation: tuple[str, ...] = ()
    """Names of the sources to hold out; by default the share below."""
    validation_share: float = SplitConfig().validation_share
    """Share of the sources to hold out."""
    exclude: tuple[str, ...] = ()
    """Names or URIs of sources to leave out of the set of frames given."""
    score_only: bool = False
    """Keep no frames: only score the clips and show how the scores lie, to choose --filters by. Repeating the
    command without this option decodes again what is to be kept."""
    keep_rejected: bool = False
    """Keep the frames of rejected clips beside the set, of all that is decoded from now on, so that
    thresholds can be loosened, too, without decoding again."""
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
        given = given_set(self.videos)
        self._check_effects(given)
        with stoppable(), track("extract") as bar:
            if given is None:
                built = build_from_videos(self._video_job(), bar.update)
            else:
                built = derive(self._derive_job(given), bar.update)
        run_id = tracked_build.record("extract", built, self.out) if self.track else None
        return shard_summary.outcome(built, self.out, self.max_failed, run_id)

    def _check_effects(self, given: ShardSet | None) -> None:
        default = Extract(videos=(), out="")
        if self.score_only and self.keep_rejected:
            raise ConfigError("--score-only keeps no frames and --keep-rejected all; leave one of them out")
        if given is None:
            refuse_without_effect(self, default, ["exclude"], "videos; leave out what is not to be read")
        elif given.manifest.kind != "frames":
            raise UsageError(f"{given.uri} holds {given.manifest.kind}; extract takes videos or frames")
        else:
            names = ("score_only", "keep_rejected", "max_failed", "sampling", "limits", "resources")
            refuse_without_effect(self, default, names, "frames that are there; set it where they are made")

    def _derive_job(self, frames: ShardSet) -> DeriveJob:
        return DeriveJob(
            base=frames.uri,
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
            videos=self.videos,
            out=self.out,
            config=ExtractConfig(
                sampling=self.sampling,
                filters=self.filters,
                limits=self.limits,
                keep="none" if self.score_only else "all" if self.keep_rejected else "kept",
            ),
            duplicates=self.duplicates,
            sidecar=Sidecar.read(self.sidecar) if self.sidecar else None,
            split=SplitConfig(validation=self.validation, validation_share=self.validation_share),
            pack=self.pack,
            resources=self.resources,
            redo=self.redo,
        )
