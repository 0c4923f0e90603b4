"""Copies are left out over a whole set, whatever the order of its rows, and sealed clips stay."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import ConfigError, UsageError
from pipelines import records
from pipelines.building.completion import RunUnits, Watch
from pipelines.building.job import DeriveJob
from pipelines.building.pace import Devices
from pipelines.checking.verify import verify
from pipelines.config import DuplicateConfig, FilterConfig
from pipelines.derive import derive
from pipelines.selection.duplicates import Candidates
from pipelines.shards import ShardSet
from pipelines.sweep import sweep
from tests.rows import brightness, build, clips_of, record, sources, video_job

pytestmark = pytest.mark.slow

NAMES = [f"video-{k}.mp4" for k in range(6)]
DEFAULT, TIGHT = FilterConfig(), FilterConfig(min_brightness=0.5)
Content = Callable[[str], int]
"""Clip id to a number: equal ones have equal pixels."""


def near_to(number: int) -> str:
    """A hash of 192 bits; of numbers that differ by one, in one bit."""
    base = np.random.default_rng(number // 100).bytes(24)
    return (int.from_bytes(base) ^ ((1 << number % 100) - 1)).to_bytes(24).hex()


def same_number(clip_id: str) -> int:
    """Clips of the same number and span in the first three videos are equal."""
    video, span, number = clip_id.removeprefix("id-of-video-").split("/")
    of = 0 if int(video[0]) < 3 else int(video[0])
    return 100 * (of * 100 + 10 * int(span) + int(number))


def hashing(
    content: Content, filters: FilterConfig = DEFAULT, *, per_file: int = 4, seed: int = 0
) -> RunUnits:
    """Does units in files of so many rows, in an order of its own."""

    def run(missing: pa.Table, place: str, watch: Watch) -> Devices:
        units = missing.to_pylist()
        random.Random(seed).shuffle(units)
        for start in range(0, len(units), per_file):
            rows = [hashed(record(unit, filters), content) for unit in units[start : start + per_file]]
            table = pa.Table.from_pylist(rows, records.record_schema("tokens"))
            records.write(place, table)
            watch(table.append_column("worker_seconds", pa.array([1.5] * table.num_rows)))
        return Devices(cores=2)

    return run


def hashed(row: dict[str, Any], content: Content) -> dict[str, Any]:
    for clip in row["clips"]:
        number = content(clip["clip_id"])
        clip["content_hash"] = np.random.default_rng(number).bytes(32).hex()
        clip["perceptual_hash"] = near_to(number)
    return row


def rejected(uri: Path) -> dict[str, int]:
    counts: dict[str, int] = ShardSet.open(str(uri)).manifest.totals["rejected_clips"]
    return counts


def test_of_equal_clips_the_lowest_id_that_the_thresholds_keep_stays_and_the_others_are_counted(
    tmp_path: Path,
) -> None:
    job = video_job(tmp_path / "set")
    built = build(job, sources(NAMES), hashing(same_number))
    groups: dict[int, list[str]] = {}
    ids = [f"id-of-{name}/{span:05d}/{n:04d}" for name in NAMES for span in range(3) for n in range(4)]
    for clip_id in ids:
        if brightness(clip_id) >= DEFAULT.min_brightness:
            groups.setdefault(same_number(clip_id), []).append(clip_id)
    assert set(clips_of(job.out)) == {min(group) for group in groups.values()}
    left_out = sum(len(group) - 1 for group in groups.values())
    assert built.manifest.totals["rejected_clips"]["duplicate"] == left_out > 15
    assert verify(job.out) == []


@pytest.mark.parametrize("near_bits", [None, 3])
def test_the_order_of_rows_files_and_videos_changes_nothing(tmp_path: Path, near_bits: int | None) -> None:
    manifests = []
    for seed, per_file in ((0, 1), (1, 5), (2, 18)):
        job = video_job(
            tmp_path / str(seed), duplicates=DuplicateConfig(near_bits=near_bits), filters=DEFAULT
        )
        given = sources(random.Random(seed).sample(NAMES[:4], 4))
        run = hashing(in_chains, per_file=per_file, seed=seed)
        manifests.append(build(job, given, run).manifest)
    assert len({(m.fingerprint, m.shards, str(m.totals)) for m in manifests}) == 1


def in_chains(clip_id: str) -> int:
    """Every clip looks like the one before it in its span and like the one in the next video."""
    video, span, number = clip_id.removeprefix("id-of-video-").split("/")
    return 100 * int(span) + 2 * int(video[0]) + 2 * int(number)


def test_near_copies_are_those_within_the_bits_of_an_earlier_clip_that_stays(tmp_path: Path) -> None:
    config = DuplicateConfig(exact=False, near_bits=3)
    job = video_job(tmp_path / "set", duplicates=config)
    build(job, sources(NAMES[:1]), hashing(in_chains))
    kept = list(clips_of(job.out))
    assert sorted(clip_id[-4:] for clip_id in kept if "/00001/" in clip_id) == ["0000", "0002"]
    assert rejected(tmp_path / "set")["near_duplicate"] == 6


def test_appended_copies_of_a_sealed_clip_are_left_out_and_its_shards_stay(tmp_path: Path) -> None:
    out, config = tmp_path / "set", DuplicateConfig(near_bits=3)
    job = video_job(out, duplicates=config)
    build(job, sources(NAMES[1:2]), hashing(same_number))
    before, clips = ShardSet.open(str(out)).manifest, clips_of(out)
    build(job, sources(NAMES), hashing(same_number))
    after = clips_of(out)
    assert set(before.shards) < set(ShardSet.open(str(out)).manifest.shards)
    assert clips.items() <= after.items()
    contents = [same_number(clip_id) for clip_id in after]
    assert len(contents) == len(set(contents))
    assert verify(str(out)) == []
    assert build(job, sources(NAMES)).done_now == 0


@pytest.mark.parametrize("swept", [False, True])
def test_a_copy_comes_back_when_tighter_thresholds_leave_out_what_it_is_a_copy_of(
    tmp_path: Path, swept: bool
) -> None:
    out = tmp_path / "set"
    build(video_job(out), sources(NAMES), hashing(same_number))
    if swept:
        sweep(str(out))
    job = video_job(out, filters=TIGHT, redo=True)
    built = build(job, sources(NAMES), hashing(same_number, TIGHT))
    fresh = build(video_job(tmp_path / "fresh", filters=TIGHT), sources(NAMES), hashing(same_number, TIGHT))
    assert built.manifest.fingerprint == fresh.manifest.fingerprint
    assert built.manifest.totals["rejected_clips"] == fresh.manifest.totals["rejected_clips"]
    assert (built.done_now > 0) == swept
    assert ShardSet.open(str(out)).spans() == ShardSet.open(str(tmp_path / "fresh")).spans()


@pytest.mark.parametrize("swept", [False, True])
def test_copies_are_kept_or_left_out_later_as_in_a_fresh_set(tmp_path: Path, swept: bool) -> None:
    out = tmp_path / "set"
    build(video_job(out), sources(NAMES), hashing(in_chains))
    for config in (DuplicateConfig(near_bits=3), DuplicateConfig(exact=False), DuplicateConfig()):
        if swept:
            sweep(str(out))
        job = video_job(out, duplicates=config, redo=True)
        with pytest.raises(UsageError, match="shards would be packed again, from what is decoded already"):
            build(video_job(out, duplicates=config), sources(NAMES))
        built = build(job, sources(NAMES), hashing(in_chains))
        job = video_job(tmp_path / f"fresh-{config.exact}-{config.near_bits}", duplicates=config)
        fresh = build(job, sources(NAMES), hashing(in_chains))
        assert built.manifest.fingerprint == fresh.manifest.fingerprint
        assert swept or built.done_now == 0


def test_a_derived_set_leaves_out_more_copies_and_never_fewer(tmp_path: Path) -> None:
    base = str(tmp_path / "set")
    build(video_job(base), sources(NAMES), hashing(in_chains))
    nearer = DeriveJob(
        base=base, out=str(tmp_path / "nearer"), exclude=(), duplicates=DuplicateConfig(near_bits=3)
    )
    fresh = video_job(tmp_path / "fresh", duplicates=nearer.duplicates)
    build(fresh, sources(NAMES), hashing(in_chains))
    derive(nearer, lambda *_: None)
    assert clips_of(nearer.out) == clips_of(fresh.out)
    all_kept = DeriveJob(
        base=base, out=str(tmp_path / "x"), exclude=(), duplicates=DuplicateConfig(exact=False)
    )
    with pytest.raises(UsageError, match="left out copies that these settings keep"):
        derive(all_kept, lambda *_: None)


def test_a_picture_is_no_copy_of_a_video_that_looks_like_it() -> None:
    candidates = Candidates(DuplicateConfig(near_bits=3))
    rows = [
        {"clip_id": name, "num_frames": count, "content_hash": name * 64, "perceptual_hash": near_to(0)}
        for name, count in (("a", 8), ("b", 1), ("c", 8))
    ]
    schema = pa.schema(
        [("clip_id", pa.string()), ("num_frames", pa.int32())]
        + [(name, pa.string()) for name in ("content_hash", "perceptual_hash")]
    )
    candidates.add(pa.Table.from_pylist(rows, schema), stand=False)
    assert candidates.copies() == {"c": ("near_duplicate", "a")}


def test_a_distance_that_would_join_different_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match="near_bits=96 is no distance of two like pictures"):
        DuplicateConfig(near_bits=96)
