import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import UsageError
from pipelines.config import SplitConfig
from pipelines.decoding.source_cache import UnreadableError, opened_locally
from pipelines.spans import (
    SOURCE_SCHEMA,
    Source,
    find_videos,
    held_out,
    identify,
    list_videos,
    row,
    span_table,
)

NOBODY = 65534


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


def table(sources: Iterable[Source]) -> pa.Table:
    return pa.Table.from_pylist([row(one) for one in sources], SOURCE_SCHEMA)


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


def test_files_of_a_folder_that_are_passed_over_for_their_suffix_are_named(folder: Path) -> None:
    assert find_videos([str(folder), f"{folder}/"]).passed_over == [str(folder / "notes.txt")]
    assert find_videos([str(folder), str(folder / "notes.txt")]).passed_over == []
    assert find_videos([f"{folder}/*.mp4"]).passed_over == []


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="have one name"):
        list_videos([str(folder / "a.mp4"), str(folder / "sub")])


def test_no_videos_at_all_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no videos in .*; give files, folders"):
        list_videos([str(tmp_path)])


def test_excluded_videos_are_not_listed_and_may_have_the_name_of_another(folder: Path) -> None:
    given, one = [str(folder / "a.mp4"), str(folder / "sub")], str(folder / "sub" / "a.mp4")
    assert [file.uri for file in find_videos(given, (one,)).files] == [str(folder / "a.mp4")]
    assert [file.name for file in find_videos([str(folder)], ("a.mp4",)).files] == ["sub/a.mp4"]
    with pytest.raises(UsageError, match=r"no video is named 'b.mp4' to exclude; there are a.mp4, sub/a.mp4"):
        find_videos([str(folder)], ("a.mp4", "b.mp4"))
    with pytest.raises(UsageError, match=r"no video remains without a.mp4; exclude fewer"):
        find_videos(given, ("a.mp4",))


def test_a_name_with_nothing_behind_it_is_refused_beside_others(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"there is nothing at .*typo.mp4; correct the name"):
        list_videos([str(folder), str(folder / "typo.mp4")])


@pytest.mark.parametrize("named", [".", "*", "**", "*.mp4", "one by one"])
def test_links_and_what_is_no_regular_file_are_listed_however_they_are_named(
    tmp_path: Path, named: str
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (tmp_path / "there").write_bytes(b"video")
    (folder / "linked.mp4").symlink_to(tmp_path / "there")
    (folder / "dangling.mp4").symlink_to("nowhere")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(folder / "pipe.mp4")
    given = sorted(map(str, folder.iterdir())) if named == "one by one" else [f"{folder}/{named}"]
    sizes = {"dangling.mp4": 0, "linked.mp4": 5, "loop.mp4": 0, "pipe.mp4": 0}
    assert {file.name: file.size for file in list_videos(given)} == sizes


def test_a_folder_that_is_reached_twice_is_listed_once_and_none_above_is(folder: Path) -> None:
    other = folder.parent / "other"
    (other / "deep").mkdir(parents=True)
    (other / "deep" / "o.mp4").write_bytes(b"o")
    (folder / "sub" / "back").symlink_to("..")
    (folder / "up").symlink_to("../..")
    (folder / "again").symlink_to("sub")
    (folder / "z").symlink_to(other)
    (folder / "b").symlink_to(other)
    names = ["a.mp4", "b/deep/o.mp4", "sub/a.mp4"]
    assert [file.name for file in list_videos([str(folder)])] == names
    assert [file.name for file in list_videos([f"{folder}/**/*.mp4"])] == names


def test_a_file_whose_name_is_not_utf_8_is_listed_with_its_bytes_escaped(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/caf\xe9 1.mp4", "wb") as file:
        file.write(b"video")
    (found,) = list_videos([f"{folder}/caf*"])
    assert (found.uri, found.name) == (f"file://{folder}/caf%E9%201.mp4", "caf\\xe9 1.mp4")
    assert found in list_videos([str(folder)])
    assert [found] == list_videos([found.uri])
    with opened_locally(found.uri) as opened:
        assert opened.read() == b"video"


def test_a_name_given_that_is_not_utf_8_is_refused_with_its_uri(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"caf\\udce9' is not UTF-8; give .* or file:///.*caf%E9$"):
        list_videos([os.fsdecode(os.fsencode(folder) + b"/caf\xe9")])


def test_a_folder_that_may_not_be_read_is_listed_and_the_others_with_it() -> None:
    with unprivileged(), tempfile.TemporaryDirectory() as folder:
        for name in ("open", "locked"):
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "a.mp4").write_bytes(b"video")
        (Path(folder) / "locked").chmod(0)
        try:
            assert [file.name for file in list_videos([folder])] == ["locked/", "open/a.mp4"]
            assert [file.name for file in list_videos([f"{folder}/*/*.mp4"])] == ["locked/", "open/a.mp4"]
            assert [file.name for file in list_videos([f"{folder}/o*/*.mp4"])] == ["open/a.mp4"]
            with pytest.raises(UnreadableError, match="may not be read"), opened_locally(f"{folder}/locked/"):
                pass
        finally:
            (Path(folder) / "locked").chmod(0o700)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read all."""
    before = os.geteuid()
    try:
        os.seteuid(NOBODY if before == 0 else before)
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(
    ("duration_seconds", "grid"),
    [(None, [(0, None)]), (59.9, [(0, None)]), (60.0, [(0, None)]), (61.0, [(0, 60), (60, None)])],
)
def test_spans_tile_a_source_and_the_last_is_open(
    duration_seconds: float | None, grid: list[tuple[float, float | None]]
) -> None:
    spans = span_table(table([source("a", duration_seconds)]), 60.0)
    assert [(span["start_seconds"], span["end_seconds"]) for span in spans.to_pylist()] == grid


def test_the_held_out_share_is_rounded_up_and_by_the_lowest_ids() -> None:
    sources = table(source(f"{k:02d}") for k in range(21))
    assert held_out(sources, SplitConfig()) == {"id-00", "id-01"}
    assert held_out(sources.take(list(reversed(range(21)))), SplitConfig()) == {"id-00", "id-01"}
    assert held_out(sources, SplitConfig(validation=("07",))) == {"id-07"}
    assert held_out(sources.slice(0, 1), SplitConfig()) == frozenset()


def test_appended_sources_leave_earlier_assignments_and_fill_up_the_share() -> None:
    earlier = table(source(f"{k:02d}") for k in range(10, 20))
    split = pa.array(["validation" if k == 5 else "train" for k in range(10)])
    new = [source(f"{k:02d}") for k in range(10)] + [source(f"{k:02d}") for k in range(20, 31)]
    sources = pa.concat_tables([earlier, table(new)])
    held = held_out(sources, SplitConfig(), earlier.append_column("split", split))
    assert held == {"id-15", "id-00"}
    named = held_out(sources, SplitConfig(validation=("03",)), earlier.append_column("split", split))
    assert named == {"id-15", "id-03"}


def test_spans_of_many_sources_are_cut_at_once_and_follow_each_other() -> None:
    spans = span_table(table([source("b", 130.0), source("a", None)]), 60.0)
    assert spans.column("span_id").to_pylist() == ["id-b/00000", "id-b/00001", "id-b/00002", "id-a/00000"]
    assert spans.column("end_seconds").to_pylist() == [60.0, 120.0, None, None]
