"""What every test gets: one thread, and an MLflow store and working directory of its own."""

from collections import Counter
from pathlib import Path

import pytest

WEIGHTS = {"ray": 10, "deepspeed": 3, "faults": 3, "slow": 1}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: no process is left with a long one at the end."""
    weights = Counter[Path]()
    for item in items:
        weights[item.path] += sum(WEIGHTS.get(marker.name, 0) for marker in item.iter_markers())
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths and the default MLflow store land in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tokenizer_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained tokenizer for the whole session."""
    import torch

    from model.bundle import save_bundle
    from model.config import TokenizerConfig
    from model.tokenizer import Tokenizer

    torch.manual_seed(0)
    place: Path = tmp_path_factory.mktemp("bundles") / "tokenizer"
    save_bundle(
        str(place), Tokenizer(TokenizerConfig(base_channels=8, num_heads=1)), lineage={}, card="untrained"
    )
    return str(place)


@pytest.fixture(scope="module")
def _mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def mlflow_database(
    own_place: None,  # noqa: ARG001
    _mlflow_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """One database for all tests of a file: making one takes seconds. The first to connect makes it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{_mlflow_folder}/mlflow.db")
    return _mlflow_folder / "mlflow.db"
