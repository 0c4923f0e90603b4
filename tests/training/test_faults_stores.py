"""Servers that go away in mid-training and come back: training goes on, and in the end they have it all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from tests.object_store import ObjectStore, object_store
from tests.training import faults
from tests.training.faults import SLEEP_UNTIL, Bench, Moment
from tests.training.workers import Group

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]

IMPATIENT = {"AWS_MAX_ATTEMPTS": "2"}
COPY = "s3://bucket/copies"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as started:
        seen_by(started).mkdir("bucket")
        yield started


def seen_by(store: ObjectStore) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=store.environment["AWS_ACCESS_KEY_ID"],
        secret=store.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=store.environment["AWS_ENDPOINT_URL"],
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def knowing(store: ObjectStore) -> str:
    return f"import os; os.environ.update({store.environment | IMPATIENT!r})\n"


class Gate:
    """Where rank 0 waits, at some step, until the test opens it."""

    def __init__(self, folder: Path, step: int) -> None:
        self._come, self._open = folder / f"come-{step}", folder / f"open-{step}"
        wait = f"open({str(self._come)!r}, 'w'); exec({SLEEP_UNTIL.format(path=str(self._open))!r})"
        self.fault = faults.at(Moment(0, step, "data"), wait)

    def wait(self, group: Group) -> None:
        group.wait_until(self._come.exists)
        assert self._come.exists(), group.said()

    def open(self) -> None:
        self._open.touch()


def copied(store: ObjectStore, place: str) -> dict[str, bytes]:
    """Of each checkpoint's files there, the bytes."""
    fs, root = seen_by(store), f"{place.removeprefix('s3://')}/checkpoints/"
    return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)}


def kept(run_dir: Path) -> dict[str, bytes]:
    """Without what a rank left for the one that commits."""
    root = run_dir / "checkpoints"
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".files.json"))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.exhaustive
def test_an_s3_server_that_goes_away_holds_nothing_up_and_has_every_copy_once_it_is_back(
    bench: Bench, store: ObjectStore, tmp_path: Path
) -> None:
    """It goes once it has step 3, misses steps 6 and 9, and is back before the last."""
    run_dir, copy = tmp_path / "run", f"{COPY}/{tmp_path.name}"
    before, after = Gate(tmp_path, 7), Gate(tmp_path, 11)
    group = bench.start(
        run_dir, f"--checkpoints.copy-to={copy}", faults=[knowing(store), before.fault, after.fault]
    )
    before.wait(group)
    group.wait_until(lambda: any("MANIFEST" in name for name in copied(store, copy)))
    store.go_away()
    before.open()
    after.wait(group)
    store.come_back()
    after.open()
    summary = group.summary()
    faults.require_same(run_dir, summary, bench.undisturbed())
    assert "training goes on, and the checkpoint is copied with the next one" in summary["stderr"]
    assert copied(store, copy) == kept(run_dir)


@pytest.mark.exhaustive
def test_a_server_that_is_away_at_the_end_has_every_copy_once_the_command_is_repeated(
    bench: Bench, store: ObjectStore, tmp_path: Path
) -> None:
    """And another machine, which has nothing, goes on from there."""
    run_dir, copy, gate = tmp_path / "run", f"{COPY}/{tmp_path.name}", Gate(tmp_path, 10)
    option = f"--checkpoints.copy-to={copy}"
    group = bench.start(run_dir, option, faults=[knowing(store), gate.fault])
    gate.wait(group)
    store.go_away()
    gate.open()
    summary = group.summary()
    faults.require_same(run_dir, summary, bench.undisturbed())
    assert "or when the command is repeated" in summary["stderr"]
    store.come_back()
    assert bench.run(run_dir, option, faults=[knowing(store)])["was_finished"]
    assert copied(store, copy) == kept(run_dir)
    elsewhere = tmp_path / "elsewhere"
    summary = bench.run(elsewhere, option, faults=[knowing(store)])
    assert summary["resumed_from"] == 12
    faults.require_same(elsewhere, summary, bench.undisturbed())
