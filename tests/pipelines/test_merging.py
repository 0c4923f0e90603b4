"""Small span files become few, and nothing else changes: also where a kill comes in between."""

from pathlib import Path

import pytest

from infra import storage
from infra.errors import StorageError
from pipelines import records
from pipelines.building import claim
from pipelines.config import FilterConfig
from pipelines.packing import merging
from pipelines.shards import ShardSet
from tests.rows import build, clips_of, sources, video_job, writing

VIDEOS = [f"video-{k}.mp4" for k in range(8)]


@pytest.fixture(autouse=True)
def _four_files_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LEAST_FILES", 4)


def place_of(out: Path) -> str:
    return records.place_of(str(out), "tokens", claim.video_settings(video_job(out))["rows"])


def half_done(out: Path) -> None:
    """Rows of 20 of the 24 spans, in five files."""

    def killed(missing, place, watch):  # type: ignore[no-untyped-def]
        writing(FilterConfig())(missing.slice(0, 20), place, watch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(video_job(out), sources(VIDEOS), killed)


def test_a_build_merges_before_it_packs_and_ends_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged"
    half_done(out)
    assert len(records.files(place_of(out))) == 5
    built = build(video_job(out), sources(VIDEOS))
    assert (built.done_before, built.done_now) == (20, 4)
    assert len(records.files(place_of(out))) == 1
    monkeypatch.setattr(merging, "LEAST_FILES", 999)
    plain = build(video_job(tmp_path / "plain"), sources(VIDEOS))
    assert built.manifest.fingerprint == plain.manifest.fingerprint
    assert clips_of(out) == clips_of(tmp_path / "plain")


def test_a_kill_between_writing_and_deleting_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    half_done(out)

    def refuse(uri: str) -> None:
        raise StorageError(f"{uri} cannot be deleted")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", refuse)
        with pytest.raises(StorageError):
            merging.merge_small_files(place_of(out))
    assert len(records.files(place_of(out))) == 6
    built = build(video_job(out), sources(VIDEOS))
    assert (built.done_before, built.done_now) == (20, 4)
    monkeypatch.setattr(merging, "LEAST_FILES", 999)
    plain = build(video_job(tmp_path / "plain"), sources(VIDEOS)).manifest
    assert ShardSet.open(str(out)).manifest.fingerprint == plain.fingerprint


def test_files_that_are_large_or_few_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    half_done(out)
    before = records.files(place_of(out))
    monkeypatch.setattr(merging, "SMALL_BYTES", 1)
    merging.merge_small_files(place_of(out))
    monkeypatch.setattr(merging, "SMALL_BYTES", 1 << 18)
    monkeypatch.setattr(merging, "LEAST_FILES", 6)
    merging.merge_small_files(place_of(out))
    assert records.files(place_of(out)) == before
    monkeypatch.setattr(merging, "LEAST_FILES", 5)
    monkeypatch.setattr(merging, "MERGED_BYTES", 2 * Path(before[0]).stat().st_size)
    merging.merge_small_files(place_of(out))
    assert 1 < len(records.files(place_of(out))) < 5
