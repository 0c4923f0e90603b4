"""torch.compile where it fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILES = """
import torch
from infra.errors import TrainingError
from training.engine.compilation import compiling_explained

values = torch.ones(8)
try:
    with compiling_explained():
        assert torch.compile(torch.sin)(values).allclose(values.sin())
except TrainingError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++")
def test_a_file_of_its_cache_that_a_kill_cut_short_is_named(tmp_path: Path) -> None:
    assert compiled(tmp_path) == ""
    libraries = list(tmp_path.rglob("*.main.so"))
    assert libraries
    for library in libraries:
        library.write_bytes(b"")
    said = compiled(tmp_path)
    assert "file too short" in said
    assert f"delete its cache, {tmp_path}, and repeat the command" in said
    assert len(said.splitlines()) == 1


def compiled(cache: Path) -> str:
    """What a process of its own says."""
    words = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    environment = os.environ | words | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", COMPILES]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=300
    ).stdout
