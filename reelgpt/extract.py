"""`reelgpt extract`: videos to frame shards."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from pipelines.build import build_from_videos
from pipelines.config import (
    DecodeLimits,
    ExtractConfig,
    FilterConfig,
    PackConfig,
    Resources,
    SamplingConfig,
    SplitConfig,
)
from pipelines.job import VideoJob
from reelgpt import shard_summary
from reelgpt.command import InputUri, Outcome, OutputUri
from reelgpt.console import track


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """Videos to frame shards, by a Ray Data graph. Repeating the command does what is missing.

    Example: reelgpt extract s3://bucket/videos --out frames --sampling.fps 8 --validation bikes.mp4
    """

    videos: Positional[tuple[InputUri, ...]]
    """Files, folders, globs or fsspec URIs of videos and still images."""
    out: OutputUri
    """The shard set to make."""
    validation: tuple[str, ...] = ()
    """Names of the sources to hold out; by default the share below."""
    validation_share: float = SplitConfig().validation_share
    """Share of the sources to hold out."""
    redo: bool = False
    """Do again what these settings ask for where OUT was made with others; rows that still fit are kept."""
    max_failed: float = 0.1
    """Share of the sources that may fail before the exit code is 3."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    pack: PackConfig = field(default_factory=PackConfig)
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        shard_summary.check_budget(self.max_failed)
        job = VideoJob(
            videos=self.videos,
            out=self.out,
            config=ExtractConfig(sampling=self.sampling, filters=self.filters, limits=self.limits),
            split=SplitConfig(validation=self.validation, validation_share=self.validation_share),
            pack=self.pack,
            resources=self.resources,
            redo=self.redo,
        )
        with track("extract") as bar:
            built = build_from_videos(job, bar.update)
        return shard_summary.outcome(built, self.out, self.max_failed)
