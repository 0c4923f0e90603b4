"""A model directory that says what it is: config, weights, its tokenizer, lineage, model card.

    bundle.json         last to be written; without it there is no bundle
    model.safetensors   weights
    lineage.json        run, checkpoint, shard set, tokenizer: where it came from
    README.md           the model card
    tokenizer/          of a GPT: the whole bundle of the tokenizer whose codes it speaks

Every file but bundle.json is listed there with its size and SHA-256, and is checked when it is read. Weights
are safetensors: nothing in a bundle can run code. Reading what a bundle is needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import safetensors

from infra import configs, storage
from infra.errors import BundleError, ConfigError, StorageError
from infra.hashing import digest, sha256_bytes
from model.config import GPTConfig, TokenizerConfig
from model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from model.gpt import GPT
    from model.tokenizer import Tokenizer

FORMAT_VERSION = 1
RECORD = "bundle.json"
WEIGHTS = "model.safetensors"
LINEAGE = "lineage.json"
CARD = "README.md"
TOKENIZER = "tokenizer"
MODEL_OF_A_RUN = "model"
CONFIGS: dict[str, type[TokenizerConfig] | type[GPTConfig]] = {"tokenizer": TokenizerConfig, "gpt": GPTConfig}


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleInfo:
    uri: str
    kind: str
    """`tokenizer` or `gpt`."""
    config: TokenizerConfig | GPTConfig
    fingerprint: str
    """What the model computes: hash of kind, config, weights and, of a GPT, its vocabulary and tokenizer."""
    lineage: dict[str, Any]
    vocabulary: Vocabulary | None
    """Of a GPT."""
    tasks: tuple[str, ...]
    """Tasks that a GPT was trained for."""
    tokenizer_fingerprint: str | None
    """Of a GPT, that of the tokenizer inside; of a tokenizer, its own: whose codes these are, either way."""
    files: dict[str, dict[str, Any]]
    """Name to {bytes, sha256}."""


def save_bundle(
    uri: str,
    model: Tokenizer | GPT,
    *,
    lineage: Mapping[str, Any],
    card: str,
    vocabulary: Vocabulary | None = None,
    tasks: Iterable[str] = (),
    tokenizer_bundle: str | None = None,
) -> BundleInfo:
    """Writes a Tokenizer, or a GPT with its vocabulary and the bundle of its tokenizer.

    Replaces a bundle that is at `uri`; until the new one is whole, there is none.
    """
    kind = _kind_of(model.config)
    needs_both = kind == "gpt"
    if needs_both != (vocabulary is not None) or needs_both != (tokenizer_bundle is not None):
        raise BundleError(f"a {kind} cannot be saved so: a gpt needs vocabulary and tokenizer")
    inside = read_bundle(tokenizer_bundle).fingerprint if tokenizer_bundle else None
    weights = _weights_of(model)
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": configs.to_dict(model.config),
        "vocabulary": configs.to_dict(vocabulary) if vocabulary else None,
        "tasks": sorted(tasks),
        "tokenizer_fingerprint": inside,
    }
    record["fingerprint"] = _fingerprint(record, weights)
    storage.delete(storage.join(uri, RECORD))
    files = {WEIGHTS: weights, LINEAGE: _to_json(lineage), CARD: card.encode()}
    if tokenizer_bundle:
        files |= _files_of(tokenizer_bundle)
    for name, data in files.items():
        storage.write(storage.join(uri, name), data)
    record["files"] = {name: _describe(data) for name, data in files.items()}
    storage.write(storage.join(uri, RECORD), _to_json(record))
    return read_bundle(uri)


def read_bundle(uri: str) -> BundleInfo:
    """What the bundle at `uri` is. Raises BundleError when there is none, or not a whole one."""
    record = _read_record(uri)
    try:
        config = configs.from_dict(CONFIGS[record["kind"]], record["config"])
        vocabulary = configs.from_dict(Vocabulary, record["vocabulary"]) if record["vocabulary"] else None
        return BundleInfo(
            uri=uri, kind=record["kind"], config=config, fingerprint=record["fingerprint"],
            lineage=json.loads(_read_file(uri, LINEAGE, record["files"])), vocabulary=vocabulary,
            tasks=tuple(record["tasks"]), files=record["files"],
            tokenizer_fingerprint=record["tokenizer_fingerprint"] or record["fingerprint"],
        )  # fmt: skip
    except (KeyError, TypeError, ConfigError) as error:
        raise _unreadable(uri, error) from None


def load_tokenizer(uri: str) -> Tokenizer:
    """The tokenizer of a tokenizer bundle, or the one inside a GPT's, ready to encode."""
    from model.tokenizer import Tokenizer

    info = read_bundle(uri)
    if info.kind == "gpt":
        return load_tokenizer(storage.join(uri, TOKENIZER))
    tokenizer = Tokenizer(cast(TokenizerConfig, info.config))
    _load_weights(tokenizer, info)
    return tokenizer


