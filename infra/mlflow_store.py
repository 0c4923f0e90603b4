"""The connection to MLflow: where its server or database is, a client of it, its errors as sentences.

What a client is used for is up to `infra.tracking` (runs) and `infra.registry` (model versions). MLflow is
imported at the first call of `connect`, since that takes seconds; where it is not installed, `available()` is
False and metrics stay in files.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import RegistryError
from infra.file_locks import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "reelgpt"
FIRST_ANSWER_SECONDS = 5.0

MANNERS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Where the user set nothing else: no chatter, and a server that goes away is noticed within seconds."""


@dataclass(slots=True)
class _LastAnswer:
    at: float = 0.0


_last_answer = _LastAnswer()


def available() -> bool:
    return importlib.util.find_spec("mlflow") is not None


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a database in the working directory; a path in it is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}"
    return uri if ":" in uri else os.path.abspath(uri)


def store_name() -> str:
    """`tracking_uri()` for messages, where a password has no place."""
    return _without_password(tracking_uri())


def _without_password(text: str) -> str:
    return re.sub(r"(://[^/@:]*):.*@", r"\1:***@", text)


def is_set_up() -> bool:
    """Whether MLflow is in use here: a place for it is named, or the working directory has its database."""
    database = _database(tracking_uri())
    return available() and (
        bool(os.environ.get("MLFLOW_TRACKING_URI")) or (database is not None and database.exists())
    )


def models_in_a_file() -> frozenset[str] | None:
    """The models of a registry that is a SQLite file, none where it is not there yet: connecting would make
    it, and importing MLflow takes seconds. None where only MLflow can tell."""
    database = _database(_registry_uri())
    if database is None:
        return None
    if not database.exists():
        return frozenset()
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return frozenset(name for (name,) in connection.execute("SELECT name FROM registered_models"))
    except sqlite3.Error:  # no database, or none with MLflow's tables: it says so better
        return None


def prepare() -> None:
    """Imports MLflow, which takes seconds and is no thread's matter: others import at the same time."""
    _import_client()


def make_database() -> None:
    """Where it is to be a file and is not there. It takes seconds, on a busy machine a minute, in which there
    is no answer; broken off, it begins from nothing. Raises RegistryError."""
    database = _database(tracking_uri())
    if database is not None and not database.exists():
        connect()


def connect() -> "MlflowClient":
    """A client of `tracking_uri()` whose tables exist. Raises RegistryError with the remedy if it is away."""
    _require_answer(tracking_uri())
    return _connect(tracking_uri(), _registry_uri())


def experiment_id(client: "MlflowClient") -> str:
    """The experiment that holds our runs, made where there is none; artifacts go beside a database."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    with explained(f"the experiment {name!r}"), _alone(_database(client.tracking_uri)):
        found = client.get_experiment_by_name(name)
        return found.experiment_id if found else _create_experiment(client, name)


def answered_at() -> float:
    """When MLflow last took what it was told, on the monotonic clock: how a slow store is told from one that
    hangs."""
    return _last_answer.at


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an answer of MLflow's that is an error into one sentence with the remedy."""
    from mlflow.exceptions import MlflowException

    try:
        yield
        _last_answer.at = time.monotonic()
    except MlflowException as error:
        raise _refused(what, error.message) from error
    except _raw_errors() as error:
        raise _refused(what, str(error)) from error


def _refused(what: str, answer: str) -> RegistryError:
    reason = _without_password(answer.strip().partition("\n")[0])
    return RegistryError(f"MLflow at {store_name()} did not take {what}: {reason}")


def _raw_errors() -> tuple[type[Exception], ...]:
    """What MLflow leaves as it comes: of artifacts (requests' are such too), of a driver, of a database."""
    databases = sys.modules.get("sqlalchemy.exc")  # a client of servers alone lives without
    return (OSError, ImportError, *(() if databases is None else (databases.SQLAlchemyError,)))


def _registry_uri() -> str:
    return os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri()


@functools.cache
def _connect(uri: str, registry_uri: str) -> "MlflowClient":
    client_class, database = _import_client(), _database(uri)
    with explained("a connection"), _alone(database):
        if database and database.exists():
            _require_database(database)
        elif database:
            _make_tables(client_class, database)
        client = client_class(uri, registry_uri)
        client.search_experiments(max_results=1)
        return client


def _require_database(path: Path) -> None:
    """Says at once that a file is none, or cannot be opened; MLflow tries for minutes."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise RegistryError(
            f"{path} cannot be used as the MLflow database ({error}); set MLFLOW_TRACKING_URI to another"
        ) from None


def _make_tables(client_class: type["MlflowClient"], database: Path) -> None:
    """Complete or absent: MLflow can never make the rest of its tables where a kill left some of them."""
    unfinished = database.with_name(f".{database.name}.unfinished")
    for left in database.parent.glob(f"{unfinished.name}*"):  # its journal, too
        left.unlink()
    try:
        unfinished.touch()  # an empty database: where it cannot be, MLflow would try for minutes
    except OSError as error:
        raise _unmakeable(database, error) from None
    client_class(f"sqlite:///{unfinished}").search_experiments(max_results=1)
    unfinished.replace(database)


def _unmakeable(path: Path, error: OSError) -> RegistryError:
    return RegistryError(
        f"the MLflow database {path} cannot be made ({error.strerror}); set MLFLOW_TRACKING_URI"
    )


def _import_client() -> type["MlflowClient"]:
    for variable, value in MANNERS.items():
        os.environ.setdefault(variable, value)
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise RegistryError(
            "mlflow is not installed here; `pip install mlflow` gives runs and the registry"
        ) from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient


def _require_answer(uri: str) -> None:
    """Says in seconds that a server is away; MLflow's own retries go on for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=FIRST_ANSWER_SECONDS)
    except requests.RequestException:
        raise RegistryError(
            f"no MLflow server answers at {store_name()}; start it, or set MLFLOW_TRACKING_URI to another"
        ) from None


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """One process at a time makes a database's tables or experiment: MLflow does not guard that itself."""
    if database is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(database.parent))
        except OSError as error:
            raise _unmakeable(database, error) from None
        yield


def _create_experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    database = _database(client.tracking_uri)
    try:
        return client.create_experiment(name, str(database.parent / "mlruns") if database else None)
    except MlflowException as error:
        found = client.get_experiment_by_name(name)  # another client of a server was faster
        if found is None:
            raise error
        return found.experiment_id
