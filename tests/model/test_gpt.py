import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from infra.errors import ConfigError
from model.attention import Attention, Rotary
from model.config import GPTConfig
from model.gpt import GPT, FeedForward, KVCache
from model.sampling import draw_code, sample
from model.tasks import Batch, codes_of, collate, get_task, sequence_length
from model.vocabulary import FIRST_CODE, Vocabulary

GRID = (3, 2, 2)
VOCABULARY = Vocabulary(num_codes=12)
CONFIG = GPTConfig(
    vocabulary_size=VOCABULARY.size,
    context_tokens=32,
    model_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    hidden_dim=48,
    code_levels=(4, 3),
)


@pytest.fixture
def gpt() -> GPT:
    return _lively(CONFIG)


@pytest.fixture
def batch() -> Batch:
    codes = np.random.default_rng(0).integers(0, 12, (2, *GRID))
    return collate([get_task("generate").build(clip, VOCABULARY) for clip in codes])


def test_no_token_sees_a_later_one(gpt: GPT, batch: Batch) -> None:
    changed = batch.tokens.clone()
    changed[:, 9:] = FIRST_CODE
    logits, logits_of_changed = gpt(batch.tokens, batch.coordinates), gpt(changed, batch.coordinates)
    torch.testing.assert_close(logits[:, :9], logits_of_changed[:, :9])
    assert not torch.allclose(logits[:, 9:], logits_of_changed[:, 9:])


