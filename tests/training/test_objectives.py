from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import GPTConfig, TokenizerConfig
from model.vocabulary import Vocabulary
from training.configs.objective import GPTShape, PredictConfig, ReconstructConfig
from training.flops import training_flops_per_token
from training.objectives import Examples, Learner, Predict, Reconstruct, generator, torch_seed

FRAMES = ReconstructConfig(
    frames_per_clip=2,
    model=TokenizerConfig(frame_size=16, base_channels=8, max_channels=8, num_heads=1, patch_size=4),
)
TOKENS = PredictConfig(
    task="continue",
    prefix_frames=1,
    model=GPTShape(model_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, hidden_dim=16),
)
VOCABULARY = Vocabulary(num_codes=16)


@pytest.fixture
def predict() -> Predict:
    torch.manual_seed(0)
    shape: GPTConfig = TOKENS.model.config(vocabulary_size=VOCABULARY.size, context_tokens=64, code_levels=())
    return Predict(TOKENS, shape, VOCABULARY)


def frames(seed: int = 0, num_frames: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 24, 32, 3), dtype=np.uint8)


def codes(seed: int, num_frames: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (num_frames, 2, 2)).astype(np.uint16)


def test_chance_is_a_function_of_seed_step_and_micro_batch() -> None:
    first = Reconstruct(FRAMES).examples([frames()], generator(0, 3, 1))["frames"]
    again = Reconstruct(FRAMES).examples([frames()], generator(0, 3, 1))["frames"]
    other = Reconstruct(FRAMES).examples([frames()], generator(0, 3, 2))["frames"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({torch_seed(0, 3, 1), torch_seed(0, 3, 2), torch_seed(0, 4, 1), torch_seed(1, 3, 1)}) == 4


def test_crops_have_the_size_of_the_tokenizer() -> None:
    examples = Reconstruct(FRAMES).examples([frames(0), frames(1)], generator(0, 1, 0))["frames"]
    assert examples.shape == (2, 2, 3, 16, 16)
    assert examples.abs().max() <= 1.0


def test_a_still_stands_for_its_neighbours() -> None:
    examples = Reconstruct(FRAMES).examples([frames(num_frames=1)], generator(0, 1, 0))["frames"]
    assert torch.equal(examples[:, 0], examples[:, 1])


def test_without_chance_the_centre_square_is_seen() -> None:
    config = replace(FRAMES, model=replace(FRAMES.model, frame_size=24))
    (seen,) = Reconstruct(config).examples([frames()], None)["frames"]
    centre = torch.from_numpy(frames()[1:3, :, 4:28].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    assert torch.equal(seen, centre)


def test_losses_are_sums_so_that_micro_batches_add_up(predict: Predict) -> None:
    learner = Learner(predict)
    whole = predict.examples([codes(0), codes(1, num_frames=5)], None)
    parts = [predict.examples([codes(0)], None), predict.examples([codes(1, num_frames=5)], None)]
    total, _ = learner(whole)
    torch.testing.assert_close(total, sum(learner(part)[0] for part in parts))
    assert predict.count_targets(whole) == sum(map(predict.count_targets, parts)) == (2 + 4) * 4


def test_a_fresh_gpt_knows_nothing(predict: Predict) -> None:
    examples = predict.examples([codes(0)], None)
    _, sums = Learner(predict)(examples)
    mean = float(sums["loss"]) / predict.count_targets(examples)
    assert mean == pytest.approx(np.log(VOCABULARY.size), abs=0.2)


def test_noise_changes_what_is_seen_and_never_what_is_predicted(predict: Predict) -> None:
    noisy = Predict(replace(TOKENS, noise_share=0.5), predict.build_model().config, VOCABULARY)
    examples = noisy.examples([codes(0)], generator(0, 1, 0))
    plain = predict.examples([codes(0)], generator(0, 1, 0))
    assert not torch.equal(examples["inputs"], plain["inputs"])
    assert torch.equal(examples["targets"], plain["targets"])
    assert torch.equal(noisy.examples([codes(0)], None)["inputs"], plain["inputs"])


def test_padding_counts_for_nothing(predict: Predict) -> None:
    examples = predict.examples([codes(0), codes(1, num_frames=5)], None)
    assert predict.count_units(examples) == (3 + 3 * 4) + (3 + 5 * 4)


def test_the_z_loss_adds_to_what_is_minimised_but_not_to_the_loss(predict: Predict) -> None:
    objective, sums = Learner(predict)(predict.examples([codes(0)], None))
    assert float(objective.detach()) == pytest.approx(
        float(sums["loss"] + TOKENS.z_weight * sums["z"]), rel=1e-6
    )


def test_each_sequence_is_counted_at_its_own_length(predict: Predict) -> None:
    def flops(examples: Examples) -> float:
        return predict.count_units(examples) * predict.flops_per_unit(examples)

    short, long = (predict.examples([codes(0, num_frames=n)] * 2, None) for n in (2, 5))
    for examples in (short, long):
        num_sequences, length = examples["inputs"].shape
        expected = num_sequences * length * training_flops_per_token(predict._gpt_config, length)
        assert flops(examples) == pytest.approx(expected)
    tokens = predict.count_units(long) / predict.count_units(short)
    assert flops(long) > tokens * flops(short)
