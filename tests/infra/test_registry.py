import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from infra import registry, registry_listing
from infra.errors import RegistryError, UsageError
from infra.mlflow_store import connect
from infra.model_version import ModelVersion, fields_of, parse_ref
from infra.tracking import LoggedStep, RunFacts, ShardSetInput, Tracker
from tests.mlflow_servers import mlflow_server

LINEAGE = {
    "run": {"recipe": "gpt_tiny"},
    "checkpoint": {"step": 20},
    "shard_set": {"uri": "/data/tokens", "fingerprint": "5" * 64},
    "tokenizer": {"fingerprint": "7" * 64},
}


def make_bundle(folder: Path, fingerprint: str = "a" * 64) -> str:
    record = {"kind": "gpt", "fingerprint": fingerprint, "tasks": ["continue", "generate"]}
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights of " + fingerprint.encode())
    (folder / "tokenizer" / "bundle.json").write_text("{}")
    (folder / "lineage.json").write_text(json.dumps(LINEAGE))
    (folder / "bundle.json").write_text(json.dumps(record))
    return str(folder)


def finished_run(val_loss: float) -> str:
    facts = RunFacts(
        key=uuid.uuid4().hex,
        recipe="gpt_tiny",
        run_dir="/runs/gpt",
        config={"steps": 20, "model": {"num_heads": 4}},
        shard_sets=(ShardSetInput(uri="/data/tokens", fingerprint="5" * 64),),
    )
    tracker, now = Tracker.reach(facts), time.time_ns() // 1_000_000
    before, last = {"val_loss": val_loss + 1, "loss": 4.0}, {"val_loss": val_loss, "loss": 3.0}
    tracker.log_steps([LoggedStep(10, now, before), LoggedStep(20, now, last)])
    tracker.finish("FINISHED")
    return tracker.run_id


def files_below(folder: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    }


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("models:/gpt/3", ("gpt", 3, None)),
        ("models:/gpt@champion", ("gpt", None, "champion")),
        ("models:/gpt@latest", ("gpt", None, "latest")),
        ("models:/gpt", ("gpt", None, None)),
        ("gpt@champion", ("gpt", None, "champion")),
    ],
)
def test_a_reference_names_a_model_and_a_version_or_an_alias(
    ref: str, parts: tuple[str, int | None, str | None]
) -> None:
    assert parse_ref(ref) == parts


@pytest.mark.parametrize("ref", ["models:/", "models:/a/b/c", "models:/gpt@a@b", "s3://bucket/model", ""])
def test_what_is_no_reference_is_refused(ref: str) -> None:
    with pytest.raises(UsageError, match="names no model version"):
        parse_ref(ref)


def test_a_query_reaches_a_param_by_its_last_part_only_where_that_is_unique() -> None:
    version = ModelVersion(
        name="gpt", version=1, aliases=(), run_id=None, created="2026-03-01T00:00:00+00:00", kind=None,
        fingerprint=None, tasks=(), tags={"owner": "ann"}, metrics={"val_loss": 2.0}, lineage={}, source="",
        params={"model.num_heads": "4", "optimizer.name": "adamw", "a.seed": "1", "b.seed": "2"},
    )  # fmt: skip
    fields = fields_of(version)
    assert fields["num_heads"] == fields["model.num_heads"] == "4"
    assert "seed" not in fields
    assert fields["name"] == "gpt"
    assert (fields["owner"], fields["val_loss"]) == ("ann", 2.0)
    assert "kind" not in fields


def test_names_and_aliases_that_mlflow_would_mangle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a model"):
        registry.register(str(tmp_path), name="a/b")
    with pytest.raises(UsageError, match="'latest' is always the newest"):
        registry.register(str(tmp_path), name="gpt", alias="latest")


