"""A span of a damaged file is what its bytes say: the same in any child, and in any order."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.config import DecodeLimits
from pipelines.decoding.decode import Decoder
from tests.faults.corpus import SECONDS, flip_bits, make_whole
from tests.faults.matrix import SEED
from tests.faults.processes import none_left_behind

pytestmark = pytest.mark.faults
NAMES = ("h264.mp4", "mjpeg.avi", "vp8.webm")
SLOWER = (
    "av1.mkv",
    "h264-10bit.mkv",
    "h264-fragmented.mp4",
    "hevc.mp4",
    "moving.gif",
    "mpeg2.mpg",
    "mpeg4.avi",
    "vp9.webm",
)
BITS = (1, 4, 16)
ROUNDS = 4
"""Of a used child, each in another order."""
SPANS = [(float(start), start + 1.0 if start < SECONDS - 1 else None) for start in range(SECONDS)]
LIMITS = DecodeLimits(cpu_seconds=20, memory_mb=2048)
Shown = tuple[str | None, str | None, tuple[int, ...], str]
"""What a row says of a span: its error class, which decoder served, which pictures are repeats, and a hash of
them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def used() -> Iterator[Decoder]:
    with none_left_behind():
        decoder = Decoder(LIMITS)
        yield decoder
        decoder.close()


def shown(decoder: Decoder, path: Path, start: float, end: float | None) -> Shown:
    with open(path, "rb") as file:
        decoded = decoder.decode(file, start_seconds=start, end_seconds=end, fps=8.0, sizes=((64, 64),))
    pictures = hashlib.sha256(decoded.frames.tobytes()).hexdigest()
    return decoded.error_class, decoded.decoder, decoded.indices, pictures


@pytest.mark.parametrize(
    "name", [*NAMES, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in SLOWER)]
)
def test_a_damaged_span_is_the_same_in_a_fresh_child_and_in_a_used_one_and_in_any_order(
    folder: Path, used: Decoder, name: str
) -> None:
    data, rng = make_whole(folder, name).read_bytes(), random.Random(f"{SEED}/{name}")
    for count in BITS:
        path = folder / f"flipped-{count}-{name}"
        path.write_bytes(flip_bits(data, f"{SEED}/{name}/{count}", count=count))
        fresh = Decoder(LIMITS)
        expected = {span: shown(fresh, path, *span) for span in SPANS}
        fresh.close()
        for _ in range(ROUNDS):
            for span in rng.sample(SPANS, len(SPANS)):
                assert shown(used, path, *span) == expected[span], f"{count} bits, span {span}"
