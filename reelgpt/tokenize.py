"""`reelgpt tokenize`: videos or frame shards to token shards."""

from dataclasses import dataclass

from tyro.conf import Positional

from infra.errors import ConfigError, UsageError
from infra.registry import find_bundle
from model.config import TokenizerConfig
from pipelines.building.build import build_from_frames, build_from_videos
from pipelines.building.job import FramesJob, TokenizerRef
from pipelines.config import Keep
from pipelines.derive import derive
from pipelines.shards import ShardSet
from reelgpt import shard_summary
from reelgpt.command import InputUri, Outcome
from reelgpt.console import track
from reelgpt.given_set import given_set, refuse_without_effect
from reelgpt.set_command import SetCommand
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
class Tokenize(SetCommand):
    """Videos or frame shards to token shards, by a Ray Data graph. Repeating the command does what is
    missing; with more videos it appends. From token shards it derives others, as without some sources.

    Example: reelgpt tokenize frames --tokenizer models:/tokenizer-tiny@latest --out tokens
    """

    inputs: Positional[tuple[InputUri, ...]]
    """One set of frames or of tokens, or files, folders, globs or fsspec URIs of videos and still images."""
    tokenizer: InputUri | None = None
    """A tokenizer's bundle: a path, an fsspec URI, models:/NAME/VERSION or models:/NAME@ALIAS. A set of
    tokens brings its own."""
    validation: tuple[str, ...] = ()
    """Names of the sources to hold out; by default the share below. A set of frames brings its own split."""
    exclude: tuple[str, ...] = ()
    """Names or URIs of sources to leave out of the videos or the set of tokens given."""
    keep_rejected: bool = False
    """Keep the codes of rejected clips beside the set, of all that is decoded from now on, so that thresholds
    can be loosened, too, without decoding again."""

    def run(self) -> Outcome:
        shard_summary.check_budget(self.max_failed)
        given = given_set(self.inputs)
        self._check_effects(given)
        with stoppable(), track("tokenize") as bar:
            if given is None:
                keep: Keep = "all" if self.keep_rejected else "kept"
                job = self.video_job(self.inputs, keep=keep, tokenizer=tokenizer_of(self.tokenizer))
                built = build_from_videos(job, bar.update)
            elif given.manifest.kind == "frames":
                built = build_from_frames(self._frames_job(given), bar.update)
            else:
                built = derive(self.derive_job(given), bar.update)
        return self.outcome("tokenize", built)

    def _check_effects(self, given: ShardSet | None) -> None:
        default = Tokenize(inputs=(), out="")
        if given is not None and given.manifest.kind == "frames":
            why = f"the frames of {given.uri}; set it where they are extracted, or derive others by `extract`"
            refuse_without_effect(self, default, IN_THE_FRAMES, why)
        elif given is not None:
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
