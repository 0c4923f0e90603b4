"""The average of the weights over the steps: each rank keeps that of the part it owns, in fp32.

In a checkpoint it lies in safetensors of its own, a file a rank, keyed by parameter and place, so that any
number of ranks at any ZeRO stage can take it up again.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from infra.errors import CheckpointError
from training.engine.owned_weights import Part


class Ema:
    def __init__(self, parts: Sequence[Part], decay: float) -> None:
        """Begins as the weights of the moment."""
        self._decay = decay
        self.parts = [Part(part.name, part.start, part.values.clone()) for part in parts]

    @torch.no_grad()
    def update(self, parts: Sequence[Part]) -> None:
        """Moves towards the weights in `parts`, which are those that it was made of, one step later."""
        averages = [part.values for part in self.parts]
        torch._foreach_lerp_(averages, [part.values for part in parts], 1.0 - self._decay)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {f"{part.name}:{part.start}": part.values for part in self.parts}

    def load(self, folder: str, rank: int) -> None:
        """Takes up the average saved in a checkpoint's folder, by however many ranks."""
        paths = _by_likelihood(folder, rank)
        pieces: list[_Piece] = []
        for path in paths:
            pieces += _pieces(path)
            if all(_covered(part, pieces) for part in self.parts):
                break
        for part in self.parts:
            if not _covered(part, pieces):
                raise CheckpointError(
                    f"{folder} holds no average of {part.name}: the run was begun without "
                    f"--optimizer.ema-decay; go on without it"
                )
            _fill(part, pieces)


def file_name(rank: int) -> str:
    return f"ema-{rank:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class _Piece:
    name: str
    start: int
    length: int
    path: str
    key: str

    def overlap(self, part: Part) -> range:
        """Elements of the flattened parameter that are in both."""
        if self.name != part.name:
            return range(0)
        ends = self.start + self.length, part.start + len(part.values)
        return range(max(self.start, part.start), min(ends))


def _by_likelihood(folder: str, rank: int) -> list[str]:
    """The rank's own file first: in the same layout it is the only one that is read."""
    own = os.path.join(folder, file_name(rank))
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "ema-*.safetensors")))
    return sorted(found, key=lambda path: path != own)


def _pieces(path: str) -> Iterator[_Piece]:
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - no dictionary
            name, _, start = key.rpartition(":")
            yield _Piece(name, int(start), file.get_slice(key).get_shape()[0], path, key)


def _covered(part: Part, pieces: Sequence[_Piece]) -> bool:
    return sum(len(piece.overlap(part)) for piece in pieces) == len(part.values)


def _fill(part: Part, pieces: Sequence[_Piece]) -> None:
    for piece in pieces:
        overlap = piece.overlap(part)
        if overlap:
            begin, end = overlap.start, overlap.stop
            with _opened(piece.path) as file:
                saved: Tensor = file.get_slice(piece.key)[begin - piece.start : end - piece.start]
            part.values[begin - part.start : end - part.start] = saved.to(part.values.device)


def _opened(path: str) -> Any:
    return safe_open(path, framework="pt")
