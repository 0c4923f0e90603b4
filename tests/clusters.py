"""Real Ray clusters of one or two nodes on loopback."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.ports import free_ports

START_SECONDS = 60.0
OBJECT_STORE_BYTES = 150_000_000


@dataclass(frozen=True, slots=True)
class Cluster:
    address: str
    """The dashboard, where jobs are submitted."""
    environment: dict[str, str]
    """What a client needs in its environment: the token."""
    gcs_address: str
    """Where a driver of its own connects to (RAY_ADDRESS)."""
    add_node: Callable[[], None]
    """Starts another one and waits for it."""
    added: list[int]
    """Process ids of the nodes that are not the head."""

    @property
    def second_node(self) -> int:
        """Its process id."""
        return self.added[0]


@contextlib.contextmanager
def two_node_cluster(environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Two nodes of one CPU each, with own folders and token authentication; stopped by their process ids.

    `environment`: what their workers find there besides the test's own.
    """
    with one_node_cluster(environment) as cluster:
        cluster.add_node()
        yield cluster


@contextlib.contextmanager
def one_node_cluster(environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """The head of such a one."""
    with contextlib.ExitStack() as stack:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        on_nodes = dict(environment or {}) | token
        gcs, dashboard, client = free_ports(3)
        stack.enter_context(
            _node(
                stack.enter_context(_short_folder()), on_nodes,
                "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            )
        )  # fmt: skip
        address = f"http://127.0.0.1:{dashboard}"
        _wait_for_nodes(address, token, 1)
        added: list[int] = []

        def add_node() -> None:
            folder = stack.enter_context(_short_folder())
            added.append(stack.enter_context(_node(folder, on_nodes, f"--address=127.0.0.1:{gcs}")))
            _wait_for_nodes(address, token, 1 + len(added))

        yield Cluster(address, token, f"127.0.0.1:{gcs}", add_node, added)


@contextlib.contextmanager
def _node(folder: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[int]:
    """One `ray start --block`, not started from the checkout; its processes end with it. Gives its id."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))
    }
    (agent,) = free_ports(1)
    with open(folder / "node.log", "wb") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--block",
                "--num-cpus=1", "--num-gpus=0",
                f"--object-store-memory={OBJECT_STORE_BYTES}", f"--dashboard-agent-listen-port={agent}",
                f"--temp-dir={folder}", "--disable-usage-stats", *arguments,
            ],
            env={**inherited, **environment, "PATH": path}, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process.pid
    finally:
        kill_node(process.pid)  # nothing of it is needed again
        process.wait()


def kill_node(pid: int) -> None:
    """Ends it and each process that it had started, at once, as if the machine were switched off."""
    node = psutil.Process(pid)
    for process in (node, *node.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _wait_for_nodes(address: str, token: Mapping[str, str], num_nodes: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    request = urllib.request.Request(
        f"{address}/nodes?view=summary", headers={"Authorization": f"Bearer {token['RAY_AUTH_TOKEN']}"}
    )
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            body = urllib.request.urlopen(request, timeout=5).read().decode()
            if body.count('"state": "ALIVE"') + body.count('"state":"ALIVE"') >= num_nodes:
                return
        time.sleep(0.3)
    raise TimeoutError(f"{address} had no {num_nodes} living nodes within {START_SECONDS:g} s")


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """Ray puts Unix sockets in its folder, and their paths may have 107 characters at most."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
