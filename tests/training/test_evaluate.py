import numpy as np
import pytest

from infra.errors import UsageError
from pipelines.shards import ShardSet
from training.evaluate import evaluate_bundle, mean_colours
from training.pictures import film_rows


def test_a_tokenizer_is_judged_beside_mean_colours(tokenizer_bundle: str, frame_set: ShardSet) -> None:
    measured = evaluate_bundle(tokenizer_bundle, frame_set.uri)
    assert measured["val_clips"] == 5
    assert measured["val_psnr"] < measured["val_psnr_mean_colour"]  # it has learned nothing yet
    assert 0.0 < measured["codebook_usage"] <= 1.0


def test_codes_are_refused_where_frames_are_needed(tokenizer_bundle: str, token_set: ShardSet) -> None:
    with pytest.raises(UsageError, match="a tokenizer is judged on frames"):
        evaluate_bundle(tokenizer_bundle, token_set.uri)


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
