"""Against a real S3 server, and a proxy before it that misbehaves."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import leases, object_stores, storage
from infra.errors import StorageError, UsageError
from infra.leases import Lease
from tests.misbehaving_proxy import Fault, Proxy, misbehaving_proxy, times
from tests.object_store import ObjectStore, object_store

pytestmark = pytest.mark.slow
DATA = os.urandom(1 << 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture(scope="module")
def proxied(store: ObjectStore) -> Iterator[Proxy]:
    """A bucket behind the proxy, which this process reaches by it."""
    before = dict(os.environ)
    with misbehaving_proxy(store.environment["AWS_ENDPOINT_URL"]) as started:
        os.environ.update(store.environment | {"AWS_ENDPOINT_URL": started.url})
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield started
        s3fs.S3FileSystem.clear_instance_cache()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def proxy(proxied: Proxy) -> Iterator[Proxy]:
    storage.exists("s3://bucket/warm-up")
    proxied.seen.clear()
    yield proxied
    proxied.plan = lambda _method, _path: None


EXHAUSTIVE = (pytest.mark.faults, pytest.mark.exhaustive)


@pytest.mark.faults
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(reset=True), id="reset"),
        *(pytest.param(Fault(status=n), id=str(n), marks=EXHAUSTIVE) for n in (429, 500, 503)),
    ],
)
def test_a_passing_trouble_is_waited_out(proxy: Proxy, fault: Fault) -> None:
    for method, act in (
        ("PUT", lambda: storage.write("s3://bucket/file", DATA)),
        ("GET", lambda: storage.read_bytes("s3://bucket/file")),
        ("GET", lambda: storage.list_files("s3://bucket/")),
        ("HEAD", lambda: storage.exists("s3://bucket/file")),
    ):
        proxy.plan = times(2, fault, method=method)
        act()
    proxy.plan = times(2, fault, method="HEAD")
    assert storage.describe("s3://bucket/file") is not None
    assert storage.read_bytes("s3://bucket/file") == DATA


@pytest.mark.faults
@pytest.mark.parametrize("share", [0.5, *(pytest.param(x, marks=EXHAUSTIVE) for x in (0.0, 0.999))])
def test_a_body_that_breaks_off_never_becomes_short_data(proxy: Proxy, tmp_path: Path, share: float) -> None:
    storage.write("s3://bucket/file", DATA)
    proxy.plan = times(2, Fault(cut_at=share), method="GET", path="file")
    assert storage.read_bytes("s3://bucket/file") == DATA
    proxy.plan = times(2, Fault(cut_at=share), method="GET", path="file")
    storage.fetch("s3://bucket/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == DATA
    proxy.plan = times(2, Fault(cut_at=share), method="GET", path="file")
    with storage.open_input("s3://bucket/file") as stream:
        stream.seek(1000)
        assert stream.read(5000) == DATA[1000:6000]
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == DATA[-10:]


@pytest.mark.faults
def test_a_body_that_always_breaks_off_is_an_error_and_leaves_no_file(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_stores, "BODY_PATIENCE_SECONDS", 1.0)
    storage.write("s3://bucket/file", DATA)
    proxy.plan = lambda method, _: Fault(cut_at=0.5) if method == "GET" else None
    with pytest.raises(StorageError, match="s3://bucket/file cannot be reached"):
        storage.read_bytes("s3://bucket/file")
    with pytest.raises(StorageError, match="s3://bucket/file cannot be reached"):
        storage.fetch("s3://bucket/file", str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.timeout(300)
def test_a_trouble_that_does_not_pass_is_said_within_two_minutes(proxy: Proxy) -> None:
    storage.write("s3://bucket/file", DATA)
    for fault, said in ((Fault(status=503), "overloaded"), (Fault(reset=True), "cannot be reached")):
        proxy.plan = lambda _method, _path, fault=fault: fault  # type: ignore[misc]
        started = time.monotonic()
        with pytest.raises(StorageError, match=said):
            storage.describe("s3://bucket/file")
        assert 1.0 < time.monotonic() - started < 120.0


@pytest.mark.faults
def test_a_create_whose_answer_is_lost_knows_its_own_bytes_again(proxy: Proxy) -> None:
    assert storage.create("s3://bucket/created/first", b"any")  # the store has shown that it can
    proxy.plan = times(1, Fault(lose_answer=True), method="PUT", path="created/mine")
    assert storage.create("s3://bucket/created/mine", b"mine")
    assert not storage.create("s3://bucket/created/mine", b"yours")
    assert storage.read_bytes("s3://bucket/created/mine") == b"mine"


@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize(
    "size", [pytest.param(10, id="one put"), pytest.param(101 << 20, id="in parts", marks=EXHAUSTIVE)]
)
def test_one_of_many_creators_wins_whatever_the_size(size: int) -> None:
    uri = f"s3://bucket/created/of-{size}"
    start = threading.Barrier(3)

    def race(number: int) -> bool:
        data = bytes([number]) * size
        start.wait()
        return storage.create(uri, data)

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(race, range(3)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == bytes([won.index(True)]) * size
    storage.delete(uri)


@pytest.mark.usefixtures("proxy")
def test_listings_and_looks_are_of_this_moment(store: ObjectStore) -> None:
    storage.write("s3://bucket/now/a", b"1")
    assert [file.name for file in storage.list_files("s3://bucket/now")] == ["a"]
    elsewhere = (
        "from infra import storage; storage.write('s3://bucket/now/b', b'longer');"
        "storage.write('s3://bucket/now/a', b'22')"
    )
    subprocess.run(
        [sys.executable, "-c", elsewhere], check=True, env=os.environ | store.environment, cwd=ROOT
    )
    assert [(file.name, file.size) for file in storage.list_files("s3://bucket/now")] == [("a", 2), ("b", 6)]
    assert storage.exists("s3://bucket/now/b")
    assert storage.read_bytes("s3://bucket/now/a") == b"22"
    assert [file.name for file in storage.matching("s3://bucket/now/*")] == ["a", "b"]
    found = storage.describe("s3://bucket/now/a")
    assert found is not None
    assert found.size == 2
    storage.delete("s3://bucket/now")
    assert storage.list_files("s3://bucket/now") == []


ODD_NAMES = ("a b", "ä-日本", "#1", "50%25", "a?b", "a*b", "[1]", "a::b", "a+b&c=d", "trailing.tmp")


@pytest.mark.usefixtures("proxy")
def test_odd_names_come_back_as_they_are_and_are_deleted_alone(tmp_path: Path) -> None:
    for root in ("s3://bucket/odd", str(tmp_path / "odd")):
        for name in ODD_NAMES:
            storage.write(f"{root}/{name}/x.mp4", name.encode())
        names = [file.name for file in storage.list_files(root)]
        assert names == sorted(f"{name}/x.mp4" for name in ODD_NAMES)
        for file in storage.list_files(root):
            assert storage.read_bytes(file.uri) == file.name.removesuffix("/x.mp4").encode()
            found = storage.describe(file.uri)
            assert found is not None
            assert found.name == "x.mp4"
            storage.delete(file.uri)
        assert storage.list_files(root) == []


@pytest.mark.usefixtures("proxy")
def test_parts_that_a_killed_upload_left_are_swept() -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    upload = fs.call_s3("create_multipart_upload", Bucket="bucket", Key="swept/file")
    fs.call_s3(
        "upload_part", Bucket="bucket", Key="swept/file", UploadId=upload["UploadId"], PartNumber=1, Body=DATA
    )
    assert storage.sweep("s3://bucket/swept") == 0  # it may be at work
    time.sleep(1.1)  # the store counts in seconds
    assert storage.sweep("s3://bucket/swept", older_than_seconds=0.0) == 1
    assert storage.sweep("s3://bucket/swept", older_than_seconds=0.0) == 0


@pytest.mark.usefixtures("proxy")
def test_one_writer_an_output_holds_in_a_bucket_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.2)
    uri = "s3://bucket/out/lease.json"
    with Lease(uri) as lease:
        time.sleep(0.5)
        lease.require_held()
        with pytest.raises(UsageError, match="is writing to s3://bucket/out"), Lease(uri):
            pass
    dead = {"id": "dead", "host": leases._host(), "pid": 2**22 + 1, "started": "1"}
    storage.write_json(uri, dead)
    barrier = threading.Barrier(3)

    def take(_: int) -> bool:
        barrier.wait()
        with contextlib.suppress(UsageError), Lease(uri):
            time.sleep(1.0)
            return True
        return False

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(take, range(3))).count(True) == 1
    assert storage.list_files("s3://bucket/out") == []


ROOT = Path(__file__).parents[2]
ACTS = {
    "list": "storage.list_files('s3://bucket/x')",
    "look": "storage.exists('s3://bucket/x')",
    "describe": "storage.describe('s3://bucket/x')",
    "read": "storage.read_bytes('s3://bucket/x')",
    "write": "storage.write('s3://bucket/x', b'1')",
    "create": "storage.create('s3://bucket/x', b'1')",
}
TRY_ALL = f"""
import json, os, time
from infra import storage
from infra.errors import StorageError
place = os.environ.get("PLACE", "bucket")
for name, code in {ACTS!r}.items():
    started = time.monotonic()
    try:
        eval(code.replace("bucket", place))
        print(json.dumps([name, None, 0]))
    except StorageError as error:
        print(json.dumps([name, str(error), time.monotonic() - started]))
