"""What is asked for: videos or frames, a place, settings; and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from infra.errors import ConfigError
from pipelines.building.pace import Pace
from pipelines.config import (
    DuplicateConfig,
    ExtractConfig,
    FilterConfig,
    PackConfig,
    Resources,
    SplitConfig,
)
from pipelines.packing.sidecar import Sidecar
from pipelines.shards import Kind, Manifest

OnProgress = Callable[[int, int | None, str], None]
"""Called with the units done, those there are, and what goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A sealed shard set, and what this command did for it."""

    manifest: Manifest
    units: int
    done_before: int
    """Units that had a row when the command started."""
    done_now: int
    seconds: float = 0.0
    """From the listing of the videos to the end, with the start of Ray."""
    pace: Pace | None = None
    """How fast the units went that this command did; None where there was none to do."""
    sources_kept: int = 0
    """Sources of earlier commands that were not given this time, and stay in the set."""
    refused: tuple[str, ...] = ()
    """Names of sources given that the set holds with another content, and keeps so."""
    passed_over: list[str] = field(default_factory=list)
    """URIs of the files of the folders given that are no media files by their suffix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRef:
    """A tokenizer as the driver knows it: its weights are loaded by the workers alone."""

    uri: str
    fingerprint: str
    num_codes: int
    frame_size: int

    def check_size(self, size: int) -> None:
        """Raises ConfigError where frames of `size` pixels are too small for it."""
        if size < self.frame_size:
            raise ConfigError(
                f"frames of {size} pixels are smaller than the tokenizer's {self.frame_size}; "
                f"extract larger ones"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoJob:
    """Videos to a shard set: of frames, or of codes where a tokenizer is given."""

    videos: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    """Names or URIs of videos to leave out."""
    out: str
    config: ExtractConfig
    split: SplitConfig
    pack: PackConfig
    resources: Resources
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    sidecar: Sidecar | None = None
    tokenizer: TokenizerRef | None = None
    redo: bool = False
    """Do again what settings ask for that differ from those of `out`."""

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            self.tokenizer.check_size(min(map(min, self.config.sampling.frame_sizes)))

    @property
    def kind(self) -> Kind:
        return "tokens" if self.tokenizer else "frames"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeriveJob:
    """A set to another one of the same kind, without decoding or encoding."""

    base: str
    out: str
    exclude: tuple[str, ...]
    """Names or URIs of the sources to leave out."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    """Of these four, what differs from the defaults; for the rest, the settings of the base hold."""
    sidecar: Sidecar | None = None
    """In place of what the clips of the base have of one."""
    redo: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FramesJob:
    """A set of frames to a set of codes, without decoding again."""

    frames: str
    out: str
    tokenizer: TokenizerRef
    pack: PackConfig
    resources: Resources
    redo: bool = False
