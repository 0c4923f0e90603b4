"""What the making of a shard set leaves in MLflow: one run, with settings, counts and speed."""

from pathlib import Path

import pytest

from infra.mlflow_store import connect, experiment_id
from reelgpt import tracked_build
from tests.rows import build, sources, video_job

VIDEOS = [f"video-{k}.mp4" for k in range(3)]


def test_where_nobody_uses_mlflow_nothing_is_made_for_it(tmp_path: Path) -> None:
    built = build(video_job(tmp_path / "set"), sources(VIDEOS))
    assert tracked_build.record("tokenize", built, str(tmp_path / "set")) is None
    assert not Path("mlflow.db").exists()


def test_a_server_that_is_away_costs_a_line_and_not_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    built = build(video_job(tmp_path / "set"), sources(VIDEOS))
    assert tracked_build.record("tokenize", built, str(tmp_path / "set")) is None
    assert "no MLflow server answers" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_that_did_something_is_a_run_and_one_that_did_nothing_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    out = str(tmp_path / "set")
    built = build(video_job(out), sources(VIDEOS))
    run_id = tracked_build.record("tokenize", built, out)
    assert run_id is not None
    run = connect().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["reelgpt.shard_set.fingerprint"] == built.manifest.fingerprint
    assert run.data.tags["reelgpt.shard_set.uri"] == out
    assert run.data.params["rows.sampling.fps"] == "8.0"
    assert run.data.params["bottleneck"] in {"decoding", "tokenizing", "the rest of the calls", "waiting"}
    assert built.pace is not None
    for name, value in {"sources": 3, "units_done": 9, "decode_cpu_seconds": 9.0, "cores": 2}.items():
        assert run.data.metrics[name] == value
    assert run.data.metrics["share_of_limit"] == built.pace.summary()["share_of_limit"]
    assert tracked_build.record("tokenize", build(video_job(out), sources(VIDEOS)), out) is None
    assert len(connect().search_runs([experiment_id(connect())])) == 1
