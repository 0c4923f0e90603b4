"""What a model is judged on: a whole shard set of the kind that it speaks.

Checked before torch is imported: a refusal must be instant.
"""

from dataclasses import dataclass

from infra import configs
from infra.errors import BundleError, ConfigError, UsageError
from model.bundle import BundleInfo, read_bundle
from pipelines.shards import SPLITS, ShardSet
from training.configs.objective import PredictConfig
from training.loading.shelf import Shelf


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A model's bundle, and the held-out clips that it is judged on."""

    bundle: BundleInfo
    train: Shelf
    validation: Shelf
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
    train, held_out = (tuple(shard_set.shards(split)) for split in SPLITS)
    validation = tuple(entry for entry in held_out if objective is None or objective.fits(entry.shape))
    if not validation:
        raise UsageError(
            f"{data} holds out no clip that a {kind} could be judged on; make it from more videos"
        )
    return Judged(
        bundle=bundle,
        train=Shelf(shard_set, train),
        validation=Shelf(shard_set, validation),
        objective=objective,
    )


def _trained_for(bundle: BundleInfo) -> PredictConfig:
    try:
        return configs.from_dict(PredictConfig, bundle.lineage["config"]["objective"])
    except (KeyError, TypeError, ConfigError):
        raise BundleError(
            f"{bundle.uri} does not say how its task was set: its lineage.json has no config.objective of a "
            f"GPT; judge a bundle that `reelgpt train` wrote"
        ) from None
