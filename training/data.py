"""What a run learns from, or a model is judged on: a whole shard set of the right kind and, for codes, the
tokenizer that speaks them.

Checked before torch is imported: a refusal must be instant.
"""

from dataclasses import dataclass
from typing import Any

from infra import configs, storage
from infra.errors import BundleError, ConfigError, UsageError
from model.bundle import BundleInfo, read_bundle
from model.config import TokenizerConfig
from model.tasks import Grid, sequence_length
from pipelines.shards import ShardEntry, ShardSet, Split
from training.config import RunConfig
from training.objective_config import PredictConfig, ReconstructConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    shard_set: ShardSet
    train: tuple[ShardEntry, ...]
    """Shards whose clips fit the objective."""
    validation: tuple[ShardEntry, ...]
    num_left_out: int
    """Training clips that do not fit: too short for the task."""
    tokenizer: BundleInfo | None
    """Of codes: the bundle of the tokenizer that made them."""
    init_from: BundleInfo | None = None
    """The model whose weights the run starts from; None: it starts from chance."""

    @property
    def tokenizer_config(self) -> TokenizerConfig:
        """Of the tokenizer that made the codes."""
        assert self.tokenizer is not None
        assert isinstance(self.tokenizer.config, TokenizerConfig)
        return self.tokenizer.config

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence of codes."""
        grids: list[Grid] = [(e.shape[0], e.shape[1], e.shape[2]) for e in (*self.train, *self.validation)]
        return max(map(sequence_length, grids))

    @property
    def identity(self) -> dict[str, Any]:
        manifest = self.shard_set.manifest
        return {
            "shards": manifest.fingerprint,
            "tokenizer": manifest.tokenizer_fingerprint,
            "init_from": self.init_from.fingerprint if self.init_from else None,
        }


def open_data(
    config: RunConfig, uri: str, *, tokenizer: str | None = None, init_from: str | None = None
) -> TrainingData:
    """Raises UsageError or ShardError where `uri` cannot serve, or the bundle at `init_from` cannot start it.

    `tokenizer`: where its bundle is now.
    """
    shard_set = ShardSet.open(uri)
    manifest = shard_set.manifest
    if manifest.kind != config.objective.data_kind:
        maker = "extract" if config.objective.data_kind == "frames" else "tokenize"
        raise UsageError(
            f"{uri} holds {manifest.kind}, and {config.name} learns from {config.objective.data_kind}; "
            f"`reelgpt {maker}` makes a shard set of those"
        )
    train, validation = _fitting(shard_set, config, "train"), _fitting(shard_set, config, "validation")
    num_train = sum(entry.rows for entry in train)
    if not num_train:
        raise UsageError(
            f"{uri} has {shard_set.num_clips('train')} training clips, none of use to {config.name}; "
            f"make it from more or longer videos"
        )
    return TrainingData(
        shard_set=shard_set,
        train=train,
        validation=validation,
        num_left_out=shard_set.num_clips("train") - num_train,
        tokenizer=None
        if isinstance(config.objective, ReconstructConfig)
        else _open_tokenizer(shard_set, tokenizer),
        init_from=_open_start(init_from, shard_set) if init_from else None,
    )


def _open_start(uri: str, shard_set: ShardSet) -> BundleInfo:
    info, manifest = read_bundle(storage.absolute(uri)), shard_set.manifest
    needed = "tokenizer" if manifest.kind == "frames" else "gpt"
    if info.kind != needed:
        raise UsageError(
            f"--init-from {uri} is a {info.kind}, and what learns from {manifest.kind} is a {needed}; "
            f"give the bundle of one"
        )
    if needed == "gpt" and info.tokenizer_fingerprint != manifest.tokenizer_fingerprint:
        raise UsageError(
            f"--init-from {uri} speaks the codes of tokenizer {str(info.tokenizer_fingerprint)[:12]}, and "
            f"{shard_set.uri} holds those of {str(manifest.tokenizer_fingerprint)[:12]}; "
            f"tokenize with the model's own tokenizer first"
        )
    return info


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A model's bundle, and the held-out clips that it is judged on."""

    bundle: BundleInfo
    shard_set: ShardSet
    validation: tuple[ShardEntry, ...]
    objective: PredictConfig | None
    """Of a GPT: what it was trained for."""


def open_judged(uri: str, data: str) -> Judged:
    """Raises UsageError, BundleError or ShardError where the two do not belong together."""
    bundle, shard_set = read_bundle(uri), ShardSet.open(data)
    kind, manifest = bundle.kind, shard_set.manifest
    needed = "frames" if kind == "tokenizer" else "tokens"
    if manifest.kind != needed:
        raise UsageError(f"{data} holds {manifest.kind}; a {kind} is judged on {needed}")
    if kind == "gpt" and manifest.tokenizer_fingerprint != bundle.tokenizer_fingerprint:
        raise UsageError(
            f"{data} was made by another tokenizer than the one in {uri}; tokenize with that one first"
        )
    objective = _trained_for(bundle) if kind == "gpt" else None
    entries = shard_set.shards("validation")
    validation = tuple(entry for entry in entries if objective is None or objective.fits(entry.shape))
    if not validation:
        raise UsageError(
            f"{data} holds out no clip that a {kind} could be judged on; make it from more videos"
        )
    return Judged(bundle=bundle, shard_set=shard_set, validation=validation, objective=objective)


def _trained_for(bundle: BundleInfo) -> PredictConfig:
    try:
        return configs.from_dict(PredictConfig, bundle.lineage["config"]["objective"])
    except (KeyError, TypeError, ConfigError):
        raise BundleError(
            f"{bundle.uri} does not say how its task was set: its lineage.json has no config.objective of a "
            f"GPT; judge a bundle that `reelgpt train` wrote"
        ) from None


def _fitting(shard_set: ShardSet, config: RunConfig, split: Split) -> tuple[ShardEntry, ...]:
    return tuple(entry for entry in shard_set.shards(split) if config.objective.fits(entry.shape))


def _open_tokenizer(shard_set: ShardSet, given: str | None) -> BundleInfo:
    manifest = shard_set.manifest
    uri = given or manifest.tokenizer
    if uri is None or not storage.exists(storage.join(uri, "bundle.json")):
        raise UsageError(
            f"the tokenizer of {shard_set.uri} is not at {uri}; say where its bundle is with --tokenizer"
        )
    info = read_bundle(storage.absolute(uri))
    if info.kind != "tokenizer" or info.fingerprint != manifest.tokenizer_fingerprint:
        raise UsageError(
            f"{uri} is the {info.kind} {info.fingerprint[:12]}, and {shard_set.uri} was made by "
            f"{str(manifest.tokenizer_fingerprint)[:12]}; give that one with --tokenizer"
        )
    return info
