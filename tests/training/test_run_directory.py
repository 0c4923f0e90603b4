from pathlib import Path

import pytest

from infra.errors import TrainingError, UsageError
from training.metrics_lines import read_lines
from training.run_directory import RunDirectory


def test_a_remote_run_directory_is_refused() -> None:
    with pytest.raises(UsageError, match="not on a file system"):
        RunDirectory.at("s3://bucket/run")


def test_a_line_cut_off_by_a_kill_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "lo')
    assert list(read_lines(str(path))) == [{"step": 1, "loss": 0.1}]


def test_what_cannot_hold_what_the_run_writes_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory.at(str(tmp_path))
    directory.require_folders()
    directory.require_writable()
    Path(directory.samples).write_text("")
    with pytest.raises(UsageError, match=r"samples is no folder, and has to be one"):
        directory.require_folders()
    Path(directory.checkpoints).mkdir()
    monkeypatch.setattr("os.access", lambda place, _: place != directory.checkpoints)
    with pytest.raises(UsageError, match=r"checkpoints may not be written to"):
        directory.require_writable()


def test_a_result_that_is_damaged_is_not_taken_for_none(tmp_path: Path) -> None:
    directory = RunDirectory.at(str(tmp_path))
    assert directory.finished() is None
    for content in ("{", "[]", "{}", '{"steps_done": "twelve"}'):
        Path(directory.result).write_text(content)
        with pytest.raises(TrainingError, match=r"result\.json is no result .*delete it, and repeat"):
            directory.finished()
