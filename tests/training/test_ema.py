from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from infra.errors import CheckpointError
from training.engine.ema import Ema, file_name
from training.engine.owned_weights import Part, owned_parts, whole


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False))


def cut(module: nn.Module, num_ranks: int) -> list[list[Part]]:
    """As ZeRO-3 cuts: every parameter into a piece a rank, the last ones shorter or empty."""
    ranks: list[list[Part]] = [[] for _ in range(num_ranks)]
    for name, parameter in module.named_parameters():
        flat = parameter.detach().flatten()
        size = -(-len(flat) // num_ranks)
        for rank in range(num_ranks):
            if len(piece := flat[rank * size : (rank + 1) * size]):
                ranks[rank].append(Part(name, rank * size, piece))
    return ranks


def save(averages: list[Ema], folder: Path) -> None:
    for rank, average in enumerate(averages):
        save_file(average.tensors(), folder / file_name(rank))


def test_an_average_keeps_its_share_of_itself_at_each_step() -> None:
    weights = torch.zeros(3)
    average = Ema([Part("w", 0, weights)], decay=0.9)
    for step in range(1, 4):
        weights.fill_(step)
        average.update([Part("w", 0, weights)])
    expected = 0.0
    for step in range(1, 4):
        expected = 0.9 * expected + 0.1 * step
    torch.testing.assert_close(average.parts[0].values, torch.full((3,), expected))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 4), (3, 2), (4, 3)])
def test_it_is_taken_up_to_the_last_bit_by_any_number_of_ranks(
    before: int, after: int, tmp_path: Path
) -> None:
    module = model()
    save([Ema(parts, 0.9) for parts in cut(module, before)], tmp_path)
    expected = cut(module, after)
    for rank in range(after):
        average = Ema([Part(p.name, p.start, torch.zeros_like(p.values)) for p in expected[rank]], 0.9)
        average.load(str(tmp_path), rank)
        for mine, part in zip(average.parts, expected[rank], strict=True):
            assert torch.equal(mine.values, part.values)


def test_in_the_same_layout_a_rank_reads_its_own_file_alone(tmp_path: Path) -> None:
    parts = cut(model(), 2)
    save([Ema(own, 0.9) for own in parts], tmp_path)
    (tmp_path / file_name(1)).write_bytes(b"damaged")
    Ema(parts[0], 0.9).load(str(tmp_path), 0)


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"begun without --optimizer\.ema-decay"):
        Ema(cut(model(), 1)[0], 0.9).load(str(tmp_path), 0)


def test_without_zero_the_ranks_share_the_parameters_out() -> None:
    module = model()
    owned = [owned_parts(module, stage=0, rank=rank, world_size=3) for rank in range(3)]
    names = [part.name for parts in owned for part in parts]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_a_parameter_is_whole_again_even_in_the_sign_of_its_zeros() -> None:
    values = torch.tensor([[-0.0, 1.5], [2.0, -0.0]])
    parts = [Part("w", 2, values.flatten()[2:]), Part("w", 0, values.flatten()[:2])]
    back = whole(values.shape, parts, device=torch.device("cpu"), world_size=1)
    assert torch.equal(back.view(torch.int32), values.view(torch.int32))
