"""What a run learns from: a whole shard set of the right kind and, for codes, the tokenizer that speaks them.

Checked before torch is imported: a refusal must be instant.
"""

from dataclasses import dataclass
from typing import Any

from infra import storage
from infra.errors import UsageError
from model.bundle import BundleInfo, read_bundle
from model.config import TokenizerConfig
from model.tasks import Grid, sequence_length
from pipelines.shards import ShardEntry, ShardSet, Split
from training.config import ReconstructConfig, RunConfig


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
        return {"shards": manifest.fingerprint, "tokenizer": manifest.tokenizer_fingerprint}


def open_data(config: RunConfig, uri: str, *, tokenizer: str | None = None) -> TrainingData:
    """Raises UsageError or ShardError where `uri` cannot serve. `tokenizer`: where its bundle is now."""
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
    )


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
