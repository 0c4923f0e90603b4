"""Scores alone, kept clips, or all of them: what a change of thresholds then takes, and what it gives."""

from pathlib import Path

import numpy as np
import pytest

from infra.errors import UsageError
from pipelines.building.job import Built, DeriveJob
from pipelines.checking.verify import verify
from pipelines.config import FilterConfig
from pipelines.derive import derive
from pipelines.selection import distributions as distributions_file
from pipelines.selection.distributions import distributions
from pipelines.shards import ShardSet
from pipelines.sweep import sweep
from tests.rows import CLIPS_PER_SPAN, brightness, build, clips_of, sources, video_job, writing

pytestmark = pytest.mark.slow

NAMES = [f"video-{k}.mp4" for k in range(5)]
IDS = [f"id-of-{name}/{span:05d}/{number:04d}" for name in NAMES for span in range(3) for number in range(4)]


def thresholds(seed: int) -> list[FilterConfig]:
    """Tighter and looser ones, in turn."""
    rng = np.random.default_rng(seed)
    return [FilterConfig(min_brightness=round(float(least), 3)) for least in rng.uniform(0, 0.9, 4)]


def fresh(tmp_path: Path, filters: FilterConfig) -> Built:
    return build(video_job(tmp_path / f"fresh-{filters.min_brightness}", filters=filters), sources(NAMES))


