"""Settings of the pipeline. What changes the result is a config and enters the recipe id; resources do
not."""

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from infra.errors import ConfigError
from infra.hashing import MIB

Keep = Literal["none", "kept", "all"]

SIDE = 128
SQUARE = 8
"""Pixels along the side of the square that one code stands for, at least: no tokenizer has smaller ones."""
DECODER_BYTES = 384 * MIB
"""Address space of a decoding child beside the frames of a span: libraries, and the pictures of a codec."""
COPIES_OF_A_SPAN = 2
"""Frames as decoded, and cropped or repeated ones."""
MOST_NEAR_BITS = 48
"""Of 192, from which on clips that show different things count as near."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Which frames of a video become clips."""

    size: int = SIDE
    """Height and width of a frame in pixels: the shorter side is resized to it, the longer one cropped around
    its centre."""
    buckets: tuple[str, ...] = ()
    """Sizes of frames as WIDTHxHEIGHT, in place of one square: a source goes to the one nearest in aspect
    ratio, resized to cover it and cropped around its centre."""
    fps: float = 8.0
    """Frames sampled a second, by timestamp, whatever the video's own rate."""
    shots: bool = True
    """On by default: cuts are looked for, so that no clip goes across one."""
    clip_frames: int = 8
    stride_frames: int = 8
    """Sampled frames from the start of one clip to the start of the next; less than clip_frames overlaps
    them."""
    span_seconds: float = 60.0
    """Length of a span: the unit of work, of retry and of failure."""

    def __post_init__(self) -> None:
        _at_least("size", self.size, SQUARE)
        if self.buckets:
            object.__setattr__(self, "buckets", tuple(sorted(set(self.buckets))))
            self._check_buckets()
        _at_least("clip_frames", self.clip_frames, 1)
        _at_least("stride_frames", self.stride_frames, 1)
        if not 0 < self.fps <= 1000:
            raise ConfigError(
                f"fps={self.fps:g} is not a sampling rate; give frames a second, above 0, up to 1000"
            )
        if not 0 < self.span_seconds <= 86_400:
            raise ConfigError(
                f"span_seconds={self.span_seconds:g} is no length of a span; give seconds, up to a day"
            )
        if self.frames_per_span < self.clip_frames:
            raise ConfigError(
                f"span_seconds={self.span_seconds:g} at fps={self.fps:g} holds no clip of {self.clip_frames} "
                f"frames; give at least {self.clip_frames / self.fps:g} seconds"
            )

    def _check_buckets(self) -> None:
        for bucket in self.buckets:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", bucket):
                raise ConfigError(
                    f"{bucket!r} in buckets is no size of a frame; give WIDTHxHEIGHT, such as 160x96"
                )
            sides = [int(side) for side in bucket.split("x")]
            if any(side % SQUARE for side in sides):
                nearest = "x".join(str(max(1, round(side / SQUARE)) * SQUARE) for side in sides)
                raise ConfigError(
                    f"{bucket} in buckets does not divide into squares of {SQUARE} pixels, of which a "
                    f"tokenizer makes a code each; the nearest that does is {nearest}"
                )
        if self.size != SIDE:
            raise ConfigError(f"size={self.size} has no effect beside buckets; leave one of them out")

    @property
    def frame_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each kind of frame."""
        sides = [bucket.split("x") for bucket in self.buckets]
        return tuple((int(height), int(width)) for width, height in sides) or ((self.size, self.size),)

    @property
    def frames_per_span(self) -> int:
        return int(Fraction(self.span_seconds).limit_denominator() * Fraction(self.fps).limit_denominator())


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which clips are kept. Scores are stored whatever the thresholds."""

    min_brightness: float = 0.02
    """Mean luma in [0, 1] below which a clip counts as black."""
    min_contrast: float = 0.0
    """Standard deviation of luma in a frame, in [0, 0.5], below which a clip counts as flat."""
    min_sharpness: float = 0.0
    """Variance of the Laplacian, in levels of 255 squared, below which a clip counts as blurred. It grows
    with the size of the frames: look at the scores of your own videos first."""
    min_motion: float = 0.0
    """Mean absolute difference of neighbouring frames in [0, 1] below which a clip counts as static."""
    max_frozen: float = 1.0
    """Share of the frames that may show the same as the one before, but for noise."""
    max_repeated: float = 1.0
    """Share of the frames that may be repeats, because the video is slower than `fps`."""
    max_text: float = 1.0
    """Share of the picture that may be a flat ground or text upon it, standing still. 0.9 leaves out title
    cards and credits."""
    min_width: int = 0
    """Pixels of the source from side to side, upright and square, below which its clips count as small."""
    min_height: int = 0
    """Pixels of the source from top to bottom, below which its clips count as small."""
    min_duration_seconds: float = 0.0
    """Length of the source, below which its clips count as short; a still image has none to be judged by."""

    def __post_init__(self) -> None:
        for name in ("min_brightness", "min_contrast", "min_motion"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"{name}={value:g} is outside [0, 1)")
        for name in ("max_frozen", "max_repeated", "max_text"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value:g} is not a share; give a number from 0 to 1")
        for name in ("min_sharpness", "min_width", "min_height", "min_duration_seconds"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value:g} is below 0; 0 keeps everything")


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateConfig:
    """Which clips count as copies of another one, over the whole set, once the thresholds are applied."""

    exact: bool = True
    """On by default: of clips with the same pixels only the one with the lowest id stays."""
    near_bits: int | None = None
    """Leave out clips whose perceptual hash differs in at most this many of its 192 bits from that of an
    earlier clip that stays. 8 finds what was coded or scaled again; from 13 on, neighbours in a calm video
    count as copies, too. None leaves all of them in."""

    def __post_init__(self) -> None:
        if self.near_bits is not None and not 0 <= self.near_bits <= MOST_NEAR_BITS:
            raise ConfigError(
                f"near_bits={self.near_bits} is no distance of two like pictures; give 0 to {MOST_NEAR_BITS} "
                f"of the 192 bits, such as 8"
            )

    @property
    def is_active(self) -> bool:
        return self.exact or self.near_bits is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimits:
    """What a decoding child may use on one span before it is killed."""

    cpu_seconds: int = 300
    memory_mb: int = 1280
    """Address space of a child, of which there is one a core. Enough for 8K video of 10 bits and for pictures
    of 100 megapixels; give more where rows say memory_limit, and have it: two cores stay below 4 GB with the
    default."""
    attempts: int = 2
    """Tries of a span whose child was killed or crashed, before its row says so."""
    still_seconds: int = 30
    """How long a child may neither answer, nor use the CPU, nor wait for a disk, before it counts as hanging;
    and how long a read of its file may take then, before the storage does."""

    def __post_init__(self) -> None:
        _at_least("cpu_seconds", self.cpu_seconds, 1)
        _at_least("memory_mb", self.memory_mb, 512)
        _at_least("attempts", self.attempts, 1)
        _at_least("still_seconds", self.still_seconds, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    keep: Keep = "kept"
    """Of which clips the rows of span files hold frames or codes: of those that the thresholds keep, of all,
    or of none."""

    def __post_init__(self) -> None:
        """A span whose frames do not fit a decoding child would fail for every source."""
        frames, sizes = self.sampling.frames_per_span, self.sampling.frame_sizes
        height, width = max(sizes, key=math.prod)
        free_bytes = (self.limits.memory_mb << 20) - DECODER_BYTES
        most = free_bytes // (COPIES_OF_A_SPAN * 3 * height * width)
        if frames > most:
            needed_mb = (COPIES_OF_A_SPAN * 3 * height * width * frames + DECODER_BYTES >> 20) + 1
            seconds = math.floor(10 * most / self.sampling.fps) / 10
            shorter = f"--sampling.span-seconds {seconds:g} or " if most else ""
            raise ConfigError(
                f"a span of {self.sampling.span_seconds:g} s holds {frames} frames of {width}x{height} "
                f"pixels, which a decoding child of {self.limits.memory_mb} MB has no room for; give "
                f"{shorter}--limits.memory-mb {needed_mb}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """Which sources are held out. A source is never on both sides."""

    validation: tuple[str, ...] = ()
    """Names of the held-out sources; empty holds out the share below."""
    validation_share: float = 0.05
    """Share of sources held out, those with the lowest hash, at least one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "validation", tuple(sorted(set(self.validation))))
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share={self.validation_share:g} is outside [0, 1)")


FEWEST_CLIPS_PER_ROW_GROUP = 32
"""However large a clip is: a window of row groups is what is shuffled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    shard_bytes: int = 128 * MIB
    """Frames or codes in a shard, before compression: what packing holds in memory at a time."""
    clips_per_row_group: int | None = None
    """What training reads at a time. None: as many as hold a MiB, but at least 32."""

    def __post_init__(self) -> None:
        _at_least("shard_bytes", self.shard_bytes, 1)
        if self.clips_per_row_group is not None:
            _at_least("clips_per_row_group", self.clips_per_row_group, 1)

    def rows_per_group(self, clip_bytes: int) -> int:
        """Below a MiB, opening a row group costs its reader more than what is in it."""
        return self.clips_per_row_group or max(FEWEST_CLIPS_PER_ROW_GROUP, MIB // clip_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """How much of the machine or cluster to use. Changes nothing in the result."""

    num_cpus: int | None = None
    """Cores of a local Ray; none means all. A cluster (RAY_ADDRESS) brings its own."""
    num_gpus: int | None = None
    """GPUs to tokenize with; none means all that Ray sees, 0 means the cores alone."""
    gpus_per_tokenizer: float = 1.0
    """Share of a GPU that one tokenizer takes: 0.5 puts two on each."""
    num_tokenizers: int | None = None
    """Most tokenizer actors; none means one a GPU, or one a core where there is no GPU."""
    min_tokenizers: int = 1
    """Actors that must start within `start_seconds`; a busy or growing cluster adds more when it can."""
    start_seconds: int = 300
    """How long the first tokenizers may take to start before the cluster counts as too small for them."""
    object_store_mb: int = 512
    """Memory of a local Ray's object store."""
    spans_per_file: int = 16
    """Most spans that share one span file: what a kill can cost each worker. Small jobs use fewer."""

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_tokenizers"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("spans_per_file", "min_tokenizers", "start_seconds"):
            _at_least(name, getattr(self, name), 1)
        _at_least("object_store_mb", self.object_store_mb, 80)
        if self.num_gpus is not None:
            _at_least("num_gpus", self.num_gpus, 0)
        if not 0 < self.gpus_per_tokenizer <= 1:
            raise ConfigError(
                f"gpus_per_tokenizer={self.gpus_per_tokenizer:g} is not a share of a GPU; "
                f"give one above 0, up to 1"
            )
        if self.num_tokenizers is not None and self.min_tokenizers > self.num_tokenizers:
            raise ConfigError(
                f"min_tokenizers={self.min_tokenizers} is above num_tokenizers={self.num_tokenizers}; "
                f"lower the one or raise the other"
            )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} is too small; give at least {least}")
