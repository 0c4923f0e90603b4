import subprocess
from pathlib import Path

import pytest

from infra.commit import COMMIT_VARIABLE, code_commit


@pytest.fixture(autouse=True)
def _nobody_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)


def git(checkout: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(checkout), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path.resolve()


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    assert code_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_changed_file_makes_the_commit_dirty_and_an_output_does_not(checkout: Path) -> None:
    (checkout / "output.bin").write_text("made by a run")
    assert not code_commit(checkout).endswith("-dirty")
    (checkout / "code.py").write_text("two")
    assert code_commit(checkout) == f"{git(checkout, 'rev-parse', 'HEAD')}-dirty"


def test_a_copy_without_its_git_folder_is_unknown_even_inside_another_checkout(checkout: Path) -> None:
    (checkout / "copy").mkdir()
    assert code_commit(checkout / "copy") == "unknown"
    assert code_commit(Path("/")) == "unknown"


def test_a_job_says_the_commit_that_it_was_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "abc-dirty")
    assert code_commit(checkout) == "abc-dirty"
