import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.table import Table

from infra.model_version import ModelVersion
from infra.tracking import LoggedStep, RunFacts, ShardSetInput, Tracker
from pipelines import shards, tables
from reelgpt import main
from reelgpt.models import _listing

Cli = Callable[..., tuple[int, Any]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `reelgpt models ... --json`; gives its exit code and what it printed last."""

    def run(*args: str) -> tuple[int, Any]:
        exit_code = main.main(["models", *args, "--json"])
        return exit_code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def shard_set(tmp_path: Path) -> str:
    """A sealed set of two sources; nothing else of it is asked for here."""
    uri = str(tmp_path / "frames")
    sources = pa.table({"source_id": ["1", "2"], "name": ["a.mp4", "b.mp4"], "uri": ["/v/a.mp4", "/v/b.mp4"]})
    size, sha256 = tables.write_table(f"{uri}/sources.parquet", sources)
    table = shards.TableEntry(path="sources.parquet", rows=2, bytes=size, sha256=sha256)
    manifest = shards.Manifest(
        format_version=shards.FORMAT_VERSION, kind="frames", recipe_id="4" * 64, fingerprint="5" * 64,
        config={}, totals={}, shards=(), sources=table, spans=table,
    )  # fmt: skip
    shards.seal(uri, manifest)
    return uri


@pytest.fixture
def bundle(tmp_path: Path, shard_set: str) -> str:
    record = {"kind": "tokenizer", "fingerprint": "a" * 64, "tasks": []}
    lineage = {
        "run": {"recipe": "tokenizer_tiny"},
        "checkpoint": {"step": 20},
        "shard_set": {"uri": shard_set, "fingerprint": "5" * 64},
    }
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "lineage.json").write_text(json.dumps(lineage))
    (made / "bundle.json").write_text(json.dumps(record))
    return str(made)


@pytest.fixture
def run_id(mlflow_database: Path) -> str:  # noqa: ARG001
    facts = RunFacts(
        key="t",
        recipe="tokenizer_tiny",
        run_dir="/runs/t",
        config={"steps": 20},
        shard_sets=(ShardSetInput(uri="/data/frames", fingerprint="5" * 64),),
    )
    tracker = Tracker.reach(facts)
    tracker.log_steps([LoggedStep(20, time.time_ns() // 1_000_000, {"val_loss": 0.25})])
    tracker.finish("FINISHED")
    return tracker.run_id


@pytest.mark.slow
def test_a_listed_version_resolves_to_run_shard_set_and_source_videos(
    cli: Cli, bundle: str, run_id: str, shard_set: str
) -> None:
    assert cli("register", bundle, "--name", "listed", "--run-id", run_id, "--alias", "champion")[0] == 0
    exit_code, listed = cli("list", "--name", "listed")
    assert exit_code == 0
    (version,) = listed["versions"]
    assert (version["name"], version["version"], version["aliases"]) == ("listed", 1, ["champion"])
    assert (version["run_id"], version["metrics"]) == (run_id, {"val_loss": 0.25})
    assert version["lineage"]["shard_set"]["uri"] == shard_set
    assert [source["uri"] for source in version["lineage"]["sources"]] == ["/v/a.mp4", "/v/b.mp4"]
    assert "sources_unknown" not in version["lineage"]


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_sources_that_cannot_be_read_any_more_say_why(cli: Cli, bundle: str) -> None:
    lineage = {"shard_set": {"uri": "/gone/tokens", "fingerprint": "5" * 64}}
    Path(bundle, "lineage.json").write_text(json.dumps(lineage))
    cli("register", bundle, "--name", "gone")
    exit_code, told = cli("lineage", "gone")
    assert exit_code == 0
    assert told["sources"] == []
    assert "/gone/tokens" in told["sources_unknown"]


@pytest.mark.slow
def test_search_show_and_promote_agree_on_a_version(cli: Cli, bundle: str, run_id: str) -> None:
    cli("register", bundle, "--name", "agreed", "--run-id", run_id)
    assert cli("promote", "agreed/1", "best")[1]["aliases"] == ["best"]
    _, found = cli("search", "name = 'agreed' and val_loss < 0.3 and alias = 'best'")
    _, shown = cli("show", "models:/agreed@best")
    assert found["versions"] == [shown]
    assert cli("search", "name = 'agreed' and val_loss > 0.3")[1] == {"versions": []}


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_an_exported_bundle_is_the_registered_one_and_is_copied_once(
    cli: Cli, bundle: str, tmp_path: Path
) -> None:
    cli("register", bundle, "--name", "exported")
    out = str(tmp_path / "out")
    assert cli("export", "exported", "--out", out)[1]["files_copied"] == 3
    assert cli("export", "exported", "--out", out)[1]["files_copied"] == 0
    for file in Path(bundle).iterdir():
        assert Path(out, file.name).read_bytes() == file.read_bytes()
    Path(out, "mine.txt").write_text("something else")
    exit_code, said = cli("export", "exported", "--out", out)
    assert exit_code == 2
    assert "holds something else (mine.txt)" in said["error"]


def test_a_row_shows_how_good_a_model_is_before_anything_else() -> None:
    names = (
        "epoch",
        "grad_norm",
        "loss",
        "val_bits",
        "val_psnr",
        "val_loss_unigram",
        "val_loss",
        "val_loss_bigram",
    )
    version = ModelVersion(
        name="gpt", version=1, aliases=(), run_id=None, created="2026-03-01T00:00:00+00:00", kind="gpt",
        fingerprint=None, tasks=(), tags={}, params={}, metrics=dict.fromkeys(names, 1.0), lineage={},
        source="",
    )  # fmt: skip
    table = _listing([version], "nothing").text
    assert isinstance(table, Table)
    (shown,) = table.columns[-1].cells
    assert shown == "val_loss 1\nval_loss_bigram 1\nval_loss_unigram 1\nval_psnr 1"


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_people_see_a_table_and_a_tree(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["models", "register", bundle, "--name", "seen", "--alias", "champion"])
    for action in (["list"], ["show", "seen@champion"], ["lineage", "seen"]):
        assert main.main(["models", *action]) == 0
        assert "seen/1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_wrong_questions_end_with_2_and_missing_versions_with_1(cli: Cli) -> None:
    assert cli("search", "val_loss <")[0] == 2
    assert cli("show", "models:/a/b/c")[0] == 2
    assert cli("show", "nothing@champion")[0] == 1
