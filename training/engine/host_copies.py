"""A checkpoint's state, copied into the host's memory: without a GPU, while the next step computes.

Weights, moments and averages change where the optimizer steps, and nowhere else: until then the copy may take
its time, beside the forward and backward passes.
"""

import copy
import threading
from typing import Any

import torch
from torch import Tensor

from infra.errors import CheckpointError

UNCHANGING = frozenset({bool, int, float, str, type(None), torch.Size})


class HostCopies:
    """Copies in buffers that serve again at the next save: memory that was never touched before costs more
    than the copy itself."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._due: list[tuple[list[Tensor], list[Tensor]]] = []
        """Buffers that are not filled yet, and what with."""
        self._filling = threading.Lock()

    def begin(self, name: str, state: Any) -> Any:
        """`state` with every tensor in a buffer, valid from `finish` to the next copy of that name.

        What lies on a GPU is copied at once: there the copy takes its turn among the step's own work.
        """
        by_place: dict[tuple[Any, ...], Tensor] = {}
        buffers: list[Tensor] = []
        tensors: list[Tensor] = []

        def place(tensor: Tensor) -> Tensor:
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            buffer = by_place.get(key)
            if buffer is None or not tensor.numel():  # empty ones lie at the same address
                by_place[key] = buffer = self._buffer((name, len(buffers)), tensor)
                buffers.append(buffer)
                tensors.append(tensor)
            return buffer

        copied = _replace_tensors(state, place)
        if tensors:
            self._due.append((buffers, tensors))
        if torch.cuda.is_available():
            self.finish()
        return copied

    @torch.no_grad()
    def finish(self) -> None:
        """Fills what is not filled yet: any thread may, the first one does, and others wait for it."""
        with self._filling:
            while self._due:
                buffers, tensors = self._due[0]
                torch._foreach_copy_(buffers, tensors, non_blocking=True)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                del self._due[0]

    def _buffer(self, key: tuple[str, int], tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            self._buffers[key] = buffer = _new_buffer(tensor)
        return buffer


def _new_buffer(tensor: Tensor) -> Tensor:
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    except RuntimeError as error:
        raise CheckpointError(
            f"the host has too little memory for a copy of the state ({error}); repeat the command with more "
            f"of it, or with --checkpoints.no-background"
        ) from None


def _replace_tensors(value: Any, place: Any) -> Any:
    kind = type(value)
    if kind in UNCHANGING:
        return value
    if isinstance(value, Tensor):
        return place(value)
    if isinstance(value, dict):
        replaced = {} if kind is dict else copy.copy(value)
        for name, item in value.items():
            replaced[name] = _replace_tensors(item, place)
        return replaced
    if isinstance(value, list):
        return [_replace_tensors(item, place) for item in value]
    if kind is tuple:
        return tuple(_replace_tensors(item, place) for item in value)
    return copy.deepcopy(value)
