"""The one door to Ray jobs: sends the code and a command line to a cluster, follows it, gives its exit code.

Knows addresses, the package of code that travels and the log that comes back. Which commands may travel is
`reelgpt.submit`'s matter. A cluster with token authentication takes the token from RAY_AUTH_TOKEN or
RAY_AUTH_TOKEN_PATH, as every Ray command does: it never enters a runtime environment.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from infra.commit import CHECKOUT
from infra.errors import JobError, UsageError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray lets these win over an address given in code; here the address given wins."""

FLOORS = ("infra", "model", "pipelines", "reelgpt", "training")
"""The folders of the checkout that are code. Nothing else travels: no data, no outputs, no secrets."""

TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
POLL_SECONDS = 0.5
COMMAND_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class JobEnd:
    status: str
    """Ray's word: `SUCCEEDED`, `FAILED` or `STOPPED`."""
    exit_code: int


def choose_address(address: str | None, *, insecure: bool) -> str:
    """The jobs server's URL: the one given, the one in the environment, or this machine's.

    Raises UsageError for plain http to another machine, since whoever is in between could read the token
    and run code on the cluster.
    """
    chosen = address or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
    url = (chosen or DEFAULT_ADDRESS).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{url!r} is no Ray jobs server; give the URL of the dashboard, such as {DEFAULT_ADDRESS}"
        )
    if parts.scheme == "http" and not insecure and not _is_loopback(parts.hostname):
        raise UsageError(
            f"{url} would carry commands and token unencrypted to another machine; use https, an ssh tunnel "
            f"(`ssh -L 8265:127.0.0.1:8265 {parts.hostname}`), or add --insecure on a network you trust"
        )
    return url


def submit_job(entrypoint: str, *, address: str, environment: Mapping[str, str]) -> str:
    """Starts `entrypoint` on the cluster, in a copy of this checkout's code, and returns the job's id.

    `python` is the one on the PATH of the cluster's head node; it and the workers import the copy.
    """
    with _explained(address), _package_of_code() as folder:
        runtime_env = {"working_dir": folder, "env_vars": dict(environment)}
        return _client(address).submit_job(entrypoint=entrypoint, runtime_env=runtime_env)


def follow_job(job_id: str, *, address: str, write: Callable[[str], object]) -> JobEnd:
    """Hands the job's output to `write` as it comes, and waits for the job's end."""
    with _explained(address):
        client = _client(address)
        if not asyncio.run(_stream_log(client, job_id, write)):
            write("\n[the log broke off; waiting for the end of the job]\n")
        return _wait_for_end(client, job_id)


async def _stream_log(client: "JobSubmissionClient", job_id: str, write: Callable[[str], object]) -> bool:
    """False when the connection broke before the log ended."""
    import aiohttp

    try:
        async for text in client.tail_job_logs(job_id):
            write(text)
    except (RuntimeError, aiohttp.ClientError):
        return False
    return True


def _wait_for_end(client: "JobSubmissionClient", job_id: str) -> JobEnd:
    while not (job := client.get_job_info(job_id)).status.is_terminal():
        time.sleep(POLL_SECONDS)
    status = job.status.value
    if job.driver_exit_code == COMMAND_NOT_FOUND:
        raise JobError(
            f"job {job_id} found no `python` on the cluster's PATH; start Ray there in the environment "
            f"that reelgpt is installed in"
        )
    if job.driver_exit_code is None:
        raise JobError(f"job {job_id} {status.lower()} before its command ended: {job.message}")
    return JobEnd(status, job.driver_exit_code)


def _client(address: str) -> "JobSubmissionClient":
    with _address_alone():
        from ray.job_submission import JobSubmissionClient

        for talkative in TALKATIVE:
            logging.getLogger(talkative).setLevel(logging.WARNING)
        return JobSubmissionClient(address)


@contextlib.contextmanager
def _address_alone() -> Iterator[None]:
    """Hides the variables that Ray would prefer to the address it is given."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _package_of_code(checkout: Path = CHECKOUT) -> Iterator[str]:
    """A folder with the code alone: small, the same for the same code, and far below Ray's limit."""
    with tempfile.TemporaryDirectory() as folder:
        for floor in FLOORS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(checkout / floor, Path(folder, floor), ignore=ignored)
        yield folder


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turns what the jobs client raises into one sentence with the remedy."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise JobError(
            f"the cluster at {address} wants a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, requests.ConnectionError):
        raise JobError(
            f"no Ray jobs server answers at {address}; start one with `ray start --head`, or give --address"
        ) from None
    except (RuntimeError, requests.RequestException) as error:
        raise JobError(f"the Ray jobs server at {address} refused: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
