import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.leases import Lease

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
    root, command = str(Path(__file__).parents[2]), [sys.executable, "-c", HOLD, lease_uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
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
    with Lease(lease_uri):
        assert json.loads(Path(lease_uri).read_text())["owner"]["pid"] != holder.pid


def test_a_writer_of_another_machine_is_dead_once_its_heart_stopped(lease_uri: str) -> None:
    owner = {"id": "x", "host": "elsewhere/1", "pid": 1, "started": "1"}
    Path(lease_uri).parent.mkdir()
    Path(lease_uri).write_text(json.dumps({"owner": owner, "heartbeat": 0.0}))
    with Lease(lease_uri):
        pass


def test_one_who_died_while_taking_over_is_taken_over_too(lease_uri: str) -> None:
    Path(lease_uri).parent.mkdir()
    for place, owner_id in ((lease_uri, "first"), (f"{lease_uri}.after-first", "second")):
        owner = {"id": owner_id, "host": "elsewhere/1", "pid": 1, "started": "1"}
        Path(place).write_text(json.dumps({"owner": owner, "heartbeat": 0.0}))
    with Lease(lease_uri):
        assert json.loads(Path(lease_uri).read_text())["owner"]["host"] != "elsewhere/1"
    assert list(Path(lease_uri).parent.iterdir()) == []


def test_a_lease_that_somebody_took_over_is_left_to_them(lease_uri: str) -> None:
    with Lease(lease_uri):
        theirs = {"id": "x", "host": "elsewhere/1", "pid": 1, "started": "1"}
        Path(lease_uri).write_text(json.dumps({"owner": theirs, "heartbeat": 0.0}))
    assert json.loads(Path(lease_uri).read_text())["owner"]["id"] == "x"


def test_nothing_is_left_when_the_lease_ends(lease_uri: str) -> None:
    with Lease(lease_uri):
        assert Path(lease_uri).exists()
    assert list(Path(lease_uri).parent.iterdir()) == []
