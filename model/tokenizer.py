"""Clips to grids of codes and back: a convolutional autoencoder around FSQ.

Every frame is encoded by itself, norms included, so that a frame's codes depend on that frame alone. Frames
may be of any size that divides by `downsample`. What is learned, and from what, is training's matter.

Shapes: B clips, T frames, H x W pixels, h x w codes a frame, C channels, D digits of a code, N = B * T.
"""

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TokenizerConfig
from model.quantizer import FSQ


class Reconstruction(NamedTuple):
    frames: Tensor
    """(B, T, 3, H, W) float, about [-1, 1], not clamped."""
    codes: Tensor
    """(B, T, h, w) int64."""


class Tokenizer(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = FSQ(config.levels)
        self.decoder = Decoder(config)

    def forward(self, frames: Tensor) -> Reconstruction:
        """Frames (B, T, 3, H, W) float in [-1, 1] to their reconstruction."""
        num_clips, num_frames, _, height, width = frames.shape
        self.config.grid(num_frames, height, width)
        values, codes = self._quantize(frames.flatten(0, 1))  # (N, h, w, D), (N, h, w)
        decoded = self.decoder(values)  # (N, 3, H, W)
        clips = (num_clips, num_frames)
        return Reconstruction(decoded.unflatten(0, clips), codes.unflatten(0, clips))

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, 3) uint8 to codes (B, t, h, w) int64.

        One batch shape gives one result: between shapes, sums run in another order and last bits differ.
        """
        num_clips, num_frames, height, width, _ = frames.shape
        self.config.grid(num_frames, height, width)
        _, codes = self._quantize(to_floats(frames).flatten(0, 1))
        return cast(Tensor, codes.unflatten(0, (num_clips, num_frames)))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, t, h, w) to frames (B, T, H, W, 3) uint8."""
        dtype = self.decoder.first.weight.dtype
        decoded = self.decoder(self.quantizer.values(codes.flatten(0, 1)).to(dtype))  # (N, 3, H, W)
        return to_bytes(decoded.unflatten(0, codes.shape[:2]))

    def _quantize(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N, 3, H, W) to quantized values (N, h, w, D) and codes (N, h, w)."""
        latents = self.encoder(frames)  # (N, D, h, w)
        return cast(tuple[Tensor, Tensor], self.quantizer(latents.permute(0, 2, 3, 1)))


def to_floats(frames: Tensor) -> Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32 in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1.0


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames (..., H, W, 3) uint8 to `size` (height, width), (..., h, w, 3) uint8: bilinear, with
    antialiasing."""
    if frames.shape[-3:-1] == size:
        return frames
    flat = frames.movedim(-1, -3).flatten(0, -4).float()  # (N, 3, H, W)
    resized = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
    whole = resized.round().clamp(0, 255).to(torch.uint8)  # (N, 3, h, w)
    return cast(Tensor, whole.movedim(-3, -1).unflatten(0, frames.shape[:-3]))


def to_bytes(frames: Tensor) -> Tensor:
    """(..., 3, H, W) float to (..., H, W, 3) uint8, clamped to [-1, 1] first."""
    scaled = (frames.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return scaled.round().to(torch.uint8).movedim(-3, -1)


class Encoder(nn.Module):
    """(N, 3, H, W) to (N, D, h, w)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.channels
        self.patch_size = config.patch_size
        self.first = _conv3(3 * config.patch_size**2, widths[0])
        stages: list[nn.Module] = []
        for width, coarser in pairwise(widths):
            stages += [*_blocks(width, config.num_blocks), nn.Conv2d(width, coarser, 3, stride=2, padding=1)]
        self.stages = nn.Sequential(*stages)
        lowest = widths[-1]
        self.middle = nn.Sequential(*_blocks(lowest, config.num_blocks), Attention(lowest, config.num_heads))
        self.last = nn.Sequential(_norm(lowest), nn.SiLU(), nn.Conv2d(lowest, len(config.levels), 1))

    def forward(self, frames: Tensor) -> Tensor:
        x = self.first(F.pixel_unshuffle(frames, self.patch_size))  # (N, C, H / patch, W / patch)
        return cast(Tensor, self.last(self.middle(self.stages(x))))


class Decoder(nn.Module):
    """(N, h, w, D) to (N, 3, H, W); the encoder mirrored."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        self.patch_size = config.patch_size
        lowest = widths[0]
        self.first = _conv3(len(config.levels), lowest)
        self.middle = nn.Sequential(Attention(lowest, config.num_heads), *_blocks(lowest, config.num_blocks))
        stages: list[nn.Module] = []
        for width, finer in pairwise(widths):
            stages += [Upsample(width, finer), *_blocks(finer, config.num_blocks)]
        self.stages = nn.Sequential(*stages)
        self.last = nn.Sequential(_norm(widths[-1]), nn.SiLU(), _conv3(widths[-1], 3 * config.patch_size**2))

    def forward(self, values: Tensor) -> Tensor:
        x = self.middle(self.first(values.permute(0, 3, 1, 2)))  # (N, C, h, w)
        return F.pixel_shuffle(self.last(self.stages(x)), self.patch_size)


class Upsample(nn.Module):
    """(N, C, h, w) to (N, C', 2h, 2w), by a convolution whose output channels unfold into pixels."""

    def __init__(self, width: int, finer: int) -> None:
        super().__init__()
        self.conv = _conv3(width, 4 * finer)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = _conv3(width, width), _zeroed(_conv3(width, width))
        self.inner = nn.Sequential(_norm(width), nn.SiLU(), first, _norm(width), nn.SiLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.inner(x))


class Attention(nn.Module):
    """Self-attention among the places of one frame, without positions: any grid will do."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = _norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = _zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.num_heads, -1))  # (N, 3, heads, K, hw)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (N, heads, hw, K)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)  # (N, heads, K, hw)
        return x + cast(Tensor, self.out(y.reshape(x.shape)))


def _conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, width)


def _blocks(width: int, num_blocks: int) -> list[nn.Module]:
    return [ResidualBlock(width) for _ in range(num_blocks)]


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """A block that starts as the identity, so that depth does not hurt the first steps."""
    nn.init.zeros_(conv.weight)
    return conv
