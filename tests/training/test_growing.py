"""What Ray Train's controller does before it ends a group; a whole run that grows: `test_faults_ray.py`."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra import cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


def status(*, finished: bool = False, errors: dict[int, Exception] | None = None) -> SimpleNamespace:
    """Of a group of workers, as Ray Train has it."""
    return SimpleNamespace(finished=finished, errors=errors or {})


AT_WORK = status()


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    with cluster.connected(num_cpus=1):
        yield


@pytest.fixture
def worker(connected: None) -> Iterator[Any]:  # noqa: ARG001
    """An actor that answers as a worker of Ray Train does."""
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def __init__(self) -> None:
            self.running = True

        def poll_status(self) -> SimpleNamespace:
            return SimpleNamespace(running=self.running)

        def end(self) -> None:
            self.running = False

    actor = Worker.remote()
    yield actor
    ray.kill(actor)


def group(worker: Any, found: SimpleNamespace | None = AT_WORK) -> SimpleNamespace:
    workers = [SimpleNamespace(actor=worker)]
    return SimpleNamespace(get_latest_poll_status=lambda: found, get_workers=lambda: workers)


def end(group: SimpleNamespace, save_file: Path, *, patience_seconds: float = 60.0) -> float:
    """As Ray Train does; the seconds that it was kept."""
    from training.launching.growing import SavedFirst

    began = time.monotonic()
    callback = SavedFirst(str(save_file), patience_seconds=patience_seconds)
    callback.before_worker_group_shutdown(group)
    return time.monotonic() - began


def test_a_group_at_work_is_asked_and_ends_once_it_has_answered(worker: Any, tmp_path: Path) -> None:
    save_file, asked = tmp_path / "save", threading.Event()

    def answer() -> None:
        while not save_file.exists():
            time.sleep(0.01)
        asked.set()
        time.sleep(1.0)
        save_file.unlink()

    threading.Thread(target=answer).start()
    assert 1.0 <= end(group(worker), save_file) < 30.0
    assert asked.is_set()


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_who_has_died_meanwhile_is_not_waited_for(worker: Any, tmp_path: Path, how: str) -> None:
    import ray

    ray.get(worker.poll_status.remote())
    ray.kill(worker) if how == "killed" else ray.get(worker.end.remote())
    assert end(group(worker), tmp_path / "save") < 30.0
    assert not (tmp_path / "save").exists()


def test_who_does_not_answer_is_waited_for_no_longer_than_patience(worker: Any, tmp_path: Path) -> None:
    assert 2.0 <= end(group(worker), tmp_path / "save", patience_seconds=2.0) < 30.0
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize("found", [None, status(finished=True), status(errors={0: RuntimeError()})])
def test_a_group_that_has_ended_is_not_asked(worker: Any, tmp_path: Path, found: Any) -> None:
    assert end(group(worker, found), tmp_path / "save") < 1.0


def test_a_run_directory_that_cannot_be_written_holds_nobody_up(worker: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert end(group(worker), tmp_path / "file" / "save") < 10.0
