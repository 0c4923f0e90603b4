"""A store that fails while a run reads and writes: no span is given up for it, and a rerun ends the same."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from tests.faults.matrix import SEED
from tests.faults.processes import none_left_behind
from tests.faults.runs import SECONDS, Content, Run, make_videos
from tests.misbehaving_proxy import Fault, misbehaving_proxy
from tests.object_store import ObjectStore, object_store

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]
FAILURES = {
    "overloaded": Fault(status=503),
    "resets": Fault(reset=True),
    "answers lost": Fault(lose_answer=True),
}
UNREACHABLE = "cannot be reached: .*; check the network and AWS_ENDPOINT_URL, and repeat the command"
SENTENCES = {
    "overloaded": r": the store is overloaded, .* \(503\); repeat the command once it has recovered; .*",
    "resets": f" {UNREACHABLE}",
    "answers lost": f" {UNREACHABLE}",
}
"""What the terminal is told, behind the place in the store."""
REQUESTS_BEFORE = (40, 110)
"""Between the listing of the videos and the sealing."""
IMPATIENT = {"AWS_MAX_ATTEMPTS": "2"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture(scope="module")
def videos(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """In a bucket."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), count=4, seconds=4.0)
    bucket = s3fs.S3FileSystem(
        key=store.environment["AWS_ACCESS_KEY_ID"],
        secret=store.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=store.environment["AWS_ENDPOINT_URL"],
    )
    bucket.mkdir("bucket")
    bucket.put(f"{folder}/", "bucket/videos/", recursive=True)
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(videos: str, tokenizer_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The same on a disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(name="tokenize", videos=videos, out=str(folder / "out"), tokenizer=tokenizer_bundle)
    run.finish(folder / "log")
    return Content.of(run.out)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_store_that_fails_during_a_run_fails_no_span(
    store: ObjectStore,
    undisturbed: Content,
    tokenizer_bundle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
) -> None:
    out = f"s3://bucket/{failure.replace(' ', '-')}"
    run = Run(name="tokenize", videos="s3://bucket/videos", out=out, tokenizer=tokenizer_bundle)
    first, again = tmp_path / "first.log", tmp_path / "again.log"
    with none_left_behind(), misbehaving_proxy(store.environment["AWS_ENDPOINT_URL"]) as proxy:
        through = {**store.environment, **IMPATIENT, "AWS_ENDPOINT_URL": proxy.url}
        proxy.plan = from_request(
            random.Random(f"{SEED}/{failure}").randint(*REQUESTS_BEFORE), FAILURES[failure]
        )
        with replace(run, environment=through).start(first) as process:
            code = process.wait(SECONDS)
    assert code == 1, first.read_text()
    sentence = next(line for line in first.read_text().splitlines() if line.startswith("error: "))
    assert re.fullmatch(rf"error: s3://bucket/\S+?{SENTENCES[failure]}", sentence), sentence
    assert "Traceback" not in first.read_text()
    summary = replace(run, environment=store.environment).finish(again)
    assert summary["totals"]["failed"] == {}
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    assert Content.of(out) == undisturbed


def from_request(number: int, fault: Fault) -> Callable[[str, str], Fault | None]:
    """The fault for every request after the first `number`."""
    seen = 0

    def plan(_method: str, _path: str) -> Fault | None:
        nonlocal seen
        seen += 1
        return fault if seen > number else None

    return plan