"""
MISTAKES = {
    "access key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know this access key .* check the credentials"),
    "secret key": (
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        "the secret key is not that of .* check the credentials",
    ),
    "no keys": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
        "there are no credentials .* AWS_PROFILE",
    ),
    "bucket": ({"PLACE": "missing-bucket"}, "there is no such bucket .* make it"),
    "closed port": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        "no answer from http.* check AWS_ENDPOINT_URL",
    ),
    "host": ({"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, "no answer from .* check AWS_ENDPOINT_URL"),
    "silence": ({"AWS_ENDPOINT_URL": "silent"}, "no answer from .* check AWS_ENDPOINT_URL"),
}


@pytest.fixture
def silent() -> Iterator[str]:
    """Where somebody accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.faults
@pytest.mark.parametrize(
    "mistake",
    [
        *(pytest.param(name) for name in ("secret key", "bucket")),
        *(pytest.param(name, marks=EXHAUSTIVE) for name in MISTAKES if name not in ("secret key", "bucket")),
    ],
)
def test_what_is_set_wrongly_is_said_in_seconds_with_the_remedy(
    store: ObjectStore, silent: str, tmp_path: Path, mistake: str
) -> None:
    given, said = MISTAKES[mistake]
    change = {name: silent if value == "silent" else value for name, value in given.items()}
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | store.environment | change | {"HOME": str(tmp_path)},
        cwd=ROOT,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in answers] == list(ACTS), done.stderr
    for name, message, seconds in answers:
        assert message is not None, name
        assert re.search(said, message), (name, message)
        assert "\n" not in message
        assert seconds < 10.0, (name, seconds)
