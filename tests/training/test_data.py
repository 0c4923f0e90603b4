from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from infra.errors import ConfigError, UsageError
from model.bundle import save_bundle
from model.tokenizer import Tokenizer
from pipelines.shards import ShardSet
from tests.training.conftest import TINY_TOKENIZER, drifting_codes, write_shard_set
from training.config import RunConfig
from training.data import open_data
from training.recipes import get_recipe


def gpt(*weights: float) -> RunConfig:
    recipe = get_recipe("gpt_tiny")
    return replace(recipe, batches=replace(recipe.batches, weights=weights))


def test_sets_are_mixed_by_their_weights(token_set: ShardSet, two_grid_set: ShardSet) -> None:
    data = open_data(gpt(7, 3), [token_set.uri, two_grid_set.uri])
    assert data.shares == (Fraction(7, 10), Fraction(3, 10))
    assert data.identity["shards"] == [s.manifest.fingerprint for s in (token_set, two_grid_set)]


def test_without_weights_the_sizes_weigh(token_set: ShardSet, two_grid_set: ShardSet) -> None:
    data = open_data(gpt(), [token_set.uri, two_grid_set.uri])
    assert data.shares == (Fraction(23, 36), Fraction(13, 36))  # the ten stills leave nothing to predict
    assert data.num_left_out == 10


def test_one_set_is_what_it_was(token_set: ShardSet) -> None:
    data = open_data(gpt(), token_set.uri)
    assert data.identity["shards"] == token_set.manifest.fingerprint
    assert data.shares == (Fraction(1),)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_weights_that_do_not_match_the_sets_are_refused(
    weights: tuple[float, ...], token_set: ShardSet, two_grid_set: ShardSet
) -> None:
    with pytest.raises(ConfigError, match=rf"batches\.weights has {len(weights)} for 2 shard sets"):
        open_data(gpt(*weights), [token_set.uri, two_grid_set.uri])


def test_a_weight_for_one_set_has_no_effect_and_is_refused(token_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="has 1 for 1 shard sets; give one for each of several"):
        open_data(gpt(1.0), [token_set.uri])


def test_sets_of_two_kinds_are_refused_by_both_names(token_set: ShardSet, frame_set: ShardSet) -> None:
    with pytest.raises(UsageError, match=f"{token_set.uri} holds tokens and {frame_set.uri} frames"):
        open_data(gpt(), [token_set.uri, frame_set.uri])


def test_sets_of_two_tokenizers_are_refused_by_both_names(token_set: ShardSet, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = save_bundle(str(tmp_path / "model"), Tokenizer(TINY_TOKENIZER), lineage={}, card="Another.")
    other = write_shard_set(
        str(tmp_path / "tokens"), "tokens", {"train": drifting_codes(3)}, tokenizer=tokenizer.uri
    )
    with pytest.raises(UsageError, match=f"{token_set.uri} was made by the tokenizer .* and {other.uri} by"):
        open_data(gpt(), [token_set.uri, other.uri])


def test_the_same_set_twice_is_refused(token_set: ShardSet) -> None:
    with pytest.raises(UsageError, match="give each set once"):
        open_data(gpt(), [token_set.uri, token_set.uri])
