"""`reelgpt extract` and `reelgpt tokenize` as a user runs them, on real files, with a real Ray, and
killed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.errors import Stopped, StorageError
from pipelines import records, shards
from pipelines.building.inventory import sources_of
from pipelines.building.stages import decoder_of_this_process, inspect_files
from pipelines.checking.verify import verify
from pipelines.config import ExtractConfig
from pipelines.shards import ShardSet
from pipelines.spans import list_videos
from tests.faults.matrix import SEED
from tests.faults.processes import family, none_left_behind, words_of
from tests.media import make_bad_files, make_damaged_files, make_still, make_video

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SETTINGS = ("--sampling.span-seconds", "1", "--sampling.clip-frames", "4", "--sampling.stride-frames", "4")
OVER_BUDGET = 3


def reelgpt(*args: str, expect: int = 0) -> dict[str, Any]:
    """Runs a command with --json and gives what its last line says."""
    done = subprocess.run(command(*args), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == expect, done.stderr
    assert ".cc:" not in done.stderr, "Ray's core speaks to the terminal"
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "reelgpt", *args, "--json"]


def sorted_rows(out: Path) -> list[dict[str, Any]]:
    shard_set = ShardSet.open(str(out))
    rows = [row for split in shards.SPLITS for table in shard_set.tables(split) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: str(row["clip_id"]))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, suffix in enumerate(("mp4", "webm", "mpg", "avi")):
        source = f"testsrc2=size=160x120:rate=25,hue=h={40 * number}"
        make_video(folder / f"video-{number}.{suffix}", seconds=4.5, source=source)
    return folder


@pytest.fixture(scope="module")
def frames(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "frames"
    reelgpt("extract", str(videos), "--out", str(out), *SETTINGS)
    return out


@pytest.fixture(scope="module")
def tokens(videos: Path, tokenizer_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "tokens"
    reelgpt("tokenize", str(videos), "--tokenizer", tokenizer_bundle, "--out", str(out), *SETTINGS)
    return out


def test_bad_files_end_as_rows_and_good_ones_as_clips(tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "frames"
    expected, damaged = make_bad_files(folder), make_damaged_files(folder)
    make_video(folder / "good.mp4")
    make_still(folder / "still.png")
    began = time.monotonic()
    summary = reelgpt("extract", str(folder), "--out", str(out), expect=OVER_BUDGET)
    assert summary["seconds"] > (time.monotonic() - began) / 2, "the start of Ray is left out"
    spans = {row["source"]: row for row in ShardSet.open(str(out)).spans().to_pylist()}
    assert {name: spans[name]["error_class"] for name in expected} == expected
    assert {name: spans[name]["error_class"] for name in damaged} == damaged
    assert all(spans[name]["error"] for name in [*expected, *damaged])
    assert (spans["good.mp4"]["outcome"], spans["still.png"]["outcome"]) == ("ok", "ok")
    assert summary["totals"]["failed_sources"] == len(expected)
    allowed = reelgpt("extract", str(folder), "--out", str(out), "--max-failed", "0.7")
    assert allowed["fingerprint"] == summary["fingerprint"]
    assert allowed["done_now"] == 0
    page = tmp_path / "report.html"
    reelgpt("report", "--frames", str(out), "--out", str(page))
    for name, error_class in expected.items():
        assert re.search(rf"{re.escape(name)}.*?{error_class}", page.read_text(), re.DOTALL)


@pytest.mark.faults
@pytest.mark.exhaustive
def test_a_source_that_changed_under_way_is_named_alone_and_the_next_command_takes_it_as_it_is(
    videos: Path, frames: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "frames"
    shutil.copytree(videos, folder)
    shutil.copytree(frames, out)
    changed = folder / "changed.mp4"
    shutil.copyfile(videos / "video-0.mp4", changed)
    limits = ExtractConfig().limits
    sources_of(str(out), list_videos([str(folder)]), lambda fresh: [inspect_files(fresh, limits)])
    decoder_of_this_process(limits).close()
    listed = changed.stat()
    changed.write_bytes(bytes(listed.st_size))
    os.utime(changed, ns=(listed.st_atime_ns, listed.st_mtime_ns))
    run = subprocess.run(
        command("extract", str(folder), "--out", str(out), *SETTINGS),
        capture_output=True,
        text=True,
        check=False,
    )
    sentence = (
        f"{changed} changed since it was listed; repeat the command. All is done but for 1 such sources: "
        f"changed.mp4; what goes on changing can be left out with --exclude 'changed.mp4'"
    )
    assert json.loads(run.stdout.splitlines()[-1]) == {"error": sentence, "exit_code": StorageError.exit_code}
    assert run.returncode == StorageError.exit_code
    assert [line for line in run.stderr.splitlines() if line.startswith("error: ")] == [f"error: {sentence}"]
    assert not {"Traceback", "ERROR", "Exception"} & set(run.stderr.replace(":", " ").split())
    again = reelgpt("extract", str(folder), "--out", str(out), *SETTINGS, "--max-failed", "1")
    assert (again["done_now"], again["totals"]["failed"]) == (1, {"not_media": 1})


@pytest.mark.faults
def test_a_killed_run_repeated_does_only_what_is_missing_and_ends_the_same(
    videos: Path, tokens: Path, tokenizer_bundle: str, tmp_path: Path
) -> None:
    out, finely = tmp_path / "out", ("--spans-per-file", "1", "--num-cpus", "1")
    args = ("tokenize", str(videos), "--tokenizer", tokenizer_bundle, "--out", str(out), *SETTINGS, *finely)
    kill_after(random.Random(SEED).randint(2, 9), out, *args)
    done = len(records.done_units(str(out / records.FOLDER)))
    summary = reelgpt(*args)
    assert summary["done_before"] == done >= 2
    assert summary["done_now"] == summary["units"] - done
    assert summary["fingerprint"] == ShardSet.open(str(tokens)).manifest.fingerprint
    assert sorted_rows(out) == sorted_rows(tokens)
    assert ShardSet.open(str(out)).spans() == ShardSet.open(str(tokens)).spans()
    assert verify(str(out)) == []


def kill_after(num_files: int, out: Path, *args: str) -> None:
    """Starts a command, kills it once there are so many span files, and waits for its workers to end."""
    with subprocess.Popen(command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while num_span_files(out) < num_files and run.poll() is None:
            time.sleep(0.01)
        run.kill()
    before = -1
    while before != (before := len(list((out / records.FOLDER).rglob("*")))):
        time.sleep(3)


@pytest.mark.faults
@pytest.mark.exhaustive
def test_a_signal_ends_a_build_in_order_and_the_repeated_one_ends_the_same(
    videos: Path, frames: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ("extract", str(videos), "--out", str(out), *SETTINGS, "--spans-per-file", "1")
    with (
        none_left_behind(),
        subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run,
    ):
        while num_span_files(out) < 3 and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        said, complained = run.communicate(timeout=60)
    assert run.returncode == Stopped.exit_code, complained
    assert "repeat the command" in json.loads(said.splitlines()[-1])["error"]
    assert "Traceback" not in complained
    assert list(out.glob("lease.json*")) == []
    done = len(records.done_units(str(out / records.FOLDER)))
    summary = reelgpt(*args)
    assert summary["done_before"] == done >= 3
    assert summary["fingerprint"] == ShardSet.open(str(frames)).manifest.fingerprint


@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["a closed terminal", "SIGTERM"])
def test_a_signal_while_ray_starts_ends_a_build_in_order_too(way: str, videos: Path, tmp_path: Path) -> None:
    terminal, its_end = os.openpty()
    args = ["setsid", "--ctty", *command("extract", str(videos), "--out", str(tmp_path / "out"), *SETTINGS)]
    with (
        none_left_behind(),
        subprocess.Popen(args, stdin=its_end, stdout=subprocess.PIPE, stderr=its_end, text=True) as run,
    ):
        os.close(its_end)
        while not any("gcs_server" in words_of(one) for one in family(run.pid)):
            assert run.poll() is None
            time.sleep(0.02)
        if way == "SIGTERM":
            run.terminate()
        else:
            os.close(terminal)
        said, _ = run.communicate(timeout=120)
    assert said, f"it ended with {run.returncode} and without a word"
    assert json.loads(said.splitlines()[-1])["error"].startswith("stopped by a signal; every row")
    assert run.returncode == Stopped.exit_code


def num_span_files(out: Path) -> int:
    return len(list((out / records.FOLDER).rglob("*.parquet")))


@pytest.mark.faults
@pytest.mark.exhaustive
def test_a_video_that_went_away_between_two_tries_is_in_nothing_that_is_sealed(
    videos: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(videos, folder)
    args = ("extract", str(folder), "--out", str(out), *SETTINGS)
    kill_after(4, out, *args, "--spans-per-file", "1", "--num-cpus", "1")
    (folder / "video-0.mp4").unlink()
    reelgpt(*args)
    reelgpt("extract", str(folder), "--out", str(tmp_path / "fresh"), *SETTINGS)
    assert sorted_rows(out) == sorted_rows(tmp_path / "fresh")
    assert (
        ShardSet.open(str(out)).manifest.fingerprint
        == ShardSet.open(str(tmp_path / "fresh")).manifest.fingerprint
    )


def test_codes_are_the_same_from_videos_and_from_their_frames(
    frames: Path, tokens: Path, tokenizer_bundle: str, tmp_path: Path
) -> None:
    args = ("tokenize", str(frames), "--tokenizer", tokenizer_bundle, "--out", str(tmp_path / "tokens"))
    from_frames, from_videos = reelgpt(*args), ShardSet.open(str(tokens)).manifest
    assert from_frames["fingerprint"] == from_videos.fingerprint
    assert from_frames["totals"]["codes"] > 0
    assert sorted_rows(tmp_path / "tokens") == sorted_rows(tokens)
    manifest = ShardSet.open(str(tmp_path / "tokens")).manifest
    assert manifest.parents == (ShardSet.open(str(frames)).manifest.fingerprint,)
    again = reelgpt(*args)
    assert (again["done_now"], again["fingerprint"]) == (0, from_frames["fingerprint"])


def test_a_clip_is_explained_down_to_its_time_in_its_source(frames: Path, tmp_path: Path) -> None:
    clips = reelgpt("explain", str(frames))["clips"]
    picture = tmp_path / "clip.png"
    facts = reelgpt("explain", str(frames), "--clip", clips[0]["clip_id"], "--picture", str(picture))
    assert facts["source"] == clips[0]["source"]
    assert facts["end_seconds"] == pytest.approx(facts["start_seconds"] + 4 / 8)
    assert Path(facts["uri"]).is_file()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_verify_says_which_file_is_damaged(frames: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(frames), str(copy)], check=True)
    assert reelgpt("verify", str(copy))["whole"]
    victim = next((copy / "shards").glob("train-*"))
    victim.write_bytes(victim.read_bytes()[:-5])
    report = reelgpt("verify", str(copy), expect=1)
    assert victim.name in report["problems"][0]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("extract", "{empty}", "--out", "{new}"), "no videos in"),
        (("extract", "{videos}", "--out", "{videos}"), "holds something else already"),
        (
            ("extract", "{videos}", "--out", "{frames}", *SETTINGS, "--sampling.fps", "9"),
            "was made with sampling.fps=8.0, not 9.0: its 20 units would be done again",
        ),
        (
            ("extract", "{videos}", "--out", "{new}", "--validation", "nobody.mp4"),
            "no source is named 'nobody.mp4'",
        ),
        (("extract", "{videos}", "--out", "{new}", "--sampling.fps", "0"), "fps=0 is not a sampling rate"),
        (("extract", "{videos}", "--out", "{new}", "--max-failed", "7"), "max_failed=7 is not a share"),
        (
            ("tokenize", "{frames}", "--out", "{new}", "--tokenizer", "{frames}", "--validation", "x"),
            "has no effect",
        ),
        (("verify", "{empty}"), "is no shard set, checkpoint or bundle"),
        (("explain", "{frames}", "--clip", "nobody"), "has no clip 'nobody'"),
    ],
)
def test_a_refusal_is_one_sentence_with_exit_code_2_and_changes_nothing(
    videos: Path, frames: Path, tmp_path: Path, args: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"videos": videos, "frames": frames, "empty": tmp_path / "empty", "new": tmp_path / "new"}
    filled = [arg.format(**places) for arg in args]
    done = subprocess.run(
        [sys.executable, "-m", "reelgpt", *filled], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_command_with_nothing_to_do_starts_no_ray(videos: Path, frames: Path) -> None:
    args = ["extract", str(videos), "--out", str(frames), *SETTINGS, "--json"]
    program = "import sys; from reelgpt.main import main; main(sys.argv[1:]); sys.exit('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["done_now"], summary["done_before"], summary["pace"]) == (0, 20, None)


@pytest.mark.faults
@pytest.mark.exhaustive
def test_where_every_file_has_failed_the_rows_say_why_and_there_is_no_clip(tmp_path: Path) -> None:
    make_bad_files(tmp_path / "videos")
    reelgpt("extract", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), expect=OVER_BUDGET)
    table: pa.Table = ShardSet.open(str(tmp_path / "out")).spans()
    assert table.num_rows == 4
    assert all(table.column("error").to_pylist())
    assert ShardSet.open(str(tmp_path / "out")).num_clips("train") == 0
