"""`reelgpt extract`: videos to frame shards."""

from dataclasses import dataclass

from tyro.conf import Positional

from infra.errors import ConfigError, UsageError
from pipelines.building.build import build_from_videos
from pipelines.config import Keep
from pipelines.derive import derive
from pipelines.shards import ShardSet
from reelgpt import shard_summary
from reelgpt.command import InputUri, Outcome
from reelgpt.console import track
from reelgpt.given_set import given_set, refuse_without_effect
from reelgpt.set_command import SetCommand
from reelgpt.stopping import stoppable


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract(SetCommand):
    """Videos to frame shards, by a Ray Data graph. Repeating the command does what is missing; with more
    videos it appends. From frame shards it derives others, as without some sources.

    Example: reelgpt extract s3://bucket/videos --out frames --sampling.fps 8 --validation bikes.mp4
    """

    videos: Positional[tuple[InputUri, ...]]
    """Files, folders, globs or fsspec URIs of videos and still images; or one set of frames."""
    exclude: tuple[str, ...] = ()
    """Names or URIs of sources to leave out of the videos or the set of frames given."""
    score_only: bool = False
    """Keep no frames: only score the clips and show how the scores lie, to choose --filters by. Repeating the
    command without this option decodes again what is to be kept."""
    keep_rejected: bool = False
    """Keep the frames of rejected clips beside the set, of all that is decoded from now on, so that
    thresholds can be loosened, too, without decoding again."""

    def run(self) -> Outcome:
        shard_summary.check_budget(self.max_failed)
        given = given_set(self.videos)
        self._check_effects(given)
        with stoppable(), track("extract") as bar:
            if given is None:
                built = build_from_videos(self.video_job(self.videos, keep=self._kept()), bar.update)
            else:
                built = derive(self.derive_job(given), bar.update)
        return self.outcome("extract", built)

    def _check_effects(self, given: ShardSet | None) -> None:
        default = Extract(videos=(), out="")
        if self.score_only and self.keep_rejected:
            raise ConfigError("--score-only keeps no frames and --keep-rejected all; leave one of them out")
        if given is None:
            return
        if given.manifest.kind != "frames":
            raise UsageError(f"{given.uri} holds {given.manifest.kind}; extract takes videos or frames")
        names = ("score_only", "keep_rejected", "max_failed", "sampling", "limits", "resources")
        refuse_without_effect(self, default, names, "frames that are there; set it where they are made")

    def _kept(self) -> Keep:
        return "none" if self.score_only else "all" if self.keep_rejected else "kept"
