import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from infra.errors import ConfigError
from model.tasks import (
    TASKS,
    Continue,
    Generate,
    Task,
    codes_of,
    collate,
    get_task,
    sequence_length,
    with_noise,
)
from model.vocabulary import BOS, FIRST_CODE, PAD, TARGET, Vocabulary

VOCABULARY = Vocabulary(num_codes=100)
GRID = (4, 2, 3)


@pytest.fixture
def codes() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 100, GRID)


@pytest.mark.parametrize(("task", "num_given"), [(Generate(), 0), (Continue(prefix_frames=3), 3)])
def test_the_loss_covers_exactly_the_target(codes: NDArray[np.int64], task: Task, num_given: int) -> None:
    sequence = task.build(codes, VOCABULARY)
    assert len(sequence.tokens) == sequence_length(GRID) == 3 + codes.size
    at_target = int(np.flatnonzero(sequence.tokens == TARGET)[0])
    assert not sequence.is_target[: at_target + 1].any()
    assert sequence.is_target[at_target + 1 :].all()
    targets = sequence.tokens[sequence.is_target] - FIRST_CODE
    np.testing.assert_array_equal(targets, codes[num_given:].reshape(-1))


@pytest.mark.parametrize("name", TASKS)
def test_a_sequence_gives_its_codes_back(codes: NDArray[np.int64], name: str) -> None:
    sequence = get_task(name).build(codes, VOCABULARY, np.random.default_rng(0))
    np.testing.assert_array_equal(codes_of(sequence, GRID), codes)
    assert sequence.tokens[0] == BOS


def test_no_two_tokens_share_their_coordinates(codes: NDArray[np.int64]) -> None:
    sequence = get_task("continue", prefix_frames=2).build(codes, VOCABULARY)
    assert len(np.unique(sequence.coordinates, axis=0)) == len(sequence.tokens)


def test_a_prefix_is_the_sequence_with_its_targets_blank(codes: NDArray[np.int64]) -> None:
    task = get_task("continue", prefix_frames=2)
    whole, prefix = task.build(codes, VOCABULARY), task.prefix(codes[:2], GRID, VOCABULARY)
    np.testing.assert_array_equal(prefix.tokens, np.where(whole.is_target, PAD, whole.tokens))
    np.testing.assert_array_equal(prefix.coordinates, whole.coordinates)
    np.testing.assert_array_equal(prefix.is_target, whole.is_target)


def test_training_draws_how_much_is_given_and_evaluation_does_not(codes: NDArray[np.int64]) -> None:
    task, rng = get_task("continue", prefix_frames=3), np.random.default_rng(0)
    drawn = {int(task.build(codes, VOCABULARY, rng).is_target.sum()) for _ in range(50)}
    assert drawn == {6, 12, 18}  # 3, 2 or 1 of 4 frames given
    assert {int(task.build(codes, VOCABULARY).is_target.sum()) for _ in range(5)} == {6}


def test_a_batch_pads_what_is_short_and_expects_nothing_there() -> None:
    task = get_task("generate")
    long, short = (task.build(np.zeros((t, 2, 2), dtype=int), VOCABULARY) for t in (3, 1))
    batch = collate([long, short])
    assert batch.tokens.shape == batch.is_target.shape == batch.coordinates.shape[:2] == (2, 15)
    assert (batch.tokens[1, 7:] == PAD).all()
    assert not batch.is_target[1, 7:].any()
    assert batch.is_target.sum() == 12 + 4


def test_noise_changes_its_share_of_the_codes_and_no_special(codes: NDArray[np.int64]) -> None:
    task = get_task("continue", prefix_frames=2)
    tokens = collate([task.build(codes, VOCABULARY)] * 200).tokens
    noisy = with_noise(tokens, VOCABULARY, share=0.25, generator=torch.Generator().manual_seed(0))
    is_code = tokens >= FIRST_CODE
    assert torch.equal(noisy[~is_code], tokens[~is_code])
    assert 0.22 < (noisy != tokens)[is_code].float().mean() < 0.28
    assert FIRST_CODE <= noisy[is_code].min() <= noisy[is_code].max() < VOCABULARY.first_action
    assert torch.equal(with_noise(tokens, VOCABULARY, share=0.0), tokens)


def test_what_a_task_cannot_do_is_refused(codes: NDArray[np.int64]) -> None:
    with pytest.raises(ConfigError, match="continue, generate"):
        get_task("dream")
    with pytest.raises(ConfigError, match="no setting 'prefix_frames'"):
        get_task("generate", prefix_frames=1)
    with pytest.raises(ConfigError, match="below 1"):
        get_task("continue", prefix_frames=0)
    with pytest.raises(ConfigError, match="takes 1 to 3"):
        get_task("continue", prefix_frames=4).build(codes, VOCABULARY)
    with pytest.raises(ConfigError, match="vocabulary of 50"):
        get_task("generate").build(codes, Vocabulary(num_codes=50))
    with pytest.raises(ConfigError, match="do not fit a grid"):
        get_task("continue").prefix(codes[:1, :1], GRID, VOCABULARY)
