"""`reelgpt tokenize`: videos or frame shards to token shards."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from infra import storage
from infra.errors import ConfigError, UsageError
from model.config import TokenizerConfig
from pipelines import records
from pipelines.build import build_from_frames, build_from_videos
from pipelines.config import (
    DecodeLimits,
    ExtractConfig,
    FilterConfig,
    PackConfig,
    Resources,
    SamplingConfig,
    SplitConfig,
)
from pipelines.job import FramesJob, TokenizerRef, VideoJob
from pipelines.shards import MANIFEST
from reelgpt import shard_summary
from reelgpt.command import InputUri, Outcome, OutputUri, find_bundle
from reelgpt.console import track


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenize:
    """Videos or frame shards to token shards, by a Ray Data graph. Repeating the command does what is
    missing.

    Example: reelgpt tokenize frames --tokenizer models:/tokenizer_tiny@latest --out tokens
    """

    inputs: Positional[tuple[InputUri, ...]]
    """One set of frames, or files, folders, globs or fsspec URIs of videos and still images."""
    tokenizer: InputUri
    """A tokenizer's bundle: a path, an fsspec URI, models:/NAME/VERSION or models:/NAME@ALIAS."""
    out: OutputUri
    """The shard set to make."""
    validation: tuple[str, ...] = ()
    """Names of the sources to hold out; by default the share below. A set of frames brings its own split."""
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
        frames = self._frame_set()
        tokenizer = _tokenizer(self.tokenizer)
        with track("tokenize") as bar:
            if frames is None:
                built = build_from_videos(self._video_job(tokenizer), bar.update)
            else:
                job = FramesJob(
                    frames=frames,
                    out=self.out,
                    tokenizer=tokenizer,
                    pack=self.pack,
                    resources=self.resources,
                    redo=self.redo,
                )
                built = build_from_frames(job, bar.update)
        return shard_summary.outcome(built, self.out, self.max_failed)

    def _frame_set(self) -> str | None:
        """The set of frames that was named, or None where videos were."""
        sets = [uri for uri in self.inputs if _is_shard_set(storage.absolute(uri))]
        if not sets:
            return None
        if len(self.inputs) > 1:
            raise UsageError(f"{sets[0]} is a shard set; give one set of frames, or videos, not both")
        default = Tokenize(inputs=(), tokenizer="", out="")
        for name in ("validation", "validation_share", "max_failed", "sampling", "filters", "limits"):
            if getattr(self, name) != getattr(default, name):
                raise ConfigError(
                    f"{name} has no effect on the frames of {sets[0]}; set it where they are extracted"
                )
        return sets[0]

    def _video_job(self, tokenizer: TokenizerRef) -> VideoJob:
        return VideoJob(
            videos=self.inputs,
            out=self.out,
            config=ExtractConfig(sampling=self.sampling, filters=self.filters, limits=self.limits),
            split=SplitConfig(validation=self.validation, validation_share=self.validation_share),
            pack=self.pack,
            resources=self.resources,
            redo=self.redo,
            tokenizer=tokenizer,
        )


def _is_shard_set(uri: str) -> bool:
    """Sealed or not yet: of the latter the user is told so."""
    return any(storage.exists(storage.join(uri, name)) for name in (MANIFEST, records.FOLDER))


def _tokenizer(reference: str) -> TokenizerRef:
    from model.bundle import read_bundle

    info = read_bundle(find_bundle(reference))
    if not isinstance(info.config, TokenizerConfig):
        raise UsageError(f"{reference} is a {info.kind}, not a tokenizer; a tokenizer's bundle is needed")
    return TokenizerRef(
        uri=info.uri,
        fingerprint=info.fingerprint,
        num_codes=info.config.num_codes,
        frame_size=info.config.frame_size,
    )
