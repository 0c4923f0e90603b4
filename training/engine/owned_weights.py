"""Which part of the fp32 weights a rank owns, under every ZeRO stage, and the whole of one from its parts.

DeepSpeed keeps fp32 weights flat and cut into partitions; this knows where in them a parameter lies. Nothing
here gathers more than one parameter at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one parameter, flat; all ranks' pieces of it together are the parameter."""

    name: str
    start: int
    """Of its first element, in the flattened parameter."""
    values: Tensor
    """(elements,) fp32: a view of what the optimizer steps, so it changes with each step."""


def owned_parts(module: nn.Module, *, stage: int, rank: int, world_size: int) -> list[Part]:
    parts = (
        _part(name, parameter, i, stage, rank, world_size)
        for i, (name, parameter) in enumerate(module.named_parameters())
    )
    return [part for part in parts if part is not None and len(part.values)]


def _part(name: str, parameter: Any, index: int, stage: int, rank: int, world_size: int) -> Part | None:
    if stage == 0:  # all ranks hold all: each answers for every world_size-th
        return Part(name, 0, parameter.detach().flatten()) if index % world_size == rank else None
    if stage == 3:
        partition, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False
        )
        start = rank * parameter.ds_tensor.ds_numel
        padded = max(0, min(partition.numel(), parameter.ds_numel - start))
        return Part(name, start, partition.detach().flatten()[:padded])
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it lies with other ranks
        return None
    return Part(name, mapping.lp_fragment_address.start, mapping.get_hp_fragment().detach().flatten())


def whole(shape: Sequence[int], parts: Sequence[Part], *, device: torch.device, world_size: int) -> Tensor:
    """One parameter (shape) in fp32 on `device`, from all ranks' parts of it. All must call together."""
    flat = torch.zeros(torch.Size(shape).numel(), dtype=torch.float32, device=device)
    for part in parts:
        flat[part.start : part.start + len(part.values)] = part.values.to(device)
    if world_size > 1:
        # every other rank has zeros there; as integers, so that even the sign of a zero comes through
        torch.distributed.all_reduce(flat.view(torch.int32))
    return flat.view(torch.Size(shape))


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Of every parameter; under ZeRO-3 those that they have when they are whole."""
    named: Iterator[tuple[str, Any]] = module.named_parameters()
    return {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in named}


def by_name(parts: Sequence[Part]) -> Mapping[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.name, []).append(part)
    return found
