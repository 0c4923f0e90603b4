import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import BundleError, UsageError
from model.bundle import save_bundle
from model.gpt import GPT
from model.tokenizer import Tokenizer
from model.vocabulary import Vocabulary
from pipelines.shards import ShardSet
from tests.training.conftest import TINY_TOKENIZER, write_shard_set
from training.configs.objective import GPTShape
from training.evaluate import evaluate_judged, evaluate_tokenizer, mean_colours
from training.judged import open_judged
from training.loading.shelf import Shelf
from training.pictures import film_rows


def judge(model: str, data: str) -> dict[str, Any]:
    return evaluate_judged(open_judged(model, data))


def test_a_tokenizer_is_judged_beside_mean_colours(tokenizer_bundle: str, frame_set: ShardSet) -> None:
    measured = judge(tokenizer_bundle, frame_set.uri)
    assert measured["val_clips"] == 5
    assert measured["val_psnr"] < measured["val_psnr_mean_colour"]  # it has learned nothing yet
    assert 0.0 < measured["codebook_usage"] <= 1.0


def test_codes_are_refused_where_frames_are_needed(tokenizer_bundle: str, token_set: ShardSet) -> None:
    with pytest.raises(UsageError, match="a tokenizer is judged on frames"):
        open_judged(tokenizer_bundle, token_set.uri)


def test_data_that_holds_nothing_out_is_refused(tmp_path: Path, tokenizer_bundle: str) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    data = write_shard_set(str(tmp_path / "frames"), "frames", {"train": [frames]})
    with pytest.raises(UsageError, match="holds out no clip"):
        open_judged(tokenizer_bundle, data.uri)


def test_a_gpt_that_does_not_say_its_task_is_refused(
    tmp_path: Path, tokenizer_bundle: str, token_set: ShardSet
) -> None:
    shape = GPTShape(model_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, hidden_dim=16)
    vocabulary = Vocabulary(num_codes=TINY_TOKENIZER.num_codes)
    gpt = GPT(shape.config(vocabulary_size=vocabulary.size, context_tokens=64, code_levels=()))
    bundle = save_bundle(
        str(tmp_path / "gpt"), gpt, lineage={}, card="A test's.", vocabulary=vocabulary, tasks=["continue"],
        tokenizer_bundle=tokenizer_bundle,
    )  # fmt: skip
    with pytest.raises(BundleError, match=r"has no config\.objective of a GPT"):
        open_judged(bundle.uri, token_set.uri)


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    """Plain pictures are their own mean colour; frames of 8 pixels are below the window of SSIM."""
    torch.manual_seed(0)
    plain = [np.full((2, 8, 8, 3), shade, np.uint8) for shade in (20, 200)]
    data = write_shard_set(str(tmp_path / "frames"), "frames", {"train": plain, "validation": plain})
    held_out = Shelf(data, tuple(data.shards("validation")))
    measured = evaluate_tokenizer(Tokenizer(replace(TINY_TOKENIZER, frame_size=8)), (held_out,))
    assert measured.keys() >= {"val_psnr", "val_clips"}
    assert not measured.keys() & {"val_psnr_mean_colour", "val_ssim"}


def test_a_model_that_is_not_there_is_refused_without_torch(tmp_path: Path) -> None:
    python = [sys.executable, "-X", "importtime", "-m", "reelgpt"]
    command = [*python, "evaluate", "/nonexistent", "--data", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "| torch\n" not in told.stderr


def test_mean_colours_fill_their_squares() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    flat = mean_colours(frames, 8)
    assert flat.shape == frames.shape
    assert np.all(flat[1, 8:, 16:] == frames[1, 8:, 16:].mean(axis=(0, 1)).round())


def test_a_picture_is_a_png_with_a_row_for_each_film() -> None:
    from io import BytesIO

    from PIL import Image

    film = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.open(BytesIO(film_rows([film, film[:1]]))))
    assert picture.shape == (20, 30, 3)
    assert np.array_equal(picture[:8, 10:18], film[1])
    assert np.array_equal(picture[10:18, :8], film[0])
    assert np.all(picture[10:, 10:] == 255)
