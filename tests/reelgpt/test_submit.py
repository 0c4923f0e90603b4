import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import UsageError
from reelgpt import main
from reelgpt.submit import Submit, require_portable

EXTRACT = ("extract", "/shared/videos", "--out", "/shared/frames")


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def submit(*args: str) -> Submit:
    parsed = main.parse("submit", args)
    assert isinstance(parsed, Submit)
    return parsed


def refusal(*command: str) -> str:
    with pytest.raises(UsageError) as raised:
        require_portable(command)
    return str(raised.value)


def test_options_before_the_dashes_are_submits_own_and_the_rest_is_the_command() -> None:
    parsed = submit("--follow", "--address", "https://c:1", "--", "extract", "/v", "--out", "/o", "--json")
    assert parsed.follow
    assert not parsed.json
    assert parsed.address == "https://c:1"
    assert parsed.command == ("extract", "/v", "--out", "/o", "--json")


def test_a_command_is_needed_and_must_be_known() -> None:
    assert "submit needs a command after `--`" in refusal()
    assert "no command 'tokenise'; did you mean 'tokenize'?" in refusal("tokenise", "/v")
    assert "a job cannot submit itself" in refusal("submit", "--", "extract")
    assert "unknown" in refusal("train", "unknown", "--data", "/d", "--run-dir", "/r")


def test_relative_files_are_refused_with_the_remedy() -> None:
    assert "out 'frames' is relative" in refusal("extract", "/shared/videos", "--out", "frames")
    assert "videos './videos' is relative" in refusal("extract", "./videos", "--out", "/shared/frames")
    assert "give s3://... or an absolute path" in refusal("extract", "videos/*.mp4", "--out", "s3://b/frames")
    assert "relative" in refusal("demo")
    assert "out 'copy' is relative" in refusal("models", "export", "gpt@champion", "--out", "copy")


def test_files_that_the_cluster_can_reach_are_let_through() -> None:
    require_portable(EXTRACT)
    require_portable(("extract", "s3://bucket/videos", "file:///shared/more", "--out", "s3://bucket/frames"))


def test_a_command_that_uses_mlflow_needs_a_store_that_outlives_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = ("train", "gpt_tiny", "--data", "/shared/tokens", "--run-dir", "/shared/run")
    reference = (
        "tokenize",
        "/shared/videos",
        "--tokenizer",
        "models:/tokenizer@latest",
        "--out",
        "/shared/tokens",
    )
    for command in (train, reference, ("models", "list")):
        assert "would vanish with the job; set MLFLOW_TRACKING_URI" in refusal(*command)
    for lost in ("sqlite:///mlflow.db", "mlruns", "file:mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", lost)
        assert f"MLFLOW_TRACKING_URI={lost} is relative" in refusal(*train)
    for kept in ("sqlite:////shared/mlflow.db", "https://tracking", "/shared/mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", kept)
        require_portable(train)


def test_passwords_do_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal("extract", "https://ann:secret@host/v.mp4", "--out", "/shared/frames")
    assert "the URI of host/v.mp4 holds a password" in said
    assert "secret" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@tracking")
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI has a password in it") as raised:
        submit("--", *EXTRACT).run()
    assert "secret" not in str(raised.value)


def test_plain_http_to_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="unencrypted"):
        submit("--address", "http://cluster:8265", "--", *EXTRACT).run()


def test_a_refusal_comes_within_a_second_and_without_a_traceback(tmp_path: Path) -> None:
    args = ["submit", "--json", "--", "extract", "videos", "--out", "frames"]
    ended = subprocess.run(
        [sys.executable, "-m", "reelgpt", *args], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(main.__file__).parents[1])},
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert json.loads(ended.stdout)["exit_code"] == 2
