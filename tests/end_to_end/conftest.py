"""An untrained tokenizer for the whole session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
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
