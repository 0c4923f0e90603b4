import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import leases, storage
from infra.errors import StorageError, UsageError
from infra.leases import Lease

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from infra.leases import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lease_uri(tmp_path: Path) -> str:
    return str(tmp_path / "out" / "lease.json")


@pytest.fixture
def holder(lease_uri: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, lease_uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_holds_the_output(lease_uri: str, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UsageError, match=f"process {holder.pid} on .* is writing to"), Lease(lease_uri):
        pass


def test_a_dead_writer_is_taken_over(lease_uri: str, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with Lease(lease_uri) as lease:
        lease.require_held()
    assert list(Path(lease_uri).parent.iterdir()) == []


ELSEWHERE = {"host": "elsewhere/1", "pid": 1, "started": "1"}


def write_link(place: str, owner_id: str) -> None:
    storage.write_json(place, ELSEWHERE | {"id": owner_id})


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "DEAD_AFTER_SECONDS", 0.5)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("clock", [0.0, time.time() + 1e6], ids=["behind", "ahead"])
def test_a_writer_of_another_machine_is_dead_once_it_gives_no_sign_whatever_its_clock_says(
    lease_uri: str, clock: float
) -> None:
    write_link(lease_uri, "x")
    storage.write(f"{lease_uri}.alive-x", b"7")
    os.utime(f"{lease_uri}.alive-x", (clock, clock))
    with Lease(lease_uri):
        pass
    assert list(Path(lease_uri).parent.iterdir()) == []


@pytest.mark.usefixtures("_short")
def test_a_writer_of_another_machine_that_gives_signs_is_left_alone(
    lease_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(lease_uri) as held:
        there = leases._host()
        monkeypatch.setattr(leases, "_host", lambda: f"not {there}")
        with pytest.raises(UsageError, match="is writing to"), Lease(lease_uri):
            pass
        held.require_held()


@pytest.mark.usefixtures("_short")
def test_one_who_died_while_taking_over_is_taken_over_too(lease_uri: str) -> None:
    write_link(lease_uri, "first")
    write_link(f"{lease_uri}.after-first", "second")
    with Lease(lease_uri) as lease:
        lease.require_held()
        assert len(list(Path(lease_uri).parent.iterdir())) >= 3
    assert list(Path(lease_uri).parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("_short")
def test_of_many_that_see_one_dead_writer_one_takes_over(lease_uri: str) -> None:
    write_link(lease_uri, "dead")
    ended = threading.Event()

    def take(_: int) -> bool:
        try:
            with Lease(lease_uri) as lease:
                ended.wait(1.0)
                lease.require_held()
                return True
        except UsageError:
            return False

    with ThreadPoolExecutor(5) as pool:
        won = list(pool.map(take, range(5)))
    assert won.count(True) == 1
    assert list(Path(lease_uri).parent.iterdir()) == []


WAKE_UP = """
import sys
from infra import leases
leases._host = lambda: "elsewhere/1"
with leases.Lease(sys.argv[1]) as lease:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.require_held()
    except leases.StorageError as error:
        print(error, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.faults
@pytest.mark.usefixtures("_short")
def test_a_suspended_writer_that_was_taken_over_notices_and_harms_nothing(lease_uri: str) -> None:
    command = [sys.executable, "-c", WAKE_UP, lease_uri]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as suspended:
        assert suspended.stdin is not None
        assert suspended.stdout is not None
        assert suspended.stdout.readline() == "held\n"
        suspended.send_signal(signal.SIGSTOP)
        with Lease(lease_uri) as taker:
            suspended.send_signal(signal.SIGCONT)
            suspended.stdin.write("\n")
            suspended.stdin.flush()
            assert "another command took" in suspended.stdout.readline()
            suspended.stdin.write("\n")
            suspended.stdin.flush()
            assert suspended.wait(10) == 0
            taker.require_held()
            with pytest.raises(UsageError), Lease(lease_uri):
                pass
    assert list(Path(lease_uri).parent.iterdir()) == []


def test_a_lease_that_somebody_took_over_is_left_to_them(lease_uri: str) -> None:
    with Lease(lease_uri) as lease:
        owner = json.loads(Path(lease_uri).read_text())["id"]
        write_link(f"{lease_uri}.after-{owner}", "theirs")
        with pytest.raises(StorageError, match="another command took"):
            lease.require_held()
    assert len(list(Path(lease_uri).parent.iterdir())) == 2


def test_a_link_made_once_the_chain_had_ended_holds_nothing(lease_uri: str) -> None:
    write_link(lease_uri, "first")
    late = Lease(lease_uri)
    late._place = f"{lease_uri}.after-gone"
    assert not late._take()
    assert [path.name for path in Path(lease_uri).parent.iterdir()] == ["lease.json"]


def test_nothing_is_left_when_the_lease_ends(lease_uri: str) -> None:
    with Lease(lease_uri):
        assert Path(lease_uri).exists()
    assert list(Path(lease_uri).parent.iterdir()) == []


def test_a_file_that_is_no_lease_is_named(lease_uri: str) -> None:
    storage.write(lease_uri, b'{"heartbeat": 1}')
    with pytest.raises(StorageError, match="is not a lease of ours"), Lease(lease_uri):
        pass
