import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from infra import mlflow_store
from infra.errors import RegistryError


def test_the_database_of_the_working_directory_is_named_absolutely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert mlflow_store.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert mlflow_store.tracking_uri() == f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert mlflow_store.tracking_uri() == "http://tracking:5000"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("https://ann:secret@host:5000/a", "https://ann:***@host:5000/a"),
        ("postgresql://ann:p@ss/word@host/db", "postgresql://ann:***@host/db"),
        ("https://host:5000", "https://host:5000"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_a_store_is_named_without_its_password(uri: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow_store.store_name() == name


def test_only_of_a_registry_in_a_file_the_models_are_known_without_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mlflow_store.models_in_a_file() == frozenset()
    (tmp_path / "mlflow.db").touch()
    assert mlflow_store.models_in_a_file() is None
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    assert mlflow_store.models_in_a_file() == frozenset()
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "https://host")
    assert mlflow_store.models_in_a_file() is None


def test_a_server_that_is_away_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"no MLflow server answers at http://127\.0\.0\.1:9"):
        mlflow_store.connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"http://ann:\*\*\*@127\.0\.0\.1:9"):
        mlflow_store.connect()


def test_a_database_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(RegistryError, match="cannot be made"):
        mlflow_store.connect()


@pytest.mark.slow
def test_a_database_that_is_none_is_named_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MLflow itself it is opened again and again for minutes, and refused with another library's error."""
    began = time.monotonic()
    for place, reason in ((tmp_path / "garbage.db", "file is not a database"), (tmp_path, "unable to open")):
        (tmp_path / "garbage.db").write_bytes(random.Random(0).randbytes(9000))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
        with pytest.raises(RegistryError, match=f"{reason}.*; set MLFLOW_TRACKING_URI to another"):
            mlflow_store.connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/mlflow.db")
    with pytest.raises(RegistryError, match=r"/proc/mlflow\.db cannot be made"):
        mlflow_store.connect()
    assert time.monotonic() - began < 30.0


@pytest.mark.parametrize("error", [OperationalError("SELECT 1", {}, Exception("gone")), OSError("gone")])
def test_what_mlflow_leaves_as_it_comes_is_one_sentence(error: Exception) -> None:
    with (
        pytest.raises(RegistryError, match=r"did not take a metric: .*gone"),
        mlflow_store.explained("a metric"),
    ):
        raise error


@pytest.mark.faults
def test_a_process_killed_while_it_makes_the_tables_leaves_no_half_made_database(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from infra import mlflow_store; mlflow_store.connect()"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    )
    while not any(tmp_path.glob(".mlflow.db.unfinished*")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # among the tables
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert mlflow_store.connect().search_experiments()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["mlflow.db"]