def test_every_token_sees_the_first(gpt: GPT, batch: Batch) -> None:
    changed = batch.tokens.clone()
    changed[:, 0] = FIRST_CODE
    difference = gpt(batch.tokens, batch.coordinates) - gpt(changed, batch.coordinates)
    assert (difference.abs().amax(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("pieces", [[15], [1] * 15, [5, 1, 9], [1, 7, 7]])
def test_logits_are_the_same_with_a_cache_however_the_tokens_come(
    num_kv_heads: int, pieces: list[int], batch: Batch
) -> None:
    gpt = _lively(dataclasses.replace(CONFIG, num_kv_heads=num_kv_heads))
    cache = KVCache(gpt, batch_size=2, num_tokens=15)
    split = zip(batch.tokens.split(pieces, dim=1), batch.coordinates.split(pieces, dim=1), strict=True)
    logits = torch.cat([gpt(tokens, coordinates, cache) for tokens, coordinates in split], dim=1)
    torch.testing.assert_close(logits, gpt(batch.tokens, batch.coordinates))
    assert cache.length == 15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_logits_are_nearly_those_of_float32(
    gpt: GPT, dtype: torch.dtype, batch: Batch
) -> None:
    narrow = copy.deepcopy(gpt).to(dtype)
    expected = gpt(batch.tokens, batch.coordinates)
    cache = KVCache(narrow, batch_size=2, num_tokens=15)
    for logits in (narrow(batch.tokens, batch.coordinates), narrow(batch.tokens, batch.coordinates, cache)):
        assert logits.dtype == dtype
        assert (logits - expected).norm() < 2e-2 * expected.norm()


def test_autocast_changes_logits_little(gpt: GPT, batch: Batch) -> None:
    expected = gpt.requires_grad_()(batch.tokens, batch.coordinates)
    with torch.autocast("cpu", torch.bfloat16):
        logits = gpt(batch.tokens, batch.coordinates)
    logits.float().square().sum().backward()
    assert (logits - expected).norm() < 2e-2 * expected.norm()
    assert all(torch.isfinite(parameter.grad).all() for parameter in gpt.parameters())


def test_only_the_distance_of_coordinates_matters(gpt: GPT, batch: Batch) -> None:
    logits = gpt(batch.tokens, batch.coordinates)
    shifted = gpt(batch.tokens, batch.coordinates + torch.tensor([5, 2, 3], dtype=torch.int32))
    torch.testing.assert_close(logits, shifted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_of_the_coordinates_matters(gpt: GPT, batch: Batch, axis: int) -> None:
    stretched = batch.coordinates.clone()
    stretched[..., axis] *= 3
    difference = gpt(batch.tokens, batch.coordinates) - gpt(batch.tokens, stretched)
    assert difference.abs().max() > 1e-3


def test_turning_by_coordinates_keeps_lengths() -> None:
    x = torch.randn(2, 3, 7, 10)
    rotary = Rotary(torch.randint(-3, 20, (2, 7, 3)), head_dim=10, theta=100.0)
    torch.testing.assert_close(rotary.turn(x).norm(dim=-1), x.norm(dim=-1))


def test_it_starts_with_nearly_equal_chances_for_every_token(batch: Batch) -> None:
    gpt = GPT(CONFIG)
    loss = _loss(gpt, batch)
    assert abs(loss.item() - np.log(VOCABULARY.size)) < 0.2
    projections = [module.out for module in gpt.modules() if isinstance(module, Attention | FeedForward)]
    assert len(projections) == 2 * CONFIG.num_layers
    assert not any(projection.weight.any() for projection in projections)


def test_codes_of_one_digit_share_a_part_of_their_vectors(gpt: GPT) -> None:
    rows = gpt.embedding.rows
    shared = (rows() - rows.own)[FIRST_CODE:]  # (12, D); code = first digit + 4 x second
    torch.testing.assert_close(shared[1] - shared[0], shared[5] - shared[4])
    assert not (rows() - rows.own)[:FIRST_CODE].any()


def test_a_sequence_beyond_the_context_is_refused(gpt: GPT) -> None:
    tokens = torch.zeros(1, 33, dtype=torch.long)
    with pytest.raises(ConfigError, match="context_tokens=32"):
        gpt(tokens, torch.zeros(1, 33, 3, dtype=torch.int32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_with_the_cache_is_sampling_without(gpt: GPT, temperature: float) -> None:
    given = np.random.default_rng(1).integers(0, 12, (1, 2, 2))
    prefix = get_task("continue").prefix(given, GRID, VOCABULARY)
    cached = sample(gpt, VOCABULARY, prefix, GRID, temperature=temperature, top_k=6, seed=3)

    generator = torch.Generator().manual_seed(3)
    tokens = torch.from_numpy(prefix.tokens.copy())[None]
    coordinates = torch.from_numpy(prefix.coordinates)[None]
    for i in np.flatnonzero(prefix.is_target):
        logits = gpt(tokens[:, :i], coordinates[:, :i])[0, -1]
        tokens[0, i] = draw_code(logits, VOCABULARY, generator, temperature=temperature, top_k=6)
    uncached = codes_of(dataclasses.replace(prefix, tokens=tokens[0].numpy()), GRID)
    np.testing.assert_array_equal(cached, uncached)
    np.testing.assert_array_equal(cached[:1], given)


def test_a_seed_means_one_clip_and_another_seed_another(gpt: GPT) -> None:
    prefix = get_task("generate").prefix(np.zeros((0, 2, 2), dtype=int), GRID, VOCABULARY)
    first, again, other = (sample(gpt, VOCABULARY, prefix, GRID, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_only_codes_are_drawn_and_of_those_only_the_likeliest() -> None:
    logits = torch.zeros(VOCABULARY.size)
    logits[:FIRST_CODE] = 50.0
    logits[FIRST_CODE + 3], logits[FIRST_CODE + 7] = 2.0, 3.0
    generator = torch.Generator().manual_seed(0)
    assert draw_code(logits, VOCABULARY, generator, temperature=0.0) == FIRST_CODE + 7
    drawn = {draw_code(logits, VOCABULARY, generator, top_k=2) for _ in range(50)}
    assert drawn == {FIRST_CODE + 3, FIRST_CODE + 7}


def test_draws_that_mean_nothing_are_refused(gpt: GPT) -> None:
    prefix = get_task("generate").prefix(np.zeros((0, 2, 2), dtype=int), GRID, VOCABULARY)
    with pytest.raises(ConfigError, match="temperature=-1"):
        sample(gpt, VOCABULARY, prefix, GRID, temperature=-1.0)
    with pytest.raises(ConfigError, match="top_k=0"):
        sample(gpt, VOCABULARY, prefix, GRID, top_k=0)


@pytest.mark.slow
@pytest.mark.parametrize("code_levels", [(), (4, 3)])
def test_eight_clips_are_learned_by_heart_and_continued(code_levels: tuple[int, ...]) -> None:
    config = dataclasses.replace(CONFIG, context_tokens=sequence_length(GRID), code_levels=code_levels)
    gpt, task = GPT(config), get_task("continue")
    clips = np.random.default_rng(0).integers(0, 12, (8, *GRID))
    batch = collate([task.build(clip, VOCABULARY) for clip in clips])
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(120):
        optimizer.zero_grad()
        loss = _loss(gpt, batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    continued = sample(gpt, VOCABULARY, task.prefix(clips[5, :1], GRID, VOCABULARY), GRID, temperature=0.0)
    np.testing.assert_array_equal(continued, clips[5])


def _lively(config: GPTConfig) -> GPT:
    """Not at its start, where zero projections would hide a leak."""
    gpt = GPT(config).eval()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return gpt.requires_grad_(False)


def _loss(gpt: GPT, batch: Batch) -> Tensor:
    logits = gpt(batch.tokens[:, :-1], batch.coordinates[:, :-1])
    is_target = batch.is_target[:, 1:]
    return F.cross_entropy(logits[is_target], batch.tokens[:, 1:][is_target])
