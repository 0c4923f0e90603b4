import pytest
import torch
from torch import Tensor

from infra.errors import ConfigError
from model.config import TokenizerConfig
from model.metrics import psnr
from model.reconstruction_loss import haar, reconstruction_loss
from model.tokenizer import Tokenizer, resize, to_bytes, to_floats

SMALL = TokenizerConfig(base_channels=16, max_channels=32, frame_size=32)


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Not at its start, where residual blocks are identities that would hide a leak."""
    tokenizer = Tokenizer(SMALL).eval()
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return tokenizer


def test_a_frame_is_encoded_and_decoded_by_itself(tokenizer: Tokenizer) -> None:
    frames = _noise(2, 4, 32, 32)
    changed = frames.clone()
    changed[:, 2] = 255 - changed[:, 2]
    codes, codes_of_changed = tokenizer.encode(frames), tokenizer.encode(changed)  # (2, 4, 4, 4)
    others = [0, 1, 3]
    assert torch.equal(codes[:, others], codes_of_changed[:, others])
    assert not torch.equal(codes[:, 2], codes_of_changed[:, 2])
    assert torch.equal(tokenizer.decode(codes)[:, others], tokenizer.decode(codes_of_changed)[:, others])


def test_codes_are_the_same_in_any_place_of_a_batch(tokenizer: Tokenizer) -> None:
    frames = _noise(6, 2, 32, 32)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(tokenizer.encode(frames)[order], tokenizer.encode(frames[order]))


def test_latents_differ_between_batch_shapes_by_no_more_than_float_noise(tokenizer: Tokenizer) -> None:
    frames = to_floats(_noise(8, 1, 32, 32)).flatten(0, 1)
    with torch.inference_mode():
        together = tokenizer.encoder(frames)
        alone = torch.cat([tokenizer.encoder(frame) for frame in frames.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("downsample", [8, 16])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_shapes_follow_the_config(downsample: int, patch_size: int) -> None:
    config = TokenizerConfig(
        downsample=downsample, patch_size=patch_size, base_channels=8, max_channels=16, frame_size=32
    )
    tokenizer = Tokenizer(config)
    frames = _noise(1, 3, 32, 48)
    codes = tokenizer.encode(frames)
    assert codes.shape == (1, *config.grid(3, 32, 48))
    assert codes.dtype == torch.int64
    assert tokenizer.decode(codes).shape == frames.shape
    reconstruction = tokenizer(to_floats(frames))
    assert reconstruction.frames.shape == (1, 3, 3, 32, 48)
    assert torch.equal(reconstruction.codes, codes)


def test_decoding_codes_gives_what_the_forward_pass_showed(tokenizer: Tokenizer) -> None:
    frames = _noise(1, 2, 32, 32)
    with torch.inference_mode():
        shown = to_bytes(tokenizer(to_floats(frames)).frames)
    assert torch.equal(tokenizer.decode(tokenizer.encode(frames)), shown)


def test_frames_that_do_not_divide_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        Tokenizer(SMALL).encode(_noise(1, 1, 36, 32))


def test_the_same_seed_gives_the_same_tokenizer() -> None:
    first, second = (_seeded_state(7) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bytes_survive_being_floats() -> None:
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_bytes(to_floats(every_value)), every_value)


def test_resizing_averages_what_it_makes_smaller() -> None:
    stripes = torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8)
    stripes[:, 1, :, ::2] = 200
    smaller = resize(stripes, (4, 4))
    assert smaller.shape == (1, 2, 4, 4, 3)
    assert not smaller[:, 0].any()
    assert (smaller[:, 1].float() - 100).abs().max() < 10
    assert torch.equal(resize(stripes, (16, 16)), stripes)


def test_a_haar_step_keeps_the_energy_and_shows_edges_alone_in_the_details() -> None:
    x = torch.randn(2, 3, 8, 8)
    smooth, details = haar(x)
    torch.testing.assert_close(smooth.square().sum() + details.square().sum(), x.square().sum())
    assert haar(torch.ones(1, 1, 4, 4))[1].abs().max() == 0


def test_each_piece_of_the_loss_sees_what_it_is_for() -> None:
    truth = torch.zeros(1, 3, 3, 8, 8)
    brighter, flicker, stripes = truth + 0.5, truth.clone(), truth.clone()
    flicker[:, 1] = 0.5
    stripes[..., ::2] = 0.5
    assert all(piece == 0 for piece in reconstruction_loss(truth, truth))
    assert reconstruction_loss(brighter, truth)[:2] == (0.5, 0.25)
    assert reconstruction_loss(brighter, truth)[2:] == (0, 0)
    assert reconstruction_loss(flicker, truth).difference > 0
    assert reconstruction_loss(stripes, truth).haar > 0
    assert reconstruction_loss(flicker[:, :1], truth[:, :1]).difference == 0


@pytest.mark.slow
def test_eight_clips_are_learned_by_heart() -> None:
    tokenizer = Tokenizer(SMALL)
    frames = _pictures(8)  # (8, 1, 32, 32, 3)
    target = to_floats(frames)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=4e-3)
    before = psnr(tokenizer.decode(tokenizer.encode(frames)).numpy(), frames.numpy())
    for _ in range(120):
        optimizer.zero_grad()
        pieces = reconstruction_loss(tokenizer(target).frames, target)
        (pieces.l1 + pieces.l2).backward()
        optimizer.step()
    after = psnr(tokenizer.decode(tokenizer.encode(frames)).numpy(), frames.numpy())
    assert before < 15 < 22 < after


def _noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


def _pictures(num_clips: int) -> Tensor:
    """Smooth colours: coarse noise, blown up."""
    coarse = torch.rand(num_clips, 3, 4, 4)
    fine = torch.nn.functional.interpolate(coarse, 32, mode="bilinear")
    return (fine * 255).byte().movedim(1, -1).unsqueeze(1)


def _seeded_state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return Tokenizer(SMALL).state_dict()
