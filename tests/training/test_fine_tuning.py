"""A run that starts from a model's weights (--init-from), and what cannot start one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from infra import registry
from infra.errors import ConfigError, UsageError
from model.bundle import read_bundle, read_weights, save_bundle
from model.tokenizer import Tokenizer
from pipelines.shards import ShardSet
from tests.training import faults, runs
from tests.training.conftest import TINY_TOKENIZER, drifting_codes, write_shard_set
from tests.training.faults import Moment
from tests.training.workers import Workers
from training.bundles import start_from
from training.data import open_data
from training.going_on import begin
from training.recipes import get_recipe
from training.run_directory import RunDirectory
from training.starting_model import Start

STANDING_STILL = "--optimizer.peak-lr=1e-30"
"""A rate of learning that moves no weight."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, workers: Workers, token_set: ShardSet) -> Path:
    """The run whose model others start from."""
    run_dir = tmp_path_factory.mktemp("parent") / "run"
    workers.run(*runs.gpt(token_set, run_dir), world_size=1)
    return run_dir


def weights_of(run_dir: Path) -> dict[str, Tensor]:
    return read_weights(read_bundle(str(run_dir / "model")))


def fine_tune(
    workers: Workers, token_set: ShardSet, run_dir: Path, parent: Path, *more: str
) -> dict[str, Any]:
    start = f"--init-from={parent / 'model'}", "--seed=7"
    return workers.run(*runs.gpt(token_set, run_dir), *start, *more, world_size=1)


@pytest.mark.deepspeed
@pytest.mark.slow
def test_a_run_starts_from_the_models_weights_and_says_so(
    workers: Workers, token_set: ShardSet, parent: Path, tmp_path: Path
) -> None:
    fine_tune(workers, token_set, tmp_path / "run", parent, STANDING_STILL)
    torch.testing.assert_close(weights_of(tmp_path / "run"), weights_of(parent), rtol=0, atol=1e-7)
    lineage = read_bundle(str(tmp_path / "run" / "model")).lineage
    assert lineage["init_from"]["fingerprint"] == read_bundle(str(parent / "model")).fingerprint


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
def test_a_fine_tuning_that_is_killed_goes_on_from_its_own_weights(
    workers: Workers, token_set: ShardSet, parent: Path, tmp_path: Path
) -> None:
    fine_tune(workers, token_set, tmp_path / "whole", parent)
    start = *runs.gpt(token_set, tmp_path / "killed"), f"--init-from={parent / 'model'}", "--seed=7"
    group = workers.start(*start, world_size=1, faults=[faults.at(Moment(0, 8, "update"))])
    assert group.codes() == [-9]
    summary = fine_tune(workers, token_set, tmp_path / "killed", parent)
    assert summary["resumed_from"] >= 3
    for name, weight in weights_of(tmp_path / "whole").items():
        assert torch.equal(weight, weights_of(tmp_path / "killed")[name]), name


def test_a_model_of_another_shape_cannot_start_one(tokenizer_bundle: str) -> None:
    larger = Tokenizer(TINY_TOKENIZER)
    larger.extra = torch.nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ConfigError, match=r"of another shape: extra is not there and 3 x 2 here; give the"):
        start_from(larger, read_bundle(tokenizer_bundle))


def test_a_tokenizer_cannot_start_a_gpt(token_set: ShardSet, tokenizer_bundle: str) -> None:
    with pytest.raises(UsageError, match="is a tokenizer, and what learns from tokens is a gpt; give"):
        open_data(get_recipe("gpt_tiny"), token_set.uri, init_from=tokenizer_bundle)


def test_what_the_registry_names_starts_one_like_a_path(
    token_set: ShardSet, tokenizer_bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "resolve", lambda ref: {"models:/mine@champion": tokenizer_bundle}[ref])
    with pytest.raises(UsageError, match="--init-from models:/mine@champion is a tokenizer, and what learns"):
        open_data(get_recipe("gpt_tiny"), token_set.uri, init_from="models:/mine@champion")


def test_a_name_that_moves_means_in_a_run_what_it_did_when_that_began(
    frame_set: ShardSet, run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = ["models:/mine/1"]
    monkeypatch.setattr("training.starting_model.show", lambda _: SimpleNamespace(ref=newest[-1]))
    directory, config = RunDirectory.at(run_dir), get_recipe("tokenizer_tiny")
    start = Start.of(directory, "models:/mine@latest")
    begin(directory, config, open_data(config, frame_set.uri), resume="auto", attempt="one", start=start)
    newest.append("models:/mine/2")
    for named, meant in (("@latest", "/1"), ("/2", "/2"), ("@champion", "/2")):
        assert Start.of(directory, f"models:/mine{named}") == Start(
            f"models:/mine{named}", f"models:/mine{meant}"
        )


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.exhaustive
def test_a_task_that_the_registry_does_not_answer_ends_the_others(
    workers: Workers, token_set: ShardSet, parent: Path, tmp_path: Path
) -> None:
    resolve = f"""
from infra import errors, registry

def resolve(ref):
    if rank == 1:
        raise errors.RegistryError("it does not answer")
    return {str(parent / "model")!r}

registry.resolve = resolve
"""
    options = *runs.gpt(token_set, tmp_path / "run"), "--init-from=models:/mine/1", "--seed=7"
    group = workers.start(*options, faults=[resolve])
    assert group.codes() == [1, 1], group.said()
    assert (group.folder / "0.err").read_text() == "error: it does not answer\n"


@pytest.mark.deepspeed
@pytest.mark.slow
def test_a_model_of_other_codes_cannot_start_one(parent: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = save_bundle(str(tmp_path / "model"), Tokenizer(TINY_TOKENIZER), lineage={}, card="Another.")
    clips = {"train": drifting_codes(3)}
    other = write_shard_set(str(tmp_path / "tokens"), "tokens", clips, tokenizer=tokenizer.uri)
    with pytest.raises(UsageError, match=r"speaks the codes of tokenizer .* tokenize with the model's own"):
        open_data(get_recipe("gpt_tiny"), other.uri, init_from=str(parent / "model"))


@pytest.mark.deepspeed
@pytest.mark.slow
def test_a_run_does_not_change_what_it_started_from(
    workers: Workers, token_set: ShardSet, parent: Path, tmp_path: Path
) -> None:
    group = workers.start(
        *runs.gpt(token_set, tmp_path / "run"), f"--init-from={parent / 'model'}", "--seed=7",
        world_size=1, faults=[faults.at(Moment(0, 8, "update"))],
    )  # fmt: skip
    assert group.codes() == [-9]
    repeated = workers.start(*runs.gpt(token_set, tmp_path / "run"), "--seed=7", world_size=1)
    assert repeated.codes() == [2]
    assert "--init-from" in repeated.said()
