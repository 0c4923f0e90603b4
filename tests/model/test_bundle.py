import shutil
from pathlib import Path

import pytest
import torch

from infra import storage
from infra.errors import BundleError, ReelgptError
from model.bundle import load_gpt, load_tokenizer, read_bundle, save_bundle, verify_bundle
from model.config import GPTConfig, TokenizerConfig
from model.gpt import GPT
from model.tokenizer import Tokenizer
from model.vocabulary import Vocabulary

LINEAGE = {"run": {"recipe": "tiny"}, "parents": []}
VOCABULARY = Vocabulary(num_codes=12)


@pytest.fixture
def tokenizer_uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "tokenizer")
    save_bundle(uri, _tokenizer(), lineage=LINEAGE, card="# A tokenizer\n")
    return uri


@pytest.fixture
def gpt_uri(tmp_path: Path, tokenizer_uri: str) -> str:
    uri = str(tmp_path / "gpt")
    _save_gpt(uri, _gpt(), tokenizer_uri)
    return uri


def test_a_tokenizer_comes_back_bit_for_bit(tokenizer_uri: str) -> None:
    torch.manual_seed(1)
    saved, loaded = _tokenizer(), load_tokenizer(tokenizer_uri)
    _assert_equal(saved, loaded)
    frames = torch.randint(0, 256, (1, 2, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(saved.encode(frames), loaded.encode(frames))
    assert not loaded.training


def test_a_gpt_comes_back_with_its_vocabulary_and_its_tokenizer(gpt_uri: str) -> None:
    gpt, vocabulary, tokenizer = load_gpt(gpt_uri)
    _assert_equal(_gpt(), gpt)
    _assert_equal(_tokenizer(), tokenizer)
    assert vocabulary == VOCABULARY
    assert gpt.config == _gpt().config


def test_a_bundle_says_what_it_is(gpt_uri: str, tokenizer_uri: str) -> None:
    gpt, tokenizer = read_bundle(gpt_uri), read_bundle(tokenizer_uri)
    assert (gpt.kind, tokenizer.kind) == ("gpt", "tokenizer")
    assert gpt.tasks == ("continue",)
    assert gpt.lineage == LINEAGE
    assert gpt.tokenizer_fingerprint == tokenizer.tokenizer_fingerprint == tokenizer.fingerprint
    assert verify_bundle(gpt_uri) == []


def test_a_fingerprint_is_of_what_is_computed_and_of_nothing_else(tmp_path: Path, tokenizer_uri: str) -> None:
    uris = [str(tmp_path / name) for name in ("again", "other")]
    again = save_bundle(uris[0], _tokenizer(), lineage={"run": "another"}, card="another card")
    other = _tokenizer()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    changed = save_bundle(uris[1], other, lineage=LINEAGE, card="# A tokenizer\n")
    assert read_bundle(tokenizer_uri).fingerprint == again.fingerprint != changed.fingerprint


def test_a_flipped_bit_is_found_in_any_file(gpt_uri: str) -> None:
    names = [file.name for file in storage.list_files(gpt_uri)]
    assert len(names) == 4 + 4  # its own, and the tokenizer's
    for name in names:
        path = Path(gpt_uri, name)
        whole = path.read_bytes()
        path.write_bytes(_flipped(whole))
        assert verify_bundle(gpt_uri), f"a flipped bit in {name} went unseen"
        path.write_bytes(whole)
    assert verify_bundle(gpt_uri) == []


def test_damaged_weights_are_not_loaded(gpt_uri: str) -> None:
    weights = Path(gpt_uri, "tokenizer", "model.safetensors")
    weights.write_bytes(_flipped(weights.read_bytes()))
    with pytest.raises(BundleError, match="not what was saved"):
        load_gpt(gpt_uri)


@pytest.mark.parametrize("name", ["bundle.json", "lineage.json"])
def test_a_half_written_bundle_is_refused(tokenizer_uri: str, name: str) -> None:
    Path(tokenizer_uri, name).unlink()
    with pytest.raises(BundleError, match="not a whole bundle"):
        load_tokenizer(tokenizer_uri)
    assert len(verify_bundle(tokenizer_uri)) == 1


def test_a_bundle_that_is_replaced_is_none_until_the_new_one_is_whole(tokenizer_uri: str) -> None:
    card = Path(tokenizer_uri, "README.md")
    card.unlink()
    card.mkdir()  # so that writing fails half way
    with pytest.raises(ReelgptError):
        save_bundle(tokenizer_uri, _tokenizer(), lineage=LINEAGE, card="")
    with pytest.raises(BundleError, match="not a whole bundle"):
        read_bundle(tokenizer_uri)


def test_a_bundle_can_be_saved_again_in_its_place(gpt_uri: str, tokenizer_uri: str) -> None:
    _save_gpt(gpt_uri, _gpt(seed=5), tokenizer_uri)
    _assert_equal(_gpt(seed=5), load_gpt(gpt_uri)[0])
    assert verify_bundle(gpt_uri) == []


def test_a_bundle_of_another_kind_or_format_is_refused(tokenizer_uri: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a gpt is needed"):
        load_gpt(tokenizer_uri)
    with pytest.raises(BundleError, match="needs vocabulary and tokenizer"):
        save_bundle(str(tmp_path / "bad"), _gpt(), lineage=LINEAGE, card="")
    record = Path(tokenizer_uri, "bundle.json")
    record.write_text(record.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(BundleError, match="format 99"):
        read_bundle(tokenizer_uri)


def test_nothing_in_a_bundle_is_a_pickle(gpt_uri: str) -> None:
    suffixes = {Path(file.name).suffix for file in storage.list_files(gpt_uri)}
    assert suffixes == {".json", ".md", ".safetensors"}


def test_a_bundle_can_live_behind_any_uri() -> None:
    uri = "memory://bundles/tokenizer"
    save_bundle(uri, _tokenizer(), lineage=LINEAGE, card="")
    _assert_equal(_tokenizer(), load_tokenizer(uri))


def _tokenizer() -> Tokenizer:
    torch.manual_seed(1)
    config = TokenizerConfig(levels=(4, 3), base_channels=8, max_channels=8, frame_size=16)
    return Tokenizer(config)


def _gpt(seed: int = 2) -> GPT:
    torch.manual_seed(seed)
    config = GPTConfig(
        vocabulary_size=VOCABULARY.size,
        context_tokens=32,
        model_dim=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        hidden_dim=16,
        code_levels=(4, 3),
    )
    return GPT(config)


def _save_gpt(uri: str, gpt: GPT, tokenizer_uri: str) -> None:
    save_bundle(
        uri,
        gpt,
        lineage=LINEAGE,
        card="# A GPT\n",
        vocabulary=VOCABULARY,
        tasks=["continue"],
        tokenizer_bundle=tokenizer_uri,
    )


def _assert_equal(first: torch.nn.Module, second: torch.nn.Module) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_what_is_no_bundle_is_told_apart_from_one_that_is_not_whole(
    tmp_path: Path, tokenizer_uri: str
) -> None:
    with pytest.raises(BundleError, match=r"there is no bundle at .*/nowhere; give the model/ folder"):
        load_tokenizer(str(tmp_path / "nowhere"))
    run = tmp_path / "run"
    shutil.copytree(tokenizer_uri, run / "model")
    with pytest.raises(BundleError, match=r"folder of a run, not a bundle; give its model: .*/run/model"):
        load_tokenizer(str(run))
