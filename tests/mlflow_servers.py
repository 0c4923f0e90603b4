"""A real MLflow server, which can be killed and started again at the same address with the same data."""

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.ports import free_ports

START_SECONDS = 150.0
"""Alone it takes eight; beside other tests of two cores it has taken sixty."""


class MlflowServer:
    """A database and a folder of artifacts, served while it is started."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        (self._port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Does nothing where it runs."""
        if self._process is not None:
            return
        command = [
            sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, env=environment, start_new_session=True
            )
        self._wait_until_healthy()

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the server and its worker
            self._process.wait()
            self._process = None

    def suspend(self, *, is_suspended: bool) -> None:
        """It keeps its connections and takes new ones, and answers none of them."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP if is_suspended else signal.SIGCONT)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.address}/health", timeout=2).read()
                return
            time.sleep(0.1)
        raise TimeoutError(f"no MLflow server at {self.address} within {START_SECONDS:g} s")


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def mute_server() -> Iterator[str]:
    """The address of a server that says that it is well, and answers nothing else before the block ends."""
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                ended.wait()
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        ended.set()
        server.shutdown()