@pytest.mark.parametrize("seed", [0])
def test_with_all_clips_kept_no_change_of_thresholds_decodes_and_each_gives_what_a_fresh_run_gives(
    tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "set"
    build(video_job(out, keep="all"), sources(NAMES))
    for filters in thresholds(seed):
        seen: list[str] = []
        job = video_job(out, filters=filters, keep="all", redo=True)
        built = build(job, sources(NAMES), writing(filters, seen=seen, keep="all"))
        assert (built.done_now, seen) == (0, [])
        expected = fresh(tmp_path, filters).manifest
        assert built.manifest.fingerprint == expected.fingerprint
        assert built.manifest.recipe_id == expected.recipe_id
    assert verify(str(out)) == []


def test_after_scores_alone_all_clips_are_decoded_where_all_are_to_be_kept(tmp_path: Path) -> None:
    tight, loose = FilterConfig(min_brightness=0.95), FilterConfig()
    build(video_job(tmp_path, keep="none", filters=tight), sources(NAMES))
    assert build(video_job(tmp_path, keep="all", filters=tight), sources(NAMES)).done_now == 15
    assert build(video_job(tmp_path, keep="all", filters=loose, redo=True), sources(NAMES)).done_now == 0


def test_kept_rejects_survive_a_sweep_until_the_set_is_made_without_them(tmp_path: Path) -> None:
    out = tmp_path / "set"
    tight, loose = FilterConfig(min_brightness=0.6), FilterConfig(min_brightness=0.0)
    build(video_job(out, keep="all", filters=tight), sources(NAMES))
    swept = sweep(str(out))
    assert (swept.files, swept.kept_units) == (0, 15)
    built = build(video_job(out, keep="all", filters=loose, redo=True), sources(NAMES))
    assert (built.done_now, len(clips_of(out))) == (0, 60)
    build(video_job(out, filters=loose), sources(NAMES))
    assert sweep(str(out)).files > 0


def test_scores_alone_count_every_clip_and_keep_none(tmp_path: Path) -> None:
    out, filters = tmp_path / "set", FilterConfig(min_brightness=0.3)
    built = build(video_job(out, keep="none", filters=filters), sources(NAMES))
    black = sum(brightness(clip_id) < 0.3 for clip_id in IDS)
    assert built.manifest.totals["rejected_clips"] == {"black": black, "scored": 60 - black}
    assert built.manifest.shards == ()
    assert verify(str(out)) == []
    assert sweep(str(out)).files == 0
    assert build(video_job(out, keep="none", filters=filters), sources(NAMES)).done_now == 0
    other = build(video_job(out, keep="none", filters=FilterConfig()), sources(NAMES))
    assert other.done_now == 0
    assert other.manifest.totals["rejected_clips"]["scored"] > 60 - black


def test_after_the_scores_what_is_kept_is_decoded_and_nothing_else(tmp_path: Path) -> None:
    out, seen = tmp_path / "set", list[str]()
    chosen = FilterConfig(min_brightness=0.7)
    build(video_job(out, keep="none"), sources(NAMES))
    built = build(video_job(out, filters=chosen), sources(NAMES), writing(chosen, seen=seen))
    needed = {clip_id.rpartition("/")[0] for clip_id in IDS if brightness(clip_id) >= 0.7}
    assert set(seen) == needed
    assert len(seen) < 15
    expected = fresh(tmp_path, chosen).manifest
    assert built.manifest.fingerprint == expected.fingerprint
    assert built.manifest.recipe_id == expected.recipe_id
    assert verify(str(out)) == []


def test_a_set_of_clips_does_not_become_one_of_scores_nor_are_clips_made_of_scores(tmp_path: Path) -> None:
    build(video_job(tmp_path / "clips"), sources(NAMES))
    with pytest.raises(
        UsageError, match=r"is a set of clips already; `reelgpt explain .*` shows their scores"
    ):
        build(video_job(tmp_path / "clips", keep="none", redo=True), sources(NAMES))
    build(video_job(tmp_path / "scores", keep="none"), sources(NAMES))
    job = DeriveJob(base=str(tmp_path / "scores"), out=str(tmp_path / "x"), exclude=())
    with pytest.raises(UsageError, match="holds scores alone; extract it without --score-only first"):
        derive(job, lambda *_: None)


@pytest.mark.parametrize("keep", ["none", "kept"])
def test_distributions_are_those_of_all_clips_kept_or_not(tmp_path: Path, keep: str) -> None:
    out = tmp_path / "set"
    build(video_job(out, keep=keep, filters=FilterConfig(min_brightness=0.4)), sources(NAMES))  # type: ignore[arg-type]
    found = distributions(ShardSet.open(str(out)))
    scores = {one.score: one for one in found.scores}
    values = [brightness(clip_id) for clip_id in IDS]
    assert (found.clips, found.rejected_too) == (15 * CLIPS_PER_SPAN, True)
    assert scores["brightness"].quantiles == pytest.approx(np.quantile(values, distributions_file.QUANTILES))
    assert (scores["brightness"].setting, scores["brightness"].threshold) == ("min_brightness", 0.4)
    assert set(scores) == {"brightness", "motion"}


def test_of_a_swept_set_the_kept_clips_remain_and_it_says_so(tmp_path: Path) -> None:
    build(video_job(tmp_path, filters=FilterConfig(min_brightness=0.4)), sources(NAMES))
    sweep(str(tmp_path))
    found = distributions(ShardSet.open(str(tmp_path)))
    assert not found.rejected_too
    assert found.clips == len(clips_of(tmp_path))
    assert min(found.scores[0].quantiles) >= 0.4


def test_of_many_clips_the_same_are_looked_at_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributions_file, "MOST_CLIPS", 20)
    found = []
    for number, given in enumerate((NAMES, NAMES[::-1])):
        build(video_job(tmp_path / str(number)), sources(given))
        found.append(distributions(ShardSet.open(str(tmp_path / str(number)))))
    assert found[0] == found[1]
    assert 5 < found[0].clips <= 20


def test_a_sweep_leaves_what_is_decoded_so_far_to_take_the_place_of_scores(tmp_path: Path) -> None:
    build(video_job(tmp_path, keep="none"), sources(NAMES))
    whole = writing(FilterConfig())

    def killed(missing, place, watch):  # type: ignore[no-untyped-def]
        whole(missing.slice(0, 8), place, watch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(video_job(tmp_path), sources(NAMES), killed)
    assert sweep(str(tmp_path)).files == 0
    assert build(video_job(tmp_path), sources(NAMES)).done_now == 7
