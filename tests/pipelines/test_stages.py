"""What one worker makes of its units: the same rows whoever does it, and a row for everything."""

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.errors import ClusterError
from pipelines import records
from pipelines.building import stages
from pipelines.building.stages import DecodeSpans, extract_spans, inspect_files
from pipelines.config import DecodeLimits, ExtractConfig, SamplingConfig
from pipelines.decoding import decoding_process
from pipelines.decoding.decode import Decoder
from pipelines.spans import list_videos, span_table
from tests.media import make_bad_files, make_damaged_files, make_still, make_video

pytestmark = pytest.mark.slow

CONFIG = ExtractConfig(sampling=SamplingConfig(size=32, clip_frames=4, stride_frames=4))


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    yield
    stages.decoder_of_this_process(CONFIG.limits).close()


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Source name to the record of its only span."""
    files = pa.Table.from_pylist([asdict(file) for file in list_videos([str(folder)])])
    spans = span_table(inspect_files(files, CONFIG.limits), CONFIG.sampling.span_seconds)
    return {row["source"]: row for row in DecodeSpans(CONFIG)(spans)}


def test_every_file_has_one_row_with_clips_or_the_class_of_its_error(tmp_path: Path) -> None:
    expected = make_bad_files(tmp_path)
    make_video(tmp_path / "good.mp4")
    rows = records_of(tmp_path)
    assert rows.keys() == {*expected, "good.mp4"}
    for name, error_class in expected.items():
        assert (rows[name]["outcome"], rows[name]["error_class"]) == ("failed", error_class)
        assert rows[name]["error"]
        assert rows[name]["clips"] == []
    good = rows["good.mp4"]
    assert (good["outcome"], good["error_class"], good["num_clips"]) == ("ok", None, 6)


def test_what_can_be_decoded_of_a_damaged_video_is_kept_and_the_damage_named(tmp_path: Path) -> None:
    expected = make_damaged_files(tmp_path)
    rows = records_of(tmp_path)
    for name, error_class in expected.items():
        assert (rows[name]["outcome"], rows[name]["error_class"]) == ("ok", error_class)
        assert 3 <= rows[name]["num_clips"] <= 12
        assert rows[name]["error"]


def test_a_file_that_is_gone_before_it_is_looked_into_is_left_and_the_others_are_sources(
    tmp_path: Path,
) -> None:
    for name in ("gone", "staying"):
        make_still(tmp_path / f"{name}.png")
    files = pa.Table.from_pylist([asdict(file) for file in list_videos([str(tmp_path)])])
    (tmp_path / "gone.png").unlink()
    gone, staying = inspect_files(files, CONFIG.limits).to_pylist()
    assert (gone["name"], gone["source_id"]) == ("gone.png", None)
    assert f"there is nothing at {tmp_path}/gone.png; it was there a moment ago" in gone["left"]
    assert (staying["name"], staying["left"]) == ("staying.png", None)
    assert staying["source_id"]


def test_a_source_that_changed_is_left_without_a_row_and_the_others_are_done(tmp_path: Path) -> None:
    for name in ("changing", "going", "staying"):
        make_video(tmp_path / f"{name}.mp4")
    files = pa.Table.from_pylist([asdict(file) for file in list_videos([str(tmp_path)])])
    spans = span_table(inspect_files(files, CONFIG.limits), CONFIG.sampling.span_seconds)
    with open(tmp_path / "changing.mp4", "ab") as file:
        file.write(b"more")
    (tmp_path / "going.mp4").unlink()
    (reported,) = extract_spans(spans, CONFIG, str(tmp_path / "out"))
    assert reported.column("outcome").to_pylist() == ["left", "left", "ok"]
    assert "changed since it was listed" in reported.column("error")[0].as_py()
    assert "there is nothing at" in reported.column("error")[1].as_py()
    (written,) = records.tables(str(tmp_path / "out"))
    assert written.column("source").to_pylist() == ["staying.mp4"]


def test_a_source_that_changes_while_it_is_decoded_is_left_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = make_still(tmp_path / "changing.png")
    files = pa.Table.from_pylist([asdict(file) for file in list_videos([str(tmp_path)])])
    spans = span_table(inspect_files(files, CONFIG.limits), CONFIG.sampling.span_seconds)

    def decode_slowly(*args: Any, decode=Decoder.decode, **options: Any) -> Any:  # type: ignore[no-untyped-def]
        decoded = decode(*args, **options)
        still.write_bytes(bytes(still.stat().st_size))
        return decoded

    monkeypatch.setattr(Decoder, "decode", decode_slowly)
    (row,) = DecodeSpans(CONFIG)(spans)
    assert (row["outcome"], row["error"]) == (
        "left",
        f"{still} changed since it was listed; repeat the command",
    )


def test_a_child_that_cannot_start_is_an_error_of_the_machine_and_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(tmp_path / "good.mp4")
    monkeypatch.setattr(decoding_process.sys, "executable", "/bin/false")
    with open(video, "rb") as file, pytest.raises(ClusterError, match="cannot start"):
        Decoder(DecodeLimits()).probe(file)


def test_a_machine_that_kills_every_child_is_at_fault_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(tmp_path / "good.mp4")
    decoder = Decoder(DecodeLimits())
    ready_child = decoder._ready_child

    def killed_child() -> Any:
        child = ready_child()
        os.kill(child.pid, signal.SIGKILL)
        return child

    monkeypatch.setattr(decoder, "_ready_child", killed_child)
    with (
        open(video, "rb") as file,
        pytest.raises(ClusterError, match="something kills the decoding children"),
    ):
        decoder.probe(file)
