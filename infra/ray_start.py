"""How Ray is started: undisturbed by signals, silent on the terminal, and with no process that nobody asks.

None of this has a public switch: what is replaced of Ray's is replaced while it starts alone.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

from infra.signals import postponed

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
STDERR = 2


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A signal is heard once Ray is there: half started it could not be ended. Ray would put handlers of its
    own in the place of the caller's, one of them before it starts, which exit without a word."""
    import ray

    with _replaced(ray._private.utils, "set_sigterm_handler", lambda _: None), postponed():
        yield


@contextlib.contextmanager
def unattended() -> Iterator[None]:
    """A Ray of this machine alone starts without three processes that serve nobody here: the server of the
    dashboard (which `include_dashboard=False` starts all the same, to report usage), the monitor (which asks
    clouds for nodes) and the carrier of what workers print (`log_to_driver=False` listens to none of it).

    They are two of five seconds and 3 of 6 CPU seconds of a start on two cores.
    """
    from ray._private import node, parameter

    every: Any = parameter.RayParams
    fewer = partial(every, no_monitor=True, include_log_monitor=False)
    with (
        _replaced(parameter, "RayParams", fewer),
        _replaced(node.Node, "start_api_server", lambda *_, **__: None),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    rays_own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, rays_own)


@contextlib.contextmanager
def without_false_alarms() -> Iterator[None]:
    """Ray's core writes errors to the terminal, whatever `logging_level` says; one of them comes with every
    pool of actors that may restart ("constructor arguments in the object store"): Ray Data keeps those
    arguments itself. What fails comes as an exception. RAY_BACKEND_LOG_LEVEL, where it is set, is obeyed;
    that it was set is told on the terminal too, and left out here.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "fatal"
    try:
        with _stderr_without(LOG_LEVEL):
            yield
    finally:
        del os.environ[LOG_LEVEL]


@contextlib.contextmanager
def _stderr_without(word: str) -> Iterator[None]:
    """Keeps what is written to the terminal, by native code too, and passes on the lines without the word."""
    sys.stderr.flush()
    terminal = os.dup(STDERR)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, STDERR)
            os.close(terminal)
            said.seek(0)
            for line in said:
                if word.encode() not in line:
                    os.write(STDERR, line)
