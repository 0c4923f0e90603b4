import math

import numpy as np
import pytest

from model import metrics
from model.metrics import BIGRAM_BACKOFF, CodeBaselines


def test_psnr_is_that_of_the_formula() -> None:
    black = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    assert metrics.psnr(black, black) == math.inf
    assert metrics.psnr(black, black + 255) == pytest.approx(0.0)
    assert metrics.psnr(black, black + 1) == pytest.approx(20 * math.log10(255))


def test_ssim_is_one_for_equals_and_falls_with_noise_more_than_with_brightness() -> None:
    rng = np.random.default_rng(0)
    frame = np.kron(rng.integers(0, 200, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    noisy = (frame + rng.integers(0, 40, frame.shape)).astype(np.uint8)
    assert metrics.ssim(frame, frame) == pytest.approx(1.0)
    assert metrics.ssim(frame, noisy) < metrics.ssim(frame, frame + 20) < 1.0
    assert metrics.ssim(np.stack([frame, frame]), np.stack([frame, noisy])) == pytest.approx(
        (1.0 + metrics.ssim(frame, noisy)) / 2
    )


def test_a_codebook_is_measured_by_what_of_it_is_used() -> None:
    assert metrics.codebook_usage(np.array([[0, 1], [1, 0]]), 8) == 0.25
    assert metrics.codebook_perplexity(np.arange(8)) == pytest.approx(8.0)
    assert metrics.codebook_perplexity(np.array([3, 3, 3])) == pytest.approx(1.0)


def test_bits_per_pixel_of_a_uniform_guess_are_those_of_the_codebook() -> None:
    assert metrics.bits_per_pixel(math.log(1024), num_codes=64, num_pixels=64 * 64) == pytest.approx(10 / 64)


def test_the_unigram_is_add_one() -> None:
    baselines = CodeBaselines([np.array([0, 0, 1]).reshape(3, 1, 1)], num_codes=3)
    loss = baselines.unigram(np.array([0, 1, 2]).reshape(3, 1, 1))
    assert loss.mean == pytest.approx(-(math.log(3 / 6) + math.log(2 / 6) + math.log(1 / 6)) / 3)


def test_the_bigram_backs_off_to_the_unigram() -> None:
    baselines = CodeBaselines([np.array([0, 0, 1]).reshape(3, 1, 1)], num_codes=3)
    k, unigram_of_1 = BIGRAM_BACKOFF, 2 / 6
    seen = baselines.bigram(np.array([0, 1]).reshape(2, 1, 1), first_frame=1)
    assert seen.mean == pytest.approx(-math.log((1 + k * unigram_of_1) / (2 + k)))  # after 0 came 0 and 1
    unseen = baselines.bigram(np.array([2, 1]).reshape(2, 1, 1), first_frame=1)
    assert unseen.mean == pytest.approx(-math.log(unigram_of_1))


@pytest.mark.parametrize("num_codes", [3, 40])
def test_baselines_are_probabilities(num_codes: int) -> None:
    clips = [np.random.default_rng(i).integers(0, num_codes, (4, 2, 2)) for i in range(3)]
    baselines = CodeBaselines(clips, num_codes)
    for given in range(num_codes):
        pairs = [np.array([given, code]).reshape(2, 1, 1) for code in range(num_codes)]
        unigram = [math.exp(-baselines.unigram(pair[1:]).nats) for pair in pairs]
        bigram = [math.exp(-baselines.bigram(pair, first_frame=1).nats) for pair in pairs]
        assert (sum(unigram), sum(bigram)) == pytest.approx((1.0, 1.0))


def test_losses_of_parts_add_up_to_that_of_the_whole() -> None:
    clips = [np.random.default_rng(i).integers(0, 9, (4, 2, 2)) for i in range(3)]
    baselines = CodeBaselines(clips, 9)
    assert baselines.bigram(clips[0]).num_codes == 16
    first = baselines.unigram(clips[0][:1]).nats
    rest = baselines.bigram(clips[0], first_frame=1).nats
    assert baselines.bigram(clips[0]).nats == pytest.approx(first + rest)


def test_where_codes_stay_the_bigram_beats_the_unigram() -> None:
    rng = np.random.default_rng(0)
    *seen, unseen = [np.repeat(rng.integers(0, 30, (1, 4, 4)), 5, axis=0) for _ in range(20)]
    baselines = CodeBaselines(seen, 30)
    assert baselines.bigram(unseen, first_frame=1).mean < baselines.unigram(unseen, first_frame=1).mean / 2
