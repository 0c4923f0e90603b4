"""What `extract` and `tokenize` share: the settings of a shard set, from decoding to packing."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pipelines.building.job import Built, DeriveJob, TokenizerRef, VideoJob
from pipelines.config import (
    DecodeLimits,
    DuplicateConfig,
    ExtractConfig,
    FilterConfig,
    Keep,
    PackConfig,
    Resources,
    SamplingConfig,
    SplitConfig,
)
from pipelines.packing.sidecar import Sidecar
from pipelines.shards import ShardSet
from reelgpt import shard_summary, tracked_build
from reelgpt.command import InputUri, Outcome, OutputUri


@dataclass(frozen=True, kw_only=True, slots=True)
class SetCommand:
    """Makes a shard set from videos, or another one of the same kind from it."""

    out: OutputUri
    """The shard set to make."""
    validation: tuple[str, ...] = ()
    """Names of the sources to hold out; by default the share below."""
    validation_share: float = SplitConfig().validation_share
    """Share of the sources to hold out."""
    exclude: tuple[str, ...] = ()
    """Names or URIs of sources to leave out of the videos or the set given."""
    keep_rejected: bool = False
    """Keep what was made of rejected clips beside the set, of all that is decoded from now on, so that
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
    """On by default: counts and speed go to MLflow, if MLFLOW_TRACKING_URI is set or an mlflow.db here."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def video_job(
        self,
        videos: tuple[str, ...],
        *,
        keep: Keep,
        tokenizer: TokenizerRef | None = None,
    ) -> VideoJob:
        return VideoJob(
            videos=videos,
            exclude=self.exclude,
            out=self.out,
            config=ExtractConfig(sampling=self.sampling, filters=self.filters, limits=self.limits, keep=keep),
            duplicates=self.duplicates,
            sidecar=self._read_sidecar(),
            split=self._split(),
            pack=self.pack,
            resources=self.resources,
            redo=self.redo,
            tokenizer=tokenizer,
        )

    def derive_job(self, base: ShardSet) -> DeriveJob:
        return DeriveJob(
            base=base.uri,
            out=self.out,
            exclude=self.exclude,
            filters=self.filters,
            duplicates=self.duplicates,
            split=self._split(),
            pack=self.pack,
            sidecar=self._read_sidecar(),
            redo=self.redo,
        )

    def outcome(self, name: str, built: Built) -> Outcome:
        run_id = tracked_build.record(name, built, self.out) if self.track else None
        return shard_summary.outcome(built, self.out, self.max_failed, run_id)

    def _split(self) -> SplitConfig:
        return SplitConfig(validation=self.validation, validation_share=self.validation_share)

    def _read_sidecar(self) -> Sidecar | None:
        return Sidecar.read(self.sidecar) if self.sidecar else None
