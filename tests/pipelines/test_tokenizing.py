"""Codes of a clip: the same whoever its neighbours are, in whatever batch, span or call."""

import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import ReelgptError
from pipelines import records
from pipelines.building.outcomes import of_left_span
from pipelines.building.tokenizing import Encoder, TokenizeRecords
from pipelines.spans import Span
from tests.media import make_video


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights large enough that neighbouring codes differ."""
    import torch

    from model.bundle import save_bundle
    from model.config import TokenizerConfig
    from model.tokenizer import Tokenizer

    torch.manual_seed(3)
    tokenizer = Tokenizer(TokenizerConfig(base_channels=16, num_heads=1))
    for weight in tokenizer.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    place = tmp_path_factory.mktemp("bundles") / "tokenizer"
    save_bundle(str(place), tokenizer, lineage={}, card="random")
    return str(place)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Real frames, decoded: (N, 64, 64, 3) uint8."""
    from pipelines.decoding.decode import read_frames

    video = make_video(tmp_path_factory.mktemp("videos") / "a.mp4", seconds=8)
    return read_frames(str(video), size=64, fps=20, num_frames=150)


def row(span: str, clips: list[np.ndarray], *, kept: bool = True) -> dict[str, Any]:
    return {
        "unit_id": span,
        "tokenize_seconds": 0.0,
        "clips": [
            {
                "clip_id": f"{span}/{index}",
                "shape": list(clip.shape),
                "frames": clip.tobytes() if kept else None,
            }
            for index, clip in enumerate(clips)
        ],
    }


def test_codes_depend_on_no_neighbour_nor_on_the_place_in_a_batch(bundle: str, frames: np.ndarray) -> None:
    rng, encoder = random.Random(0), Encoder(bundle, 8)
    clips = [frames[start : start + 5] for start in range(0, 140, 7)]
    alone = [encoder.encode([row("s", [clip])])[0]["clips"][0]["codes"] for clip in clips]
    assert len(set(alone)) == len(alone)
    for _ in range(6):
        order = rng.sample(range(len(clips)), len(clips))
        rows = [row(str(n), [clips[n] for n in order[n : n + 3]]) for n in range(0, len(order), 3)]
        rows.insert(rng.randrange(len(rows)), row("short", [frames[:1], frames[3:4]]))
        done = [
            clip["codes"] for one in encoder.encode(rows) for clip in one["clips"] if clip["grid"][0] == 5
        ]
        assert done == [alone[n] for n in order]


def test_every_row_comes_back_with_its_clips_its_seconds_and_without_frames(
    bundle: str, frames: np.ndarray
) -> None:
    rows = [row("a", [frames[:5]] * 11), row("none", []), row("black", [frames[:5]], kept=False)]
    done = Encoder(bundle, 8).encode(rows)
    assert [one["unit_id"] for one in done] == ["a", "none", "black"]
    assert [len(one["clips"]) for one in done] == [11, 0, 1]
    assert done[0]["clips"][10].keys() == {"clip_id", "codes", "grid"}
    assert "codes" not in done[2]["clips"][0]
    assert done[0]["tokenize_seconds"] > 0 == done[1]["tokenize_seconds"]


def test_frames_of_a_row_go_while_its_clips_still_wait_for_others(bundle: str, frames: np.ndarray) -> None:
    decoded: list[weakref.ref[np.ndarray]] = []

    def read() -> Iterator[dict[str, Any]]:
        for span in "abcd":
            assert all(earlier() is None for earlier in decoded[:-1]), f"kept while {span} is read"
            whole = frames[:15].copy()
            decoded.append(weakref.ref(whole))
            one = row(span, [whole[:5], whole[5:10]])
            for number, clip in enumerate(one["clips"]):
                clip["frames"] = whole[5 * number : 5 * number + 5].data
            del whole
            yield one

    done = Encoder(bundle, 8).encode(read())
    assert len({clip["codes"] for one in done for clip in one["clips"]}) == 2
    assert all(there() is None for there in decoded)


def test_a_storage_that_refuses_a_span_file_raises_and_leaves_no_row(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    stage = TokenizeRecords(tokenizer=bundle, clips_per_batch=8, out=str(tmp_path / "out"))
    span = Span(span_id="", source_id="", source="", uri="", start_seconds=0.0, end_seconds=None)
    record = of_left_span(span, "") | {"outcome": "filtered"}
    done = pa.Table.from_pylist([record], records.record_schema("frames"))
    with pytest.raises(ReelgptError, match="out"):
        stage(done)
    assert (tmp_path / "out").is_file()
