"""The way onto a Ray cluster: that of RAY_ADDRESS (a submitted job has it set), or a local one of our own."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, cast

from infra.errors import ClusterError
from infra.hashing import MIB
from infra.ray_start import unattended, undisturbed, without_false_alarms

ANSWER_SECONDS = 10.0
ALONE_SECONDS = 10
"""How long processes of a local Ray outlive the one that keeps it together. Ray's own minute is for clusters,
where it may be started again; here it has died with the command."""


@contextlib.contextmanager
def connected(*, num_cpus: int | None = None, object_store_mb: int = 512) -> Iterator[None]:
    """Ray is there inside the block; a local one that was started for it ends with it. Nests freely."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    ours: dict[str, Any] = {
        "address": "local", "num_cpus": num_cpus, "include_dashboard": False,
        "object_store_memory": object_store_mb * MIB,
        "_system_config": {"gcs_rpc_server_reconnect_timeout_s": ALONE_SECONDS},
    }  # fmt: skip
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _expect_an_answer(address)
    try:
        with undisturbed(), _start_explained(), without_false_alarms():
            if address:
                ray.init(**quiet)
            else:
                with unattended():
                    ray.init(**quiet, **ours)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _start_explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a bare one, where a node was too slow to start
        raise ClusterError(_no_start(error)) from error


def _expect_an_answer(address: str) -> None:
    """Raises ClusterError where nobody listens: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto" and the like: Ray looks for it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray answers at {address}: {error}; check RAY_ADDRESS, or unset it for a Ray of this machine"
        ) from None


def _no_start(error: Exception) -> str:
    if address := os.environ.get("RAY_ADDRESS"):
        return f"Ray at {address} did not answer: {error}; check RAY_ADDRESS"
    return f"Ray did not start on this machine: {error}; repeat the command when the machine is less busy"


def num_cpus() -> int:
    return max(1, int(_resources().get("CPU", 1)))


def num_gpus() -> int:
    return int(_resources().get("GPU", 0))


def _resources() -> dict[str, float]:
    import ray

    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]


def free() -> str:
    """What no one uses at the moment, in words."""
    there = _free_resources()
    return " and ".join(f"{there.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def places(*, num_cpus: float, num_gpus: float = 0) -> int:
    """How many workers of such a size could start at the moment."""
    there = _free_resources()
    wanted = {name: each for name, each in (("CPU", num_cpus), ("GPU", num_gpus)) if each}
    return min(int(there.get(name, 0) / each) for name, each in wanted.items())


def may_grow() -> bool:
    """A cluster may get more nodes while a job waits for them; a machine stays as it is."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _free_resources() -> dict[str, float]:
    import ray

    return cast(dict[str, float], ray.available_resources())  # type: ignore[no-untyped-call]