def load_gpt(uri: str) -> tuple[GPT, Vocabulary, Tokenizer]:
    """A GPT with all that is needed to make pictures of what it says."""
    from model.gpt import GPT

    info = read_bundle(uri)
    if info.kind != "gpt" or info.vocabulary is None:
        raise BundleError(f"{uri} holds a {info.kind}, and a gpt is needed; give the bundle of a trained GPT")
    gpt = GPT(cast(GPTConfig, info.config))
    _load_weights(gpt, info)
    return gpt, info.vocabulary, load_tokenizer(storage.join(uri, TOKENIZER))


def read_weights(info: BundleInfo) -> dict[str, Tensor]:
    """The weights in a bundle by name. Raises BundleError where they are not what was saved."""
    from safetensors.torch import load

    return load(_read_file(info.uri, WEIGHTS, info.files))


def verify_bundle(uri: str) -> list[str]:
    """Reads everything and says what is wrong, a sentence each; nothing when the bundle is whole."""
    try:
        record = _read_record(uri)
    except BundleError as error:
        return [str(error)]
    problems = []
    for name in record["files"]:
        try:
            _read_file(uri, name, record["files"])
        except BundleError as error:
            problems.append(str(error))
    if problems:
        return problems
    if _fingerprint(record, _read_file(uri, WEIGHTS, record["files"])) != record["fingerprint"]:
        return [f"the fingerprint in {storage.join(uri, RECORD)} is not that of its config and weights"]
    return []


def _kind_of(config: TokenizerConfig | GPTConfig) -> str:
    return "tokenizer" if isinstance(config, TokenizerConfig) else "gpt"


def _weights_of(model: Tokenizer | GPT) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def _load_weights(model: Tokenizer | GPT, info: BundleInfo) -> None:
    try:
        model.load_state_dict(read_weights(info))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise BundleError(f"weights and config in {info.uri} do not fit: {error}; save it again") from None
    model.eval()


def _fingerprint(record: Mapping[str, Any], weights: bytes) -> str:
    views = safetensors.deserialize(weights)  # type: ignore[no-untyped-call]
    tensors = {name: [view["dtype"], view["shape"], sha256_bytes(view["data"])] for name, view in views}
    identity = {name: record[name] for name in ("kind", "config", "vocabulary", "tokenizer_fingerprint")}
    return digest(identity | {"tensors": tensors})


def _files_of(tokenizer_bundle: str) -> dict[str, bytes]:
    """A tokenizer bundle's files as they are named inside a GPT's; its record comes last there too."""
    files = _read_record(tokenizer_bundle)["files"]
    inside = {storage.join(TOKENIZER, name): _read_file(tokenizer_bundle, name, files) for name in files}
    record = storage.read_bytes(storage.join(tokenizer_bundle, RECORD))
    return inside | {storage.join(TOKENIZER, RECORD): record}


def _no_bundle(uri: str) -> BundleError:
    run_model = storage.join(uri, MODEL_OF_A_RUN)
    if storage.exists(storage.join(run_model, RECORD)):
        return BundleError(f"{uri} is the folder of a run, not a bundle; give its model: {run_model}")
    if not storage.list_files(uri):
        return BundleError(
            f"there is no bundle at {uri}; give the model/ folder of a run, or models:/NAME@ALIAS"
        )
    return BundleError(f"{uri} is not a whole bundle: {RECORD}, written last, is missing; save it again")


def _read_record(uri: str) -> dict[str, Any]:
    at = storage.join(uri, RECORD)
    if not storage.exists(at):
        raise _no_bundle(uri)
    try:
        record = cast(dict[str, Any], storage.read_json(at))
        version = record["format_version"]
    except (StorageError, KeyError, TypeError) as error:
        raise _unreadable(uri, error) from None
    if version != FORMAT_VERSION:
        raise BundleError(f"{uri} has format {version}, not {FORMAT_VERSION}; use the code that wrote it")
    return record


def _read_file(uri: str, name: str, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A file's bytes, once they are those that the record promises."""
    at = storage.join(uri, name)
    try:
        data = storage.read_bytes(at)
    except StorageError as error:
        raise BundleError(f"{uri} is not a whole bundle: {error}; fetch or save it again") from None
    if len(data) != files[name]["bytes"] or sha256_bytes(data) != files[name]["sha256"]:
        raise BundleError(f"{at} is not what was saved: its size or hash differs; fetch or save it again")
    return data


def _describe(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": sha256_bytes(data)}


def _unreadable(uri: str, error: Exception) -> BundleError:
    at = storage.join(uri, RECORD)
    return BundleError(f"{at} is not the record of a bundle ({error}); save the bundle again")


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
