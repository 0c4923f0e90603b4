"""Videos cut off and with bits flipped: what is whole of them is kept, the rest is told of by its class."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.storage import FileInfo
from pipelines.building.stages import DecodeSpans, decoder_of_this_process, inspect_files
from pipelines.config import DecodeLimits, ExtractConfig, SamplingConfig
from pipelines.decoding.decode import Decoded, Decoder
from pipelines.error_classes import ERROR_CLASSES
from pipelines.spans import span_table
from tests.faults.corpus import FORMATS, INDEX_LAST, SECONDS, cut, flip_bits, make_whole
from tests.faults.faulty_python import children_run, python_without_decord
from tests.faults.matrix import SEED, all_with_a_sample
from tests.faults.processes import none_left_behind
from tests.media import make_bad_files, make_sound_with_cover

pytestmark = pytest.mark.faults
FPS = 8.0
TENTHS = [share / 10 for share in range(1, 10)]
LIMITS = DecodeLimits(cpu_seconds=20, memory_mb=2048)
BITS = (1, 8, 64)
"""Numbers of bits that are flipped in a file."""


@dataclass(frozen=True, slots=True)
class Decoders:
    """The decoders as they serve a file, and PyAV alone."""

    both: Decoder
    pyav: Decoder
    without_decord: Path

    def decode(self, path: Path) -> tuple[Decoded, Decoded]:
        with children_run(self.without_decord):
            by_pyav = decode(self.pyav, path)
        return decode(self.both, path), by_pyav


def decode(decoder: Decoder, path: Path) -> Decoded:
    with open(path, "rb") as file:
        return decoder.decode(file, start_seconds=0.0, end_seconds=None, fps=FPS, sizes=((64, 64),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoders]:
    without_decord = python_without_decord(tmp_path_factory.mktemp("python"))
    both, pyav = Decoder(LIMITS), Decoder(LIMITS)
    with none_left_behind():
        yield Decoders(both, pyav, without_decord)
        both.close()
        pyav.close()


def table_of(files: list[FileInfo]) -> pa.Table:
    return pa.Table.from_pylist([asdict(file) for file in files])


def num_equal(frames: np.ndarray, whole: np.ndarray) -> int:
    """How many frames at the beginning are as they should be."""
    pairs = zip(frames, whole, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if not np.array_equal(a, b)), len(frames))


@pytest.mark.parametrize("name", all_with_a_sample(FORMATS, 4))
def test_a_cut_off_video_gives_what_lies_before_the_cut_as_it_is_in_the_whole_and_says_so(
    folder: Path, decoders: Decoders, name: str
) -> None:
    path = make_whole(folder, name)
    whole, data = decode(decoders.both, path), path.read_bytes()
    assert (whole.error_class, len(whole.frames)) == (None, SECONDS * FPS)
    for share in TENTHS:
        path = folder / f"cut-{name}"
        path.write_bytes(cut(data, share))
        decoded, by_pyav = decoders.decode(path)
        assert decoded.error_class in ("truncated", "corrupt"), f"{share}: {decoded.error}"
        assert (by_pyav.error_class, by_pyav.indices) == (decoded.error_class, decoded.indices)
        np.testing.assert_array_equal(by_pyav.frames, decoded.frames)
        if decoded.error_class == "truncated":
            assert num_equal(decoded.frames, whole.frames) == len(decoded.frames), share
        if share == TENTHS[-1] and name not in INDEX_LAST:
            assert len(decoded.frames) > 0.7 * len(whole.frames)


@pytest.mark.parametrize("name", all_with_a_sample(FORMATS, 4))
def test_flipped_bits_cost_no_picture_that_they_do_not_touch_whichever_decoder_serves(
    folder: Path, decoders: Decoders, name: str
) -> None:
    """What a damaged picture looks like, and whether it is noticed, are matters of the decoder's version."""
    path = make_whole(folder, name)
    whole, data = decode(decoders.both, path), path.read_bytes()
    for number, count in enumerate(BITS * 3):
        path = folder / f"flipped-{name}"
        path.write_bytes(flip_bits(data, f"{SEED}/{name}/{number}", count=count))
        decoded, by_pyav = decoders.decode(path)
        found = {decoded.error_class, by_pyav.error_class}
        assert found <= {None, *ERROR_CLASSES} - {"decoder_crash", "decoder_hang"}, decoded.error
        if decoded.error_class is not None:
            assert by_pyav.error_class == decoded.error_class
            np.testing.assert_array_equal(by_pyav.frames, decoded.frames)
        if by_pyav.error_class == decoded.error_class:
            assert len(by_pyav.frames) == len(decoded.frames), number
        if by_pyav.indices == decoded.indices == whole.indices:
            intact = [(one.frames == whole.frames).all(axis=(1, 2, 3)) for one in (decoded, by_pyav)]
            np.testing.assert_array_equal(*intact)


def test_every_span_of_a_bad_file_has_one_row_of_a_known_class(folder: Path, tmp_path: Path) -> None:
    """From the files to the rows, as the workers of a run do it."""
    rng, bad = random.Random(SEED), tmp_path / "bad"
    expected = make_bad_files(bad) | {"noise.webm": "not_media", "cover.mp3": "no_video"}
    (bad / "noise.webm").write_bytes(rng.randbytes(5000))
    make_sound_with_cover(bad / "cover.mp3")
    for name in rng.sample(sorted(FORMATS), 4):
        data, other = make_whole(folder, name).read_bytes(), rng.choice(sorted(FORMATS))
        (bad / f"cut-{name}").write_bytes(cut(data, rng.choice(TENTHS)))
        (bad / f"flipped-{name}").write_bytes(flip_bits(data, f"{SEED}/{name}", count=rng.choice(BITS)))
        (bad / f"misnamed-{name}{Path(other).suffix}").write_bytes(data)
    config = ExtractConfig(sampling=SamplingConfig(span_seconds=2.0, size=64, clip_frames=4), limits=LIMITS)
    files = [FileInfo(uri=str(p), name=p.name, size=p.stat().st_size, modified="") for p in bad.iterdir()]
    with none_left_behind():
        spans = span_table(inspect_files(table_of(files), LIMITS), 2.0)
        rows = list(DecodeSpans(config)(spans))
        decoder_of_this_process(LIMITS).close()
    assert [row["unit_id"] for row in rows] == spans.column("span_id").to_pylist()
    assert {row["source"] for row in rows} == {file.name for file in files}
    assert {row["error_class"] for row in rows} <= {None, *ERROR_CLASSES}
    assert all(bool(row["error"]) == bool(row["error_class"]) for row in rows)
    assert all(bool(row["num_clips"]) == (row["outcome"] == "ok") for row in rows)
    assert {row["source"]: row["error_class"] for row in rows if row["source"] in expected} == expected
    misnamed = [row for row in rows if row["source"].startswith("misnamed-")]
    assert {(row["outcome"], row["error_class"]) for row in misnamed} == {("ok", None)}
