import subprocess
import sys

import pytest

from infra import configs
from infra.errors import ConfigError
from model.config import GPTConfig, TokenizerConfig
from model.vocabulary import FIRST_CODE, Vocabulary, task_token


def test_a_clip_maps_to_one_grid_of_codes_a_frame() -> None:
    assert TokenizerConfig(downsample=8).grid(5, 64, 96) == (5, 8, 12)
    assert TokenizerConfig(downsample=16).grid(1, 64, 64) == (1, 4, 4)


def test_frames_are_encoded_with_their_shorter_side_at_the_size_the_tokenizer_was_made_for() -> None:
    config = TokenizerConfig(downsample=8, frame_size=64)
    assert config.encoded_size(128, 128) == (64, 64)
    assert config.encoded_size(96, 160) == (64, 104)
    assert config.encoded_size(160, 96) == (104, 64)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"levels": ()}, "at least 2"),
        ({"levels": (8, 1)}, "at least 2"),
        ({"levels": (256, 257)}, "at most 65536"),
        ({"downsample": 12}, "8 or 16"),
        ({"patch_size": 3}, "1, 2 or 4"),
        ({"frame_size": 60}, "nearest size that does is 64"),
        ({"base_channels": 30}, "nearest is 32"),
        ({"num_blocks": 0}, "at least 1"),
        ({"num_heads": 3}, "nearest is"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(settings: dict[str, object], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        TokenizerConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"model_dim": 100, "num_heads": 8}, "nearest is 96"),
        ({"num_heads": 12, "num_kv_heads": 5}, "nearest is 10"),
        ({"model_dim": 48, "num_heads": 12, "num_kv_heads": 4}, "at least 6"),
        ({"dropout": 1.0}, "from 0 to below 1"),
        ({"rope_theta": 1.0}, "above 1"),
        ({"context_tokens": 0}, "at least 1"),
    ],
)
def test_a_gpt_that_cannot_be_is_refused(settings: dict[str, object], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        GPTConfig(**{"vocabulary_size": 1288, "context_tokens": 64} | settings)  # type: ignore[arg-type]


def test_code_levels_must_fit_the_vocabulary() -> None:
    with pytest.raises(ConfigError, match="1000 codes"):
        GPTConfig(vocabulary_size=FIRST_CODE + 999, context_tokens=64, code_levels=(8, 5, 5, 5))


def test_frames_that_do_not_divide_into_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        TokenizerConfig().grid(1, 63, 64)


def test_a_config_survives_being_stored() -> None:
    for config in (TokenizerConfig(levels=(4, 4)), GPTConfig(vocabulary_size=1288, context_tokens=99)):
        assert configs.from_dict(type(config), configs.to_dict(config)) == config


def test_ids_of_codes_do_not_move_when_actions_or_tasks_come() -> None:
    assert Vocabulary(num_codes=1000).size == FIRST_CODE + 1000
    assert Vocabulary(num_codes=1000, num_actions=7).first_action == FIRST_CODE + 1000
    assert task_token(28) < FIRST_CODE
    with pytest.raises(ConfigError, match="0 to 28"):
        task_token(29)


def test_settings_are_read_without_torch() -> None:
    modules = "model.config, model.vocabulary, model.tasks, model.bundle, model.metrics"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
