"""What a plan says beside what came of the videos, and that it is told from what it could not know."""

import random
from pathlib import Path

import pytest

from infra.errors import ConfigError, StorageError, UsageError
from infra.storage import FileInfo
from pipelines.building import stages
from pipelines.plan import (
    FEWEST_SOURCES,
    FEWEST_SPANS,
    ProbeConfig,
    _draw,
    _in_time,
    _inspected,
    _share,
    _size,
)
from pipelines.shards import ShardSet
from pipelines.spans import list_videos
from reelgpt.plan import Plan
from reelgpt.plan_tokenize import PlanTokenize
from tests.media import make_still
from tests.pipelines.conftest import CONFIG

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["frames", "tokens"])
@pytest.mark.slow
def test_a_plan_from_all_spans_is_what_came_of_them(made: Path, bundle: str, kind: str) -> None:
    planned = PlanTokenize(
        videos=(str(made / "videos"),),
        tokenizer=bundle if kind == "tokens" else None,
        sampling=CONFIG.sampling,
        probe=ProbeConfig(spans=999),
        num_cpus=2,
    ).run()
    facts, totals = planned.summary, ShardSet.open(str(made / kind)).manifest.totals
    assert (facts["sources"], facts["is_exact"]) == (totals["sources"], True)
    assert facts["hours"] == pytest.approx(totals["hours"])
    assert facts["spans"] == sum(totals["spans"].values()) == facts["probed_spans"]
    assert facts["clips"] == pytest.approx(sum(totals["clips"].values()), rel=0.05)
    assert facts.get("codes") == (pytest.approx(totals["codes"], rel=0.05) if kind == "tokens" else None)
    there = sum(entry.bytes for entry in ShardSet.open(str(made / kind)).manifest.shards)
    if kind == "frames":  # codes of this little video are less than what Parquet adds to a row group
        assert there / 2 < facts["shard_bytes"] < 2 * there
    assert facts["decode_cpu_hours"] > 0
    work_hours = (facts["decode_cpu_hours"] + facts["tokenize_hours"]) / 2
    assert facts["wall_hours"] == pytest.approx(work_hours + facts["start_seconds"] / 3600)
    assert 0 <= facts["relative_error"] < 10


def test_hours_and_spans_of_many_files_are_told_from_a_few() -> None:
    rng = random.Random(3)
    rates = {f"{k}.mp4": rng.uniform(0.5, 2.0) for k in range(3000)}
    sizes = {name: rng.randrange(1, 1000) for name in rates}
    files = [FileInfo(name, name, sizes[name], "") for name in rates]
    known = {
        name: {
            "source_id": name,
            "name": name,
            "uri": name,
            "duration_seconds": rate * sizes[name],
        }
        for name, rate in rates.items()
    }
    exact = _size(files, files, known, 60.0)
    guessed = _size(files, _draw(files, 300, rng), known, 60.0)
    assert guessed == pytest.approx(exact, rel=0.1)
    assert guessed != exact


def test_one_file_in_a_hundred_is_looked_into_but_never_so_few_that_they_say_nothing(tmp_path: Path) -> None:
    still = make_still(tmp_path / "still.png").read_bytes()
    (tmp_path / "videos").mkdir()
    for number in range(3300):
        (tmp_path / "videos" / f"{number}.png").write_bytes(still)
    planned = PlanTokenize(videos=(str(tmp_path / "videos"),), probe=ProbeConfig(seconds=0)).run()
    assert (planned.summary["sources"], planned.summary["is_exact"]) == (3300, False)
    assert 30 < planned.summary["probed_sources"] <= FEWEST_SOURCES  # of some drawn twice
    assert planned.summary["probed_spans"] == FEWEST_SPANS
    assert planned.summary["spans"] == 3300
    assert [_share(number, 32, 1000) for number in (1, 3200, 3300, 10**6)] == [32, 32, 33, 1000]


def test_more_than_the_fewest_are_probed_for_as_long_as_there_is_time() -> None:
    assert list(_in_time(range(100), 8, 60.0)) == list(range(100))
    assert list(_in_time(range(100), 8, 0.0)) == list(range(8))


def test_a_file_that_is_gone_is_left_out_of_a_plan(tmp_path: Path) -> None:
    for name in ("gone", "there"):
        make_still(tmp_path / f"{name}.png")
    files = list_videos([str(tmp_path)])
    (tmp_path / "gone.png").unlink()
    drawn, known = _inspected(files, CONFIG)
    assert (drawn, list(known)) == (files, ["there.png"])
    long = {"there.png": known["there.png"] | {"duration_seconds": 7200.0}}
    assert _size(files, drawn, long, 60.0) == (2.0, 120)
    assert _size([*files, *files], drawn, long, 60.0) == pytest.approx((4.0, 240))
    (tmp_path / "there.png").unlink()
    with pytest.raises(StorageError, match="there is nothing at"):
        _inspected(files, CONFIG)
    stages.decoder_of_this_process(CONFIG.limits).close()


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no videos in"):
        Plan.parse(["tokenize", str(tmp_path)]).run()
    with pytest.raises(ConfigError, match="spans=0 probes nothing"):
        ProbeConfig(spans=0)
    with pytest.raises(ConfigError, match="seconds=-1 is no time"):
        ProbeConfig(seconds=-1)
