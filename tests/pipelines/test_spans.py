import os
import shutil
from pathlib import Path

import pytest

from infra.errors import UsageError
from pipelines.spans import Source, cut_spans, held_out, identify, list_videos


def identified(folder: Path) -> dict[str, str]:
    ids = {}
    for file in list_videos([str(folder)]):
        with open(file.uri, "rb") as opened:
            ids[file.name] = identify(file, opened, None).source_id
    return ids


def source(name: str, duration_seconds: float | None = 1.0) -> Source:
    return Source(
        source_id=f"id-{name}",
        name=name,
        uri=f"/{name}",
        size=1,
        modified="",
        duration_seconds=duration_seconds,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(b"a" * 5_000_000)
    (folder / "sub" / "a.mp4").write_bytes(b"b" * 10)
    (folder / "notes.txt").write_bytes(b"not taken from a folder")
    return folder


def test_a_copied_folder_with_new_times_has_the_same_ids(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    os.utime(copy / "a.mp4", (1, 1))
    assert identified(folder) == identified(copy)


@pytest.mark.parametrize("place", [0, 2_500_000, 4_999_999])
def test_a_changed_byte_at_the_start_middle_or_end_changes_the_id(folder: Path, place: int) -> None:
    before = identified(folder)
    with open(folder / "a.mp4", "r+b") as file:
        file.seek(place)
        file.write(b"!")
    after = identified(folder)
    assert before["a.mp4"] != after["a.mp4"]
    assert before["sub/a.mp4"] == after["sub/a.mp4"]


def test_a_folder_a_glob_and_a_file_name_each_video_once(folder: Path) -> None:
    named = list_videos([str(folder), f"{folder}/*.mp4", str(folder / "a.mp4")])
    assert sorted(file.name for file in named) == ["a.mp4", "sub/a.mp4"]


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="have one name"):
        list_videos([str(folder / "a.mp4"), str(folder / "sub")])


def test_no_videos_at_all_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no videos in .*; give files, folders"):
        list_videos([str(tmp_path)])


@pytest.mark.parametrize(
    ("duration_seconds", "grid"),
    [(None, [(0, None)]), (59.9, [(0, None)]), (60.0, [(0, None)]), (61.0, [(0, 60), (60, None)])],
)
def test_spans_tile_a_source_and_the_last_is_open(
    duration_seconds: float | None, grid: list[tuple[float, float | None]]
) -> None:
    spans = cut_spans(source("a", duration_seconds), 60.0)
    assert [(span.start_seconds, span.end_seconds) for span in spans] == grid


def test_the_held_out_share_is_rounded_up_and_by_the_lowest_ids() -> None:
    sources = [source(f"{k:02d}") for k in range(21)]
    assert held_out(sources, (), 0.05) == {"id-00", "id-01"}
    assert held_out(reversed(sources), (), 0.05) == {"id-00", "id-01"}
    assert held_out(sources, ("07",), 0.05) == {"id-07"}
    assert held_out(sources[:1], (), 0.05) == frozenset()
