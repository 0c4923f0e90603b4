"""The shapes of both models, checked before anything is built. No torch here: a refusal must be instant."""

import math
from dataclasses import dataclass

from infra.errors import ConfigError
from model.vocabulary import FIRST_CODE


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Values of each digit of a code (FSQ); their product is the size of the codebook."""
    downsample: int = 8
    """Pixels along a side of the square that one code stands for."""
    frame_size: int = 64
    """Pixels along the side of the square frames that it was made for."""
    patch_size: int = 4
    """Pixels along a side folded into channels before the first convolution; 1 folds none."""
    base_channels: int = 64
    """Channels at the finest resolution; they double at every halving, up to `max_channels`."""
    max_channels: int = 256
    num_blocks: int = 1
    """Residual blocks at each resolution, in the encoder and again in the decoder."""
    num_heads: int = 4
    """Heads of the one attention layer, which stands at the lowest resolution."""

    def __post_init__(self) -> None:
        self._check_codebook()
        if self.downsample not in (8, 16):
            raise ConfigError(f"downsample={self.downsample} is not supported; give 8 or 16")
        if self.patch_size not in (1, 2, 4):
            raise ConfigError(f"patch_size={self.patch_size} is not supported; give 1, 2 or 4")
        if self.frame_size < self.downsample or self.frame_size % self.downsample:
            nearest = max(1, round(self.frame_size / self.downsample)) * self.downsample
            raise ConfigError(
                f"frame_size={self.frame_size} does not divide into squares of downsample={self.downsample} "
                f"pixels; the nearest size that does is {nearest}"
            )
        for name in ("base_channels", "max_channels"):
            _check_multiple(name, getattr(self, name), 8, "groups of a norm")
        _check_positive(self, "num_blocks", "num_heads")
        _check_multiple("channels at the lowest resolution", self.channels[-1], self.num_heads, "heads")

    def _check_codebook(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ConfigError(f"levels={self.levels} must be numbers of at least 2, such as (8, 5, 5, 5)")
        if self.num_codes > 1 << 16:
            raise ConfigError(
                f"levels={self.levels} make {self.num_codes} codes; shards store a code in 16 bits, "
                f"so give levels with a product of at most {1 << 16}"
            )

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @property
    def channels(self) -> tuple[int, ...]:
        """Width at each resolution, finest first; the last is the grid of codes."""
        num_halvings = (self.downsample // self.patch_size).bit_length() - 1
        return tuple(min(self.base_channels << i, self.max_channels) for i in range(num_halvings + 1))

    def encoded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which frames of `height` x `width` pixels are encoded.

        The shorter side becomes `frame_size`, the longer one the nearest multiple of `downsample` in
        proportion: a picture is stretched by less than a code's square.
        """
        scale = self.frame_size / min(height, width)
        rows, columns = (round(side * scale / self.downsample) * self.downsample for side in (height, width))
        return rows, columns

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Codes (t, h, w) of a clip; the time axis is kept, as every frame is encoded by itself."""
        if num_frames < 1 or min(height, width) < 1 or height % self.downsample or width % self.downsample:
            raise ConfigError(
                f"a clip of {num_frames} frames of {height} x {width} pixels does not divide into codes; "
                f"it needs at least one frame, and sides that are multiples of {self.downsample}"
            )
        return num_frames, height // self.downsample, width // self.downsample


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    vocabulary_size: int
    """`Vocabulary(...).size`."""
    context_tokens: int
    """Longest sequence, in tokens: specials plus frames x rows x columns."""
    model_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    num_kv_heads: int = 4
    """Heads of keys and values, each shared by num_heads / num_kv_heads heads of queries."""
    hidden_dim: int = 2048
    """Width inside a feed-forward layer (SwiGLU)."""
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    """Bound of an axis' slowest wavelength, in steps over 2 pi; short clips do well with less."""
    code_levels: tuple[int, ...] = ()
    """The tokenizer's levels: a code's vector is its own plus those of its FSQ digits, so that rare codes
    borrow from their neighbours. Empty: its own alone."""

    def __post_init__(self) -> None:
        _check_positive(self, "vocabulary_size", "context_tokens", "model_dim", "num_layers", "num_heads")
        _check_positive(self, "num_kv_heads", "hidden_dim")
        _check_multiple("model_dim", self.model_dim, self.num_heads, "num_heads")
        _check_multiple("num_heads", self.num_heads, self.num_kv_heads, "num_kv_heads")
        if self.head_dim % 2 or self.head_dim < 6:
            raise ConfigError(
                f"model_dim={self.model_dim} over num_heads={self.num_heads} gives heads of {self.head_dim}; "
                f"the rotary embedding of three axes needs an even width of at least 6"
            )
        if self.code_levels and FIRST_CODE + math.prod(self.code_levels) > self.vocabulary_size:
            raise ConfigError(
                f"code_levels={self.code_levels} make {math.prod(self.code_levels)} codes, and "
                f"vocabulary_size={self.vocabulary_size} has room for {self.vocabulary_size - FIRST_CODE}; "
                f"give the levels of the tokenizer that the vocabulary was made for"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout={self.dropout} is not a probability; give one from 0 to below 1")
        if self.rope_theta <= 1.0:
            raise ConfigError(f"rope_theta={self.rope_theta} must be above 1")

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")


def _check_multiple(name: str, value: int, divisor: int, of: str) -> None:
    if value < divisor or value % divisor:
        nearest = max(1, round(value / divisor)) * divisor
        raise ConfigError(f"{name}={value} does not divide into {divisor} ({of}); the nearest is {nearest}")
