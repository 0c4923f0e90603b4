"""What a build keeps, adds and does again: the bookkeeping, with rows written by hand in place of Ray's."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from infra import storage
from infra.errors import ClusterError, StorageError, UsageError
from pipelines import records
from pipelines.building import outcomes
from pipelines.building.build import build_from_videos
from pipelines.building.completion import RunUnits, Watch
from pipelines.building.inventory import known_sources
from pipelines.building.job import DeriveJob
from pipelines.building.pace import Devices
from pipelines.building.stages import WriteRecords
from pipelines.checking.verify import verify
from pipelines.config import DecodeLimits, FilterConfig, PackConfig, SamplingConfig, SplitConfig
from pipelines.derive import derive
from pipelines.failures import RetryJob, failures_of, retry
from pipelines.shards import ShardSet
from pipelines.spans import SOURCE_SCHEMA, UNREADABLE, Span
from pipelines.sweep import sweep
from reelgpt import shard_summary
from reelgpt.gc import Gc
from tests.rows import TOKENIZER, brightness, build, clips_of, sources, video_job, writing

NOBODY = "127.0.0.1:1"
EARLY = [f"video-{k}.mp4" for k in range(5)]
LATER = [f"video-{k}.mp4" for k in range(5, 12)]


def fingerprint(uri: Path) -> str:
    return ShardSet.open(str(uri)).manifest.fingerprint


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A sealed set of five videos."""
    build(video_job(tmp_path / "set"), sources(EARLY))
    return tmp_path / "set"


def test_more_videos_add_shards_and_leave_old_ones_and_their_split_as_they_were(out: Path) -> None:
    before, clips = ShardSet.open(str(out)).manifest, clips_of(out)
    files = {path: path.read_bytes() for path in (out / "shards").iterdir()}
    seen: list[str] = []
    built = build(video_job(out), sources(EARLY + LATER), writing(FilterConfig(), seen=seen))
    after = built.manifest
    assert len(seen) == built.done_now == 3 * len(LATER)
    assert {path: path.read_bytes() for path in files} == files
    assert set(before.shards) < set(after.shards)
    assert (after.parents, after.generation) == ((before.fingerprint,), 1)
    assert clips.items() <= clips_of(out).items()
    split = {row["name"]: row["split"] for row in ShardSet.open(str(out)).sources().to_pylist()}
    assert sum(side == "validation" for side in split.values()) == 3  # a fifth of twelve, rounded up
    assert verify(str(out)) == []


def test_appending_only_the_new_videos_is_the_same_and_a_rerun_of_either_does_nothing(
    out: Path, tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path / "other")
    build(video_job(out), sources(EARLY + LATER))
    build(video_job(tmp_path / "other"), sources(LATER))
    assert fingerprint(out) == fingerprint(tmp_path / "other")
    for given in (EARLY, LATER, [*LATER, *EARLY]):
        again = build(video_job(out), sources(given), writing(FilterConfig(), seen=[]))
        assert (again.done_now, again.manifest.generation) == (0, 1)
        assert again.sources_kept == len(EARLY + LATER) - len(given)


def test_an_appended_set_holds_what_a_fresh_one_of_the_same_split_holds(out: Path, tmp_path: Path) -> None:
    build(video_job(out), sources(EARLY + LATER))
    held = tuple(
        row["name"] for row in ShardSet.open(str(out)).sources().to_pylist() if row["split"] == "validation"
    )
    fresh = video_job(tmp_path / "fresh", split=SplitConfig(validation=held))
    assert fingerprint(out) == build(fresh, sources(EARLY + LATER)).manifest.fingerprint


