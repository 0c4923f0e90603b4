"""What a run learns from: a whole shard set of the right kind and, for codes, the tokenizer that speaks them.

Checked before torch is imported: a refusal must be instant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from infra import storage
from infra.errors import ConfigError, UsageError
from infra.registry import find_bundle
from model.bundle import BundleInfo, read_bundle
from model.config import GPTConfig, TokenizerConfig
from model.tasks import Grid, sequence_length
from model.vocabulary import Vocabulary
from pipelines.shards import ShardSet, Split
from training.config import RunConfig
from training.configs.objective import GPTShape, ReconstructConfig
from training.loading.shelf import Shelf


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """One shard set, or a mixture of several of one kind and one tokenizer."""

    shard_sets: tuple[ShardSet, ...]
    shares: tuple[Fraction, ...]
    """Of the clips that training takes, each set's; they add up to 1."""
    train: tuple[Shelf, ...]
    """Of each set, the shards whose clips fit the objective."""
    validation: tuple[Shelf, ...]
    num_left_out: int
    """Training clips that do not fit: too short for the task."""
    tokenizer: BundleInfo | None
    """Of codes: the bundle of the tokenizer that made them."""
    init_from: BundleInfo | None = None
    """The model whose weights the run starts from; None: it starts from chance."""

    @property
    def shard_set(self) -> ShardSet:
        """The first, which speaks for what all have in common."""
        return self.shard_sets[0]

    @property
    def uris(self) -> list[str]:
        return [shard_set.uri for shard_set in self.shard_sets]

    @property
    def tokenizer_config(self) -> TokenizerConfig:
        """Of the tokenizer that made the codes."""
        assert self.tokenizer is not None
        assert isinstance(self.tokenizer.config, TokenizerConfig)
        return self.tokenizer.config

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the model that predicts these codes."""
        return Vocabulary(num_codes=self.tokenizer_config.num_codes)

    def gpt_config(self, shape: GPTShape) -> GPTConfig:
        """Of the model of this shape that predicts these codes."""
        return shape.config(
            vocabulary_size=self.vocabulary.size,
            context_tokens=self.longest_sequence,
            code_levels=self.tokenizer_config.levels,
        )

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence of codes."""
        entries = (entry for shelf in (*self.train, *self.validation) for entry in shelf.entries)
        return max(_num_tokens(entry.shape) for entry in entries)

    @property
    def shares_of_lengths(self) -> dict[int, float]:
        """Of the sequences that are learned from, by their tokens."""
        shares: dict[int, float] = {}
        for share, shelf in zip(self.shares, self.train, strict=True):
            for shape, count in shelf.clips_by_shape().items():
                length = _num_tokens(shape)
                shares[length] = shares.get(length, 0.0) + float(share) * count / shelf.num_clips
        return shares

    @property
    def identity(self) -> dict[str, Any]:
        """What the run cannot go on without; the weights of a mixture are settings of its batches."""
        fingerprints = [shard_set.manifest.fingerprint for shard_set in self.shard_sets]
        return {
            "shards": fingerprints[0] if len(fingerprints) == 1 else fingerprints,
            "tokenizer": self.shard_set.manifest.tokenizer_fingerprint,
            "init_from": self.init_from.fingerprint if self.init_from else None,
        }


def _num_tokens(shape: tuple[int, ...]) -> int:
    """Of the sequence of a clip of codes."""
    grid: Grid = (shape[0], shape[1], shape[2])
    return sequence_length(grid)


def open_data(
    config: RunConfig,
    uris: str | Sequence[str],
    *,
    tokenizer: str | None = None,
    init_from: str | None = None,
) -> TrainingData:
    """Raises UsageError or ShardError where the sets cannot serve, or not together, or the bundle that
    `init_from` names cannot start the run, RegistryError where it is a `models:/` reference to none.
    `tokenizer`: where its bundle is now."""
    shard_sets = [ShardSet.open(uri) for uri in ([uris] if isinstance(uris, str) else uris)]
    _require_alike(shard_sets)
    for shard_set in shard_sets:
        _require_kind(shard_set, config)
    train = tuple(_fitting(shard_set, config, "train") for shard_set in shard_sets)
    for shelf in train:
        _require_clips(shelf, config)
    is_codes = not isinstance(config.objective, ReconstructConfig)
    return TrainingData(
        shard_sets=tuple(shard_sets),
        shares=_shares(config, train),
        train=train,
        validation=tuple(_fitting(shard_set, config, "validation") for shard_set in shard_sets),
        num_left_out=sum(s.shard_set.num_clips("train") - s.num_clips for s in train),
        tokenizer=_open_tokenizer(shard_sets[0], tokenizer) if is_codes else None,
        init_from=_open_start(init_from, shard_sets[0]) if init_from else None,
    )


def _open_start(uri: str, shard_set: ShardSet) -> BundleInfo:
    info, manifest = read_bundle(find_bundle(uri)), shard_set.manifest
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


def _require_alike(shard_sets: Sequence[ShardSet]) -> None:
    """Raises UsageError, naming both, where one shard set cannot be mixed with the first."""
    first = shard_sets[0]
    for other in shard_sets[1:]:
        a, b = first.manifest, other.manifest
        if a.kind != b.kind:
            raise UsageError(
                f"{first.uri} holds {a.kind} and {other.uri} {b.kind}; a run learns from sets of one kind"
            )
        if a.tokenizer_fingerprint != b.tokenizer_fingerprint:
            raise UsageError(
                f"{first.uri} was made by the tokenizer {str(a.tokenizer_fingerprint)[:12]} and {other.uri} "
                f"by {str(b.tokenizer_fingerprint)[:12]}; tokenize one of them with the other's tokenizer"
            )
    names = {shard_set.manifest.fingerprint: shard_set.uri for shard_set in shard_sets}
    if len(names) < len(shard_sets):
        raise UsageError(f"{', '.join(s.uri for s in shard_sets)} are not all different; give each set once")


def _require_kind(shard_set: ShardSet, config: RunConfig) -> None:
    kind, needed = shard_set.manifest.kind, config.objective.data_kind
    if kind != needed:
        maker = "extract" if needed == "frames" else "tokenize"
        raise UsageError(
            f"{shard_set.uri} holds {kind}, and {config.name} learns from {needed}; "
            f"`reelgpt {maker}` makes a shard set of those"
        )


def _require_clips(shelf: Shelf, config: RunConfig) -> None:
    if not shelf.num_clips:
        raise UsageError(
            f"{shelf.shard_set.uri} has {shelf.shard_set.num_clips('train')} training clips, none of use to "
            f"{config.name}; make it from more or longer videos"
        )


def _shares(config: RunConfig, train: Sequence[Shelf]) -> tuple[Fraction, ...]:
    """Exact shares: as the weights are written in decimals, or by the number of clips."""
    weights = config.batches.weights
    if len(weights) == 1 or len(weights) not in (0, len(train)):
        raise ConfigError(
            f"batches.weights has {len(weights)} for {len(train)} shard sets; give one for each of several, "
            f"in the order of --data, or none"
        )
    parts = [Fraction(str(w)) for w in weights] or [Fraction(shelf.num_clips) for shelf in train]
    return tuple(part / sum(parts) for part in parts)


def _fitting(shard_set: ShardSet, config: RunConfig, split: Split) -> Shelf:
    entries = shard_set.shards(split)
    fitting = tuple(entry for entry in entries if config.objective.fits(entry.shape))
    return Shelf(shard_set, fitting, caching=config.batches)


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
