"""Codes to sequences, by one grammar: BOS, the task's token, prefix, TARGET, target; loss on the target.

A task says which codes are given and which are to be predicted. It can be added or removed without touching
the model: its index is permanent and its own. No torch is imported before a batch is collated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.errors import ConfigError
from model.vocabulary import BOS, FIRST_CODE, PAD, TARGET, Vocabulary, task_token

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Codes = NDArray[np.integer]
Grid = tuple[int, int, int]
NUM_OPENING = 2
NUM_SPECIAL_TOKENS = NUM_OPENING + 1
"""BOS, the task's token and TARGET: what a sequence holds beside its codes."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence of L tokens. In one from `Task.prefix` the targets are blanks: PAD, to be filled."""

    tokens: NDArray[np.int64]
    """(L,)"""
    coordinates: NDArray[np.int32]
    """(L, 3): frame, row and column of a code. A special stands outside the picture, at row and column -1."""
    is_target: NDArray[np.bool_]
    """(L,): whether a token is to be predicted, from those before it."""


class Batch(NamedTuple):
    tokens: Tensor
    """(B, L) int64"""
    coordinates: Tensor
    """(B, L, 3) int32"""
    is_target: Tensor
    """(B, L) bool"""


class Task(Protocol):
    index: ClassVar[int]

    @property
    def name(self) -> str: ...

    def build(self, codes: Codes, vocabulary: Vocabulary, rng: np.random.Generator | None = None) -> Sequence:
        """The sequence of a clip's codes (t, h, w). Without `rng`, as in evaluation, nothing is chance."""

    def prefix(self, codes: Codes, grid: Grid, vocabulary: Vocabulary) -> Sequence:
        """The sequence of a whole grid (t, h, w) of which the first frames are given; the rest is blank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """A clip from nothing."""

    index: ClassVar[int] = 0

    @property
    def name(self) -> str:
        return "generate"

    def build(self, codes: Codes, vocabulary: Vocabulary, rng: np.random.Generator | None = None) -> Sequence:
        del rng  # there is nothing to draw
        return _sequence(codes, codes.shape, num_given=0, task=self.index, vocabulary=vocabulary)

    def prefix(self, codes: Codes, grid: Grid, vocabulary: Vocabulary) -> Sequence:
        _check_given(self.name, len(codes), range(1))
        return _sequence(codes, grid, num_given=0, task=self.index, vocabulary=vocabulary)


@dataclass(frozen=True, kw_only=True, slots=True)
class Continue:
    """What comes after the first frames of a clip."""

    index: ClassVar[int] = 1
    prefix_frames: int = 1
    """Frames given. With a generator, as in training, each sequence draws its own number, from 1 to this."""

    def __post_init__(self) -> None:
        if self.prefix_frames < 1:
            raise ConfigError(f"prefix_frames={self.prefix_frames} is below 1; `generate` starts from none")

    @property
    def name(self) -> str:
        return "continue"

    def build(self, codes: Codes, vocabulary: Vocabulary, rng: np.random.Generator | None = None) -> Sequence:
        num_given = self.prefix_frames if rng is None else int(rng.integers(1, self.prefix_frames + 1))
        _check_given(self.name, num_given, range(1, len(codes)))
        return _sequence(codes, codes.shape, num_given=num_given, task=self.index, vocabulary=vocabulary)

    def prefix(self, codes: Codes, grid: Grid, vocabulary: Vocabulary) -> Sequence:
        _check_given(self.name, len(codes), range(1, grid[0]))
        return _sequence(codes, grid, num_given=len(codes), task=self.index, vocabulary=vocabulary)


TASKS: dict[str, type[Generate] | type[Continue]] = {"generate": Generate, "continue": Continue}


def get_task(name: str, **settings: int) -> Task:
    """The task of that name. Raises ConfigError for a name or a setting that it does not have."""
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}; the tasks are {', '.join(sorted(TASKS))}")
    known = {field.name for field in dataclasses.fields(TASKS[name])}
    for setting in settings.keys() - known:
        has = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"the task {name} has no setting {setting!r} (it has {has}); leave it at None")
    return TASKS[name](**settings)


def sequence_length(grid: Grid) -> int:
    """Tokens in the sequence of a grid (t, h, w), whatever the task."""
    return NUM_SPECIAL_TOKENS + int(np.prod(grid))


def collate(sequences: Many[Sequence]) -> Batch:
    """A batch as long as its longest sequence; what is short ends in PAD, which is no target."""
    import torch

    longest = max(len(sequence.tokens) for sequence in sequences)
    tokens = np.full((len(sequences), longest), PAD, dtype=np.int64)
    coordinates = np.zeros((len(sequences), longest, 3), dtype=np.int32)
    is_target = np.zeros((len(sequences), longest), dtype=np.bool_)
    for i, sequence in enumerate(sequences):
        length = len(sequence.tokens)
        tokens[i, :length] = sequence.tokens
        coordinates[i, :length] = sequence.coordinates
        is_target[i, :length] = sequence.is_target
    return Batch(torch.from_numpy(tokens), torch.from_numpy(coordinates), torch.from_numpy(is_target))


def with_noise(
    tokens: Tensor, vocabulary: Vocabulary, *, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """Tokens (B, L) of which about `share` of the codes are others, drawn evenly: inputs for training.

    What is to be predicted stays true. It keeps little data from being learned by heart, and readies the
    model for sampling, where what came before is its own and partly wrong.
    """
    import torch

    is_code = (tokens >= FIRST_CODE) & (tokens < vocabulary.first_action)
    is_changed = is_code & (torch.rand(tokens.shape, generator=generator) < share).to(tokens.device)
    other = torch.randint(FIRST_CODE, vocabulary.first_action, tokens.shape, generator=generator)
    return torch.where(is_changed, other.to(tokens.device), tokens)


def codes_of(sequence: Sequence, grid: Grid) -> NDArray[np.int64]:
    """The codes (t, h, w) that stand in a sequence, each where its coordinates say."""
    is_code = sequence.coordinates[:, 1] >= 0
    codes = np.zeros(grid, dtype=np.int64)
    codes[tuple(sequence.coordinates[is_code].T)] = sequence.tokens[is_code] - FIRST_CODE
    return codes


def _sequence(
    codes: Codes, grid: tuple[int, ...], *, num_given: int, task: int, vocabulary: Vocabulary
) -> Sequence:
    """Codes in raster order, specials around the given frames; what `codes` lacks of the grid stays blank."""
    _check_codes(codes, grid, vocabulary)
    num_given_tokens = num_given * grid[1] * grid[2]
    code_tokens = np.full(int(np.prod(grid)), PAD, dtype=np.int64)
    code_tokens[: codes.size] = codes.reshape(-1).astype(np.int64) + FIRST_CODE
    places = np.indices(grid, dtype=np.int32).reshape(3, -1).T  # (t * h * w, 3)

    at_target = NUM_OPENING + num_given_tokens
    given, rest = np.split(code_tokens, [num_given_tokens])
    tokens = np.concatenate([[BOS, task_token(task)], given, [TARGET], rest])
    opening = np.array([[-2, -1, -1], [-1, -1, -1]], dtype=np.int32)
    target = np.array([[num_given, -1, -1]], dtype=np.int32)
    given_places, other_places = np.split(places, [num_given_tokens])
    coordinates = np.concatenate([opening, given_places, target, other_places])
    return Sequence(tokens, coordinates, np.arange(len(tokens)) > at_target)


def _check_codes(codes: Codes, grid: tuple[int, ...], vocabulary: Vocabulary) -> None:
    if len(grid) != 3 or codes.ndim != 3 or codes.shape[1:] != tuple(grid[1:]) or len(codes) > grid[0]:
        raise ConfigError(f"codes of shape {codes.shape} do not fit a grid (t, h, w) of {tuple(grid)}")
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < vocabulary.num_codes:
        raise ConfigError(
            f"codes from {codes.min()} to {codes.max()} do not fit a vocabulary of {vocabulary.num_codes}; "
            f"give codes of the tokenizer that it was made for"
        )


def _check_given(task: str, num_given: int, legal: range) -> None:
    if num_given not in legal:
        allowed = f"{legal.start} to {legal.stop - 1}" if legal else "a longer clip"
        raise ConfigError(f"the task {task} cannot be given {num_given} frames; it takes {allowed}")
