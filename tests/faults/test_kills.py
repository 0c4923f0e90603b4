"""SIGKILL to every kind of process at random moments: the run, or the command repeated, ends as if nothing
had been."""

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipelines.checking import deep
from pipelines.shards import ShardSet
from tests.clusters import two_node_cluster
from tests.faults.corpus import damage_pictures
from tests.faults.matrix import SEED, all_with_a_sample
from tests.faults.processes import family, kill, none_left_behind, words_of
from tests.faults.runs import SECONDS, Content, Run, make_videos

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(600)]
KILLS = 3
"""In a run, at most: fewer than would use up the attempts of a span or of a worker."""
FIRST_PAUSE_SECONDS, LATER_PAUSE_SECONDS = 0.4, 2.0
"""At most, between the first rows and the first kill, and between kills."""
KINDS = {
    "decoding child": "pipelines.decoding.child",
    "worker": "ray::MapBatches",
    "actor": "ray::MapWorker",
    "raylet": "raylet/raylet",
    "driver": "-m reelgpt",
    "machine": "",
}
"""What stands in the command line of each kind of process; a machine is all of them."""
CASES = (
    *(f"extract: {kind}" for kind in ("decoding child", "worker", "driver")),
    *(f"tokenize: {kind}" for kind in ("decoding child", "actor", "raylet", "driver", "machine")),
)
DAMAGED = {"0.mp4": 4, "1.webm": 8, "3.avi": 4}
"""Of the videos, and how many of their bits are flipped."""
SURVIVED = ("decoding child", "worker", "actor")
"""Of these a run has spare ones."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of them damaged."""
    folder = make_videos(tmp_path_factory.mktemp("videos"))
    for name, count in DAMAGED.items():
        damage_pictures(folder / name, name, count=count)
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    videos: Path, tokenizer_bundle: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Run, Content]]:
    """A command, and what it gives when nothing happens."""
    folder, known = tmp_path_factory.mktemp("undisturbed"), dict[str, tuple[Run, Content]]()

    def of(name: str) -> tuple[Run, Content]:
        if name not in known:
            run = Run(name=name, videos=str(videos), out=str(folder / name), tokenizer=tokenizer_bundle)
            run.finish(folder / f"{name}.log")
            known[name] = run, Content.of(run.out)
            assert any(span["error_class"] == "corrupt" for span in known[name][1].spans)
        return known[name]

    return of


@pytest.mark.parametrize("case", all_with_a_sample(CASES, 1))
def test_a_run_of_which_a_process_is_killed_ends_as_if_nothing_had_been(
    undisturbed: Callable[[str], tuple[Run, Content]], tmp_path: Path, case: str
) -> None:
    name, kind = case.split(": ")
    run, content = undisturbed(name)
    run = replace(run, out=str(tmp_path / "out"))
    first, again = tmp_path / "first.log", tmp_path / "again.log"
    with none_left_behind():
        rng, find = random.Random(f"{SEED}/{case}"), partial(victims, kind=kind)
        code, kills = disturbed(run, first, find, rng, at_once=kind == "machine")
        assert kills, f"{case}: nothing was killed; {first.read_text()}"
        if kind in SURVIVED:
            assert code == 0, first.read_text()
        summary = run.finish(again)
    assert "Traceback" not in first.read_text() or kind == "raylet"
    assert (code == 0) == (summary["done_before"] == summary["units"])
    assert summary["done_before"] + summary["done_now"] == summary["units"] == len(content.spans)
    assert Content.of(run.out) == content
    if name == "extract":
        assert deep.compare(ShardSet.open(run.out), num_clips=1000, seed=0).problems == []


@pytest.mark.exhaustive
def test_killed_while_it_inspects_while_it_merges_and_while_it_packs_it_ends_as_if_nothing_had_been(
    undisturbed: Callable[[str], tuple[Run, Content]], tmp_path: Path
) -> None:
    run, content = undisturbed("extract")
    run, rng = replace(run, out=str(tmp_path / "out")), random.Random(f"{SEED}/stages")
    moments: dict[str, tuple[Callable[[float], bool], float]] = {
        "inspecting": (lambda _: any(Path(run.out).glob("lease*")), 6.0),
        "merging": (lambda _: num_rows(run.out) >= len(content.spans), 0.3),
        "packing": (lambda began: any(is_newer(path, began) for path in Path(run.out).glob("shards/*")), 0.1),
    }
    with none_left_behind():
        for name, (is_time, longest) in moments.items():
            with run.start(tmp_path / f"{name}.log") as driver:
                wait_until(partial(is_time, time.time()), driver.poll)
                time.sleep(rng.uniform(0, longest))
                driver.kill()
        summary = run.finish(tmp_path / "again.log")
    assert summary["done_before"] == summary["units"]
    assert Content.of(run.out) == content


@pytest.mark.exhaustive
def test_a_node_that_dies_during_a_run_changes_nothing(
    undisturbed: Callable[[str], tuple[Run, Content]], tmp_path: Path
) -> None:
    run, content = undisturbed("tokenize")
    first, again = tmp_path / "first.log", tmp_path / "again.log"
    with none_left_behind(), two_node_cluster() as cluster:
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.gcs_address}
        run = replace(run, out=str(tmp_path / "out"), environment=environment)
        rng, node = random.Random(f"{SEED}/node"), psutil.Process(cluster.second_node)
        code, kills = disturbed(run, first, lambda _: [node, *family(node.pid)], rng, at_once=True)
        assert kills
        summary = run.finish(again)
    assert (code == 0) == (summary["done_before"] == summary["units"]), first.read_text()
    assert Content.of(run.out) == content


def disturbed(
    run: Run,
    log: Path,
    find: Callable[[int], list[psutil.Process]],
    rng: random.Random,
    *,
    at_once: bool = False,
) -> tuple[int, int]:
    """Runs it while some of the processes that `find` gives, or all of them at once, are killed at random
    moments after the first rows are there; gives the exit code and how many were killed."""
    num_killed = 0
    with run.start(log) as driver:
        wait_until(lambda: has_rows(run.out), driver.poll)
        for longest in (FIRST_PAUSE_SECONDS, *[LATER_PAUSE_SECONDS] * (KILLS - 1)):
            time.sleep(rng.uniform(0, longest))
            found: list[psutil.Process] = []
            while not found and driver.poll() is None:  # a worker is known by the task that it runs
                found = find(driver.pid)
            if driver.poll() is not None:
                break
            chosen = found if at_once else rng.sample(found, min(1, len(found)))
            for one in chosen:
                kill(one)
            num_killed += len(chosen)
        return driver.wait(SECONDS), num_killed


def victims(driver: int, kind: str) -> list[psutil.Process]:
    everyone = [*family(driver), psutil.Process(driver)]
    return [one for one in everyone if KINDS[kind] in words_of(one)]


def has_rows(out: str) -> bool:
    return any(Path(out).glob("spans/*/*.parquet"))


def num_rows(out: str) -> int:
    """In span files, of which some may go while they are counted: they are merged."""
    count = 0
    for path in Path(out).glob("spans/*/*.parquet"):
        with contextlib.suppress(FileNotFoundError):
            count += pq.read_metadata(path).num_rows
    return count


def is_newer(path: Path, began: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime > began
    return False


def wait_until(holds: Callable[[], bool], ended: Callable[[], int | None]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds() and ended() is None and time.monotonic() < deadline:
        time.sleep(0.05)