def test_a_registry_that_does_not_exist_yet_has_no_versions_and_is_not_made_by_asking(tmp_path: Path) -> None:
    assert registry_listing.list_versions() == []
    assert registry_listing.search("val_loss < 3") == []
    with pytest.raises(RegistryError, match="has no model 'gpt'; its models: none yet"):
        registry.resolve("models:/gpt@champion")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_registered_bundle_comes_back_whole_with_its_lineage(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "model")
    run_id = finished_run(2.5)
    number = registry.register(
        bundle, name="whole", run_id=run_id, alias="champion", tags={"owner": "ann"},
        metrics={"val_loss": 2.5, "psnr": 20.5},
    )  # fmt: skip

    version = registry_listing.show("models:/whole@champion")
    assert (version.version, version.run_id, version.kind) == (number, run_id, "gpt")
    assert version.tasks == ("continue", "generate")
    assert version.lineage == LINEAGE
    assert version.metrics == {"val_loss": 2.5, "loss": 3.0, "psnr": 20.5}
    assert version.tags == {
        "owner": "ann",
        "task": "continue,generate",
        "recipe": "gpt_tiny",
        "shard_set.fingerprint": "5" * 64,
        "tokenizer.fingerprint": "7" * 64,
    }
    for ref in ("models:/whole@champion", f"models:/whole/{number}", "models:/whole", "models:/whole@latest"):
        assert files_below(registry.resolve(ref)) == files_below(bundle)


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_registering_twice_gives_one_version_and_undoes_no_promotion(tmp_path: Path) -> None:
    run_id = finished_run(2.5)
    first = make_bundle(tmp_path / "first", "b" * 64)
    second = make_bundle(tmp_path / "second", "c" * 64)
    for _ in range(2):
        assert (
            registry.register(first, name="twice", run_id=run_id, alias="newest", metrics={"val_loss": 2.5})
            == 1
        )
    assert registry.register(second, name="twice", run_id=run_id) == 2
    registry.promote("twice/2", "newest")
    assert registry.register(first, name="twice", run_id=run_id, alias="newest") == 1
    assert registry_listing.show("twice@newest").version == 2
    history = connect().get_metric_history(run_id, "val_loss")
    assert [metric.step for metric in history] == [10, 20]


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_repeated_call_moves_the_alias_that_a_kill_left_on_the_version_before(tmp_path: Path) -> None:
    run_id = finished_run(2.5)
    first, second = make_bundle(tmp_path / "1", "e" * 64), make_bundle(tmp_path / "2", "f" * 64)
    registry.register(first, name="moved", run_id=run_id, alias="candidate")
    registry.register(second, name="moved", run_id=run_id)  # as far as a killed call comes
    assert registry_listing.show("moved@candidate").version == 1
    registry.register(second, name="moved", run_id=run_id, alias="candidate")
    assert registry_listing.show("moved@candidate").version == 2


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.usefixtures("mlflow_database")
@pytest.mark.parametrize("last_deed", ["_as_local_folder", "_make_output", "_create_version"])
def test_a_repeated_call_goes_on_with_the_logged_model_that_a_stopped_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_deed: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    run_id = finished_run(2.5)
    bundle = make_bundle(tmp_path / "model", "9" * 64)
    name = f"stopped{last_deed}"
    with monkeypatch.context() as patch:
        patch.setattr(registry, last_deed, stop)
        with pytest.raises(KeyboardInterrupt):
            registry.register(bundle, name=name, run_id=run_id, metrics={"val_loss": 2.5})

    assert registry.register(bundle, name=name, run_id=run_id, metrics={"val_loss": 2.5}) == 1
    run = connect().get_run(run_id)
    logged = connect().search_logged_models([run.info.experiment_id], f"name = '{name}'")
    assert [model.status for model in logged] == ["READY"]
    assert [output.model_id for output in run.outputs.model_outputs] == [logged[0].model_id]
    assert files_below(registry.resolve(name)) == files_below(bundle)


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_a_search_joins_versions_with_metrics_params_and_aliases(tmp_path: Path) -> None:
    for number, val_loss in enumerate((2.0, 3.0, 4.0), start=1):
        bundle = make_bundle(tmp_path / str(number), str(number) * 64)
        registry.register(
            bundle, name="searched", run_id=finished_run(val_loss), metrics={"val_loss": val_loss}
        )
    registry.promote("searched/3", "champion")

    def found(query: str) -> list[int]:
        return [version.version for version in registry_listing.search(f"name = 'searched' and ({query})")]

    assert found("val_loss < 3.2 and task = 'continue'") == [2, 1]
    assert found("val_loss < 2.5 and task = 'continue' or alias = 'champion'") == [3, 1]
    assert found("not (val_loss >= 3) and steps = 20 and model.num_heads > 3") == [1]
    assert found("created > '2020-01-01' and version != 2 and kind = 'gpt'") == [3, 1]
    assert found("created < '2020-01-01'") == []
    assert found(f"recipe = 'gpt_tiny' and shard_set.fingerprint = '{'5' * 64}' and version < 3") == [2, 1]
    assert found("tokenizer.fingerprint like '8%'") == []
    with pytest.raises(UsageError, match="no model version has 'val_los'"):
        registry_listing.search("val_los < 3")


def refused_without_mlflow(ref: str) -> bool:
    """In a process of its own: importing MLflow takes longer than a refusal may."""
    program = (
        "import sys\n"
        "from infra import registry, errors\n"
        "try: registry.resolve(sys.argv[1])\n"
        "except errors.RegistryError: sys.exit(10 + ('mlflow' in sys.modules))"
    )
    return subprocess.run([sys.executable, "-c", program, ref], check=False).returncode == 10


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_database")
def test_what_is_not_there_is_answered_with_what_is(tmp_path: Path) -> None:
    registry.register(make_bundle(tmp_path / "model"), name="known", alias="champion")
    with pytest.raises(RegistryError, match=r"has no model 'unknown'; its models: .*known"):
        registry.resolve("models:/unknown/1")
    assert refused_without_mlflow("models:/unknown/1")
    with pytest.raises(RegistryError, match="known has the versions 1 and the aliases champion"):
        registry.resolve("models:/known/2")
    with pytest.raises(RegistryError, match="known has the versions 1 and the aliases champion"):
        registry.resolve("models:/known@rejected")
    with pytest.raises(RegistryError, match=r"is no bundle: it has no bundle\.json"):
        registry.register(str(tmp_path), name="known")


@pytest.mark.slow
def test_a_server_keeps_runs_and_bundles_and_gives_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "model", "d" * 64)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mlflow_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        run_id = finished_run(2.5)
        number = registry.register(
            bundle, name="served", run_id=run_id, alias="champion", metrics={"val_loss": 2.5}
        )
        assert registry_listing.show("served@champion").version == number
        assert [version.version for version in registry_listing.search("val_loss < 3")] == [number]
        fetched = registry.resolve("models:/served@champion")
        assert fetched.startswith(str(tmp_path / "cache"))
        assert files_below(fetched) == files_below(bundle)
        assert registry.resolve("models:/served@champion") == fetched
