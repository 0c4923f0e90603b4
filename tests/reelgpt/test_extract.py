"""What `reelgpt extract` refuses before anything starts: one sentence, exit code 2."""

from pathlib import Path

import pytest

from reelgpt.main import main


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--score-only", "--keep-rejected"), "--score-only keeps no frames and --keep-rejected all"),
        (("--duplicates.near-bits", "99"), "near_bits=99 is no distance of two like pictures"),
        (("--sidecar", "nowhere.csv"), "nowhere.csv cannot be read"),
        (("--sidecar", "facts.csv"), "has a column 'subtitle', which means nothing here"),
    ],
)
def test_choices_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"never looked at")
    (tmp_path / "facts.csv").write_text("source,subtitle\na.mp4,hello\n")
    assert main(["extract", "a.mp4", "--out", "out", *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