def test_an_appending_that_is_killed_leaves_the_old_set_whole_and_goes_on(out: Path, tmp_path: Path) -> None:
    before = fingerprint(out)
    whole = writing(FilterConfig())

    def killed(missing, place, watch):  # type: ignore[no-untyped-def]
        whole(missing.slice(0, 8), place, watch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(video_job(out), sources(EARLY + LATER), killed)
    assert (fingerprint(out), verify(str(out))) == (before, [])
    shard = next((out / "shards").iterdir())
    shutil.copy(shard, shard.with_name("train-2x2x2-g1-00000.parquet"))  # of a packing that was killed
    assert sweep(str(out), dry_run=True).kept_units == 8
    built = build(video_job(out), sources(EARLY + LATER))
    assert built.done_now == 3 * len(LATER) - 8
    undisturbed = tmp_path / "undisturbed"
    build(video_job(undisturbed), sources(EARLY))
    assert fingerprint(out) == build(video_job(undisturbed), sources(EARLY + LATER)).manifest.fingerprint
    assert verify(str(out)) == []


def test_a_name_that_stands_for_another_file_is_refused_and_the_others_are_appended(out: Path) -> None:
    changed = sources(["video-0.mp4"]).to_pylist()[0] | {"source_id": "another"}
    given = sources(LATER).from_pylist([*sources(LATER).to_pylist(), changed], sources([]).schema)
    built = build(video_job(out), given)
    assert (built.refused, built.done_now, built.sources_kept) == (("video-0.mp4",), 3 * len(LATER), 4)
    outcome = shard_summary.outcome(built, str(out), 1.0)
    assert (outcome.exit_code, outcome.summary["refused"]) == (1, ["video-0.mp4"])
    without = build(video_job(out), sources(LATER))
    assert (without.refused, without.done_now) == ((), 0)
    assert without.manifest.fingerprint == fingerprint(out)
    assert shard_summary.outcome(without, str(out), 1.0).exit_code == 0


def test_a_summary_names_a_thousand_of_the_files_that_were_passed_over_and_counts_all(out: Path) -> None:
    names = [f"/videos/{number:04d}.txt" for number in range(1500)]
    built = replace(build(video_job(out), sources(EARLY)), passed_over=names)
    summary = shard_summary.outcome(built, str(out), 1.0).summary
    assert (summary["passed_over"], summary["passed_over_files"]) == (1500, names[:1000])


def changing(name: str) -> RunUnits:
    """Does units as workers would where one source is not what it was when it was listed."""

    def run(missing: pa.Table, place: str, watch: Watch) -> Devices | None:
        left = pc.equal(missing.column("source"), name)
        spans = [Span(**fields) for fields in missing.filter(left).to_pylist()]
        rows = [outcomes.of_left_span(span, f"{span.uri} changed") for span in spans]
        watch(WriteRecords(place)(pa.Table.from_pylist(rows, records.record_schema("frames")), 0.0))
        return writing(FilterConfig())(missing.filter(pc.invert(left)), place, watch)

    return run


def test_sources_that_change_under_way_are_named_once_all_others_are_done(out: Path) -> None:
    before, seen = fingerprint(out), list[str]()
    with pytest.raises(StorageError, match=f"changed. All is done but for 1 such sources: {LATER[0]};"):
        build(video_job(out), sources(EARLY + LATER), changing(LATER[0]))
    assert fingerprint(out) == before
    build(video_job(out), sources(EARLY + LATER[1:]), writing(FilterConfig(), seen=seen))
    assert seen == []


def test_files_that_could_not_be_looked_into_are_named_once_all_others_are_done(out: Path) -> None:
    before, seen, left = fingerprint(out), list[str](), {name: f"{name} is gone" for name in LATER[:2]}
    sentence = f"{LATER[0]} is gone. All is done but for 2 such sources: {LATER[0]}, {LATER[1]};"
    for given in (EARLY + LATER[2:], EARLY, []):  # something to do, all of it sealed, and nothing at all
        with pytest.raises(StorageError, match=sentence):
            build(video_job(out), sources(given), left=left)
        assert fingerprint(out) == before
    build(video_job(out), sources(EARLY + LATER[2:]), writing(FilterConfig(), seen=seen))
    assert seen == []
    assert fingerprint(out) != before


def test_a_file_that_could_not_be_looked_into_and_a_source_that_changed_are_named_together(
    tmp_path: Path,
) -> None:
    out, left = tmp_path / "set", {"gone.mp4": "gone.mp4 is gone"}
    with pytest.raises(StorageError, match=f"but for 2 such sources: gone.mp4, {LATER[0]};"):
        build(video_job(out), sources(LATER), changing(LATER[0]), left=left)
    assert not (out / "manifest.json").exists()


def test_a_retry_of_a_source_that_changed_leaves_its_row_as_it_was(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [f"id-of-{name}/00000" for name in LATER[:2]]
    build(video_job(out), sources(LATER), writing(FilterConfig(), dict.fromkeys(failed, "cpu_limit")))
    monkeypatch.setattr("pipelines.failures.run_on_videos", lambda *_: changing(LATER[0]))
    built = retry(RetryJob(shards=str(out), error_class="cpu_limit", tokenizer=TOKENIZER), lambda *_: None)
    assert built is not None
    assert (built.refused, built.done_now) == ((LATER[0],), 1)
    assert [row["span_id"] for row in failures_of(str(out)).to_pylist()] == failed[:1]
    assert verify(str(out)) == []


def test_a_reader_of_the_old_manifest_reads_on_after_an_appending(out: Path) -> None:
    old = ShardSet.open(str(out))
    build(video_job(out), sources(EARLY + LATER))
    assert sum(table.num_rows for table in old.tables("train")) == old.num_clips("train")
    assert (old.spans().num_rows, old.sources().num_rows) == (15, 5)


def test_changed_sampling_is_refused_with_its_cost_and_done_when_told_so(out: Path) -> None:
    before, faster = fingerprint(out), SamplingConfig(fps=16)
    with pytest.raises(UsageError, match=r"sampling.fps=8.0, not 16.0: its 15 units would be done again"):
        build(video_job(out, sampling=faster), sources(EARLY))
    assert fingerprint(out) == before
    built = build(video_job(out, sampling=faster, redo=True), sources(EARLY))
    assert (built.done_now, built.manifest.generation) == (15, 1)
    assert verify(str(out)) == []
    back = build(video_job(out, redo=True), sources(EARLY))
    assert (back.done_now, back.manifest.fingerprint) == (0, before)


@pytest.mark.parametrize("swept", [False, True])
def test_tighter_thresholds_are_packed_without_decoding_also_from_the_shards_alone(
    out: Path, tmp_path: Path, swept: bool
) -> None:
    tight = FilterConfig(min_brightness=0.5)
    if swept:
        sweep(str(out))
    with pytest.raises(UsageError, match="shards would be packed again, from what is decoded already"):
        build(video_job(out, filters=tight), sources(EARLY))
    built = build(video_job(out, filters=tight, redo=True), sources(EARLY))
    fresh = build(video_job(tmp_path / "fresh", filters=tight), sources(EARLY))
    assert (built.done_now, built.manifest.fingerprint) == (0, fresh.manifest.fingerprint)
    assert ShardSet.open(str(out)).spans() == ShardSet.open(str(tmp_path / "fresh")).spans()
    assert 0 < len(clips_of(out)) < 60
    assert all(brightness(clip_id) >= 0.5 for clip_id in clips_of(out))
    assert verify(str(out)) == []


@pytest.mark.parametrize("swept", [False, True])
def test_looser_thresholds_do_again_just_the_spans_with_a_clip_that_is_missing(
    tmp_path: Path, swept: bool
) -> None:
    out, loose, seen = tmp_path / "set", FilterConfig(min_brightness=0.0), list[str]()
    build(video_job(out, filters=FilterConfig(min_brightness=0.2)), sources(EARLY))
    lacking = {row["span_id"] for row in ShardSet.open(str(out)).spans().to_pylist() if row["num_clips"] < 4}
    if swept:
        sweep(str(out))
    built = build(video_job(out, filters=loose, redo=True), sources(EARLY), writing(loose, seen=seen))
    assert set(seen) == lacking
    assert 0 < len(seen) < 15
    fresh = build(video_job(tmp_path / "fresh", filters=loose), sources(EARLY))
    assert built.manifest.fingerprint == fresh.manifest.fingerprint


def test_other_packing_of_an_output_that_is_not_sealed_needs_no_leave(tmp_path: Path) -> None:
    out, whole = tmp_path / "set", writing(FilterConfig())

    def killed(missing, place, watch):  # type: ignore[no-untyped-def]
        whole(missing.slice(0, 8), place, watch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(video_job(out), sources(EARLY), killed)
    built = build(video_job(out, pack=PackConfig(shard_bytes=999)), sources(EARLY))
    assert built.done_now == 7


def test_the_order_and_the_place_of_the_videos_change_nothing(out: Path, tmp_path: Path) -> None:
    copied = sources(reversed(EARLY), folder="/copied")
    assert fingerprint(out) == build(video_job(tmp_path / "other"), copied).manifest.fingerprint
    assert build(video_job(out), copied).done_now == 0


def test_a_set_without_a_source_is_derived_without_decoding_and_says_of_what(
    out: Path, tmp_path: Path
) -> None:
    without, before = tmp_path / "without", fingerprint(out)
    job = DeriveJob(base=str(out), out=str(without), exclude=("video-1.mp4", "/videos/video-3.mp4"))
    derived = derive(job, lambda *_: None).manifest
    assert derived.parents == (before,)
    assert derived.tokenizer_fingerprint == TOKENIZER.fingerprint
    kept = {"video-0.mp4", "video-2.mp4", "video-4.mp4"}
    assert clips_of(without) == clips_of(out, lambda row: row["source"] in kept)
    assert {row["source"] for row in ShardSet.open(str(without)).spans().to_pylist()} == kept
    assert derived.totals["sources"] == 3
    assert verify(str(without)) == []
    assert derive(job, lambda *_: None).manifest == derived
    build(video_job(out), sources(EARLY + LATER))
    grown = derive(job, lambda *_: None).manifest
    assert (grown.totals["sources"], grown.generation) == (10, 1)


def test_a_derived_set_may_have_tighter_thresholds_and_another_split_but_not_looser_ones(
    out: Path, tmp_path: Path
) -> None:
    tight, split = FilterConfig(min_brightness=0.5), SplitConfig(validation=("video-2.mp4",))
    job = DeriveJob(base=str(out), out=str(tmp_path / "tight"), exclude=(), filters=tight, split=split)
    fresh = build(video_job(tmp_path / "fresh", filters=tight, split=split), sources(EARLY))
    assert derive(job, lambda *_: None).manifest.fingerprint == fresh.manifest.fingerprint
    loose = FilterConfig(min_brightness=0.1)
    with pytest.raises(UsageError, match="left out clips that these filters keep"):
        derive(DeriveJob(base=job.out, out=str(tmp_path / "x"), exclude=(), filters=loose), lambda *_: None)


@pytest.mark.parametrize(
    ("exclude", "sentence"),
    [(("nobody.mp4",), "no source of .* is named 'nobody.mp4' to exclude"), (tuple(EARLY), "nothing of")],
)
def test_what_cannot_be_excluded_is_refused(
    out: Path, tmp_path: Path, exclude: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        derive(DeriveJob(base=str(out), out=str(tmp_path / "x"), exclude=exclude), lambda *_: None)
    assert not (tmp_path / "x").exists()


def test_span_files_of_a_sealed_set_are_swept_and_a_rerun_needs_none(out: Path) -> None:
    files = [path for path in (out / records.FOLDER).rglob("*") if path.is_file()]
    planned = sweep(str(out), dry_run=True)
    assert (planned.files, all(path.exists() for path in files)) == (len(files), True)
    assert planned.bytes == sum(path.stat().st_size for path in files)
    assert sweep(str(out)) == planned
    assert not any(path.exists() for path in files)
    assert build(video_job(out), sources(EARLY)).done_now == 0
    assert build(video_job(out), sources(EARLY + LATER)).done_now == 3 * len(LATER)
    assert verify(str(out)) == []


def test_what_killed_writers_left_unfinished_in_a_set_is_swept_once_it_is_old(out: Path) -> None:
    old, young = (out / "shards" / f"train.parquet.{digit * 32}.tmp" for digit in "01")
    for path in (old, young):
        path.write_bytes(b"cut off")
    os.utime(old, (0, 0))
    assert Gc(shards=str(out), dry_run=True).run().summary["unfinished"] == 0
    assert old.exists()
    assert Gc(shards=str(out)).run().summary["unfinished"] == 1
    assert (old.exists(), young.exists()) == (False, True)
    assert verify(str(out)) == []


def test_sweeping_says_that_rows_of_other_settings_go_too(out: Path) -> None:
    before = len(list((out / records.FOLDER).rglob("*.parquet")))
    assert Gc(shards=str(out), dry_run=True).run().summary["of_other_settings"] == 0
    build(video_job(out, sampling=SamplingConfig(fps=16), redo=True), sources(EARLY))
    for dry_run in (True, False):
        swept = Gc(shards=str(out), dry_run=dry_run).run()
        assert swept.summary["of_other_settings"] == before
        assert f"{before} of them hold rows of other settings than the set has now: to go back" in swept.text


def test_what_is_not_sealed_is_not_swept(tmp_path: Path) -> None:
    place = records.place_of(str(tmp_path), "tokens", {})
    storage.write(f"{place}/a.parquet", b"rows")
    with pytest.raises(UsageError, match="is not sealed yet: its span files are all that there is"):
        sweep(str(tmp_path))


FAILED = {"id-of-video-0.mp4/00001": "cpu_limit", "id-of-video-3.mp4/00000": "corrupt"}


@pytest.mark.parametrize("swept", [False, True])
def test_failed_spans_of_a_class_are_tried_again_and_the_set_is_as_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swept: bool
) -> None:
    out, seen = tmp_path / "set", list[str]()
    build(video_job(out), sources(EARLY), writing(FilterConfig(), FAILED))
    if swept:
        sweep(str(out))
    listed = failures_of(str(out)).to_pylist()
    assert [(row["error_class"], row["span_id"]) for row in listed] == [
        ("corrupt", "id-of-video-3.mp4/00000"),
        ("cpu_limit", "id-of-video-0.mp4/00001"),
    ]
    shards = set(ShardSet.open(str(out)).manifest.shards)
    run = writing(FilterConfig(), {"id-of-video-3.mp4/00000": "corrupt"}, seen=seen)
    monkeypatch.setattr("pipelines.failures.run_on_videos", lambda *_: run)
    limits = DecodeLimits(cpu_seconds=999)
    job = RetryJob(shards=str(out), error_class="cpu_limit", limits=limits, tokenizer=TOKENIZER)
    built = retry(job, lambda *_: None)
    assert built is not None
    assert seen == ["id-of-video-0.mp4/00001"]
    fresh = build(
        video_job(tmp_path / "fresh"),
        sources(EARLY),
        writing(FilterConfig(), {listed[0]["span_id"]: "corrupt"}),
    )
    assert built.manifest.fingerprint == fresh.manifest.fingerprint
    assert shards < set(built.manifest.shards)
    assert built.manifest.config["limits"]["cpu_seconds"] == 999
    assert verify(str(out)) == []
    assert retry(job, lambda *_: None) is None
    assert build(video_job(out), sources(EARLY)).done_now == 0


def test_a_retry_is_refused_for_an_unknown_class_or_without_the_tokenizer(out: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no error class 'bad'; there are .*corrupt"):
        retry(RetryJob(shards=str(out), error_class="bad"), lambda *_: None)
    with pytest.raises(UsageError, match="was made by the tokenizer ffffffffffff; give that one"):
        retry(RetryJob(shards=str(out), error_class="corrupt"), lambda *_: None)


@pytest.mark.parametrize("name", ["late/late.mp4", "late/"])
def test_what_could_not_be_read_gives_way_to_its_content_once_it_can(out: Path, name: str) -> None:
    unreadable = {"source_id": f"{UNREADABLE}0", "name": name, "duration_seconds": None}
    given = pa.Table.from_pylist([sources([name]).to_pylist()[0] | unreadable], SOURCE_SCHEMA)
    errors = {f"{UNREADABLE}0/00000": "unreadable"}
    failed = build(video_job(out), given, writing(FilterConfig(), errors)).manifest
    assert failed.totals["failed"] == {"unreadable": 1}
    mended = build(video_job(out), sources(["late/late.mp4"])).manifest
    assert (mended.totals["failed"], mended.totals["sources"]) == ({}, 6)
    assert verify(str(out)) == []


def test_a_few_files_are_looked_into_before_ray_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "text.mp4").write_text("no video")
    job = replace(video_job(tmp_path / "set"), videos=(str(tmp_path / "videos"),))
    with pytest.raises(ClusterError, match=f"no Ray answers at {NOBODY}"):
        build_from_videos(job, lambda *_: None)
    assert known_sources(job.out).column("name").to_pylist() == ["text.mp4"]
