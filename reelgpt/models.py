"""`reelgpt models`: what the registry knows, down to the source videos of a model version.

Joins what `infra.registry` says of a version with what its shard set says of its sources, where that can
still be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Group, RenderableType
from rich.table import Table
from rich.tree import Tree
from tyro.conf import Positional

from infra import registry, registry_listing, storage
from infra.errors import ReelgptError, UsageError
from infra.model_version import ModelVersion
from reelgpt.command import InputUri, Outcome, OutputUri
from reelgpt.lineage_facts import facts

METRICS_IN_A_ROW = 4
FIRST_METRICS = ("val_loss", "val_psnr", "val_")
"""How the names of those begin that say how good a model is; a baseline's begins as what it is for."""
SHORT = 12
"""Characters of a fingerprint that people are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class List:
    """All model versions, newest first.

    Example: reelgpt models list --json
    """

    name: str | None = None
    """Only the versions of this model."""
    json: bool = False
    """One JSON object as the last line of stdout, with every version's lineage."""

    def run(self) -> Outcome:
        empty = "no model versions yet; `reelgpt train` and `reelgpt models register` make them"
        return _listing(registry_listing.list_versions(self.name), empty)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The model versions that a query holds for: metrics, tags, params, task, alias, name, version, created.

    Example: reelgpt models search "val_loss < 3.2 and task = 'continue' or alias = 'champion'"
    """

    query: Positional[str]
    """Comparisons (= != < <= > >= like) joined by and, or, not and parentheses."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        return _listing(registry_listing.search(self.query), f"no model version with {self.query}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Show:
    """One model version: its metrics, its tags, where its files are.

    Example: reelgpt models show gpt-tiny@champion
    """

    version: Positional[str]
    """NAME/VERSION, NAME@ALIAS or NAME for the newest; models:/ in front is fine."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        version = registry_listing.show(self.version)
        return Outcome(summary=describe(version), text=_page(version))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Where a model version came from: run, checkpoint, shard set, tokenizer, source videos.

    Example: reelgpt models lineage gpt-tiny@champion
    """

    version: Positional[str]
    """NAME/VERSION, NAME@ALIAS or NAME for the newest."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        version = registry_listing.show(self.version)
        lineage = full_lineage(version)
        return Outcome(summary={"model": version.ref, **lineage}, text=_tree(version, lineage))


@dataclass(frozen=True, kw_only=True, slots=True)
class Promote:
    """Gives an alias to a model version, taking it from the version that had it.

    Example: reelgpt models promote gpt-tiny/3 champion
    """

    version: Positional[str]
    """NAME/VERSION, NAME@ALIAS or NAME for the newest."""
    alias: Positional[str]
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        version = registry.promote(self.version, self.alias)
        return Outcome(summary=describe(version), text=f"{version.name}@{self.alias} is {version.ref}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Register:
    """Makes a bundle a model version; a run does it by itself when it ends.

    Example: reelgpt models register runs/gpt/model --name gpt-tiny --alias champion
    """

    bundle: Positional[InputUri]
    """The model/ folder of a run, or a copy of it."""
    name: str
    """The model that gets a version."""
    run_id: str | None = None
    """The MLflow run that made it."""
    alias: str | None = None
    """An alias for the new version."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        number = registry.register(self.bundle, name=self.name, run_id=self.run_id, alias=self.alias)
        version = registry_listing.show(f"models:/{self.name}/{number}")
        return Outcome(summary=describe(version), text=f"{self.bundle} is {version.ref}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Copies the bundle of a model version to a folder or a URI: all that is needed to use it elsewhere.

    Example: reelgpt models export gpt-tiny@champion --out s3://bucket/models/gpt-tiny
    """

    version: Positional[str]
    """NAME/VERSION, NAME@ALIAS or NAME for the newest."""
    out: OutputUri
    """Where the bundle goes; must be empty, or hold the same bundle."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        version = registry_listing.show(self.version)
        num_copied = _copy_bundle(registry.resolve(version.ref), self.out)
        summary = {"model": version.ref, "out": storage.absolute(self.out), "files_copied": num_copied}
        return Outcome(summary=summary, text=f"{version.ref} is at {self.out} ({num_copied} files copied)")


Action = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Search, tyro.conf.subcommand("search")]
    | Annotated[Lineage, tyro.conf.subcommand("lineage")]
    | Annotated[Promote, tyro.conf.subcommand("promote")]
    | Annotated[Register, tyro.conf.subcommand("register")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Asks the model registry, and tends it.

    Example: reelgpt models search "val_loss < 3.2 and task = 'continue' or alias = 'champion'"
    """

    action: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Action]]

    @property
    def json(self) -> bool:
        return self.action.json

    def run(self) -> Outcome:
        return self.action.run()


def describe(version: ModelVersion) -> dict[str, Any]:
    """A version as JSON: what the registry knows, and its lineage down to the source videos."""
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "run_id": version.run_id,
        "created": version.created,
        "kind": version.kind,
        "fingerprint": version.fingerprint,
        "tasks": list(version.tasks),
        "tags": version.tags,
        "metrics": version.metrics,
        "lineage": full_lineage(version),
    }


def full_lineage(version: ModelVersion) -> dict[str, Any]:
    """The lineage in a version's bundle, and the source videos of its shard set, or why they are unknown."""
    uri = (version.lineage.get("shard_set") or {}).get("uri")
    if not uri:
        return {**version.lineage, "sources": [], "sources_unknown": "the lineage names no shard set"}
    from pipelines.shards import ShardSet

    try:
        return {**version.lineage, "sources": ShardSet.open(uri).sources().to_pylist()}
    except ReelgptError as error:
        return {**version.lineage, "sources": [], "sources_unknown": str(error)}


def _copy_bundle(bundle: str, out: str) -> int:
    """Copies what is missing, the record last, since it makes the bundle exist. Returns how many files."""
    files = {file.name: file for file in storage.list_files(bundle)}
    there = {file.name: file.size for file in storage.list_files(out)}
    foreign = sorted(name for name, size in there.items() if name not in files or files[name].size != size)
    if foreign:
        raise UsageError(f"{out} holds something else ({foreign[0]}); give an empty folder")
    missing = sorted((name for name in files if name not in there), key=lambda name: name == "bundle.json")
    for name in missing:
        storage.upload(files[name].uri, storage.join(storage.absolute(out), name))
    return len(missing)


def _listing(versions: Sequence[ModelVersion], empty: str) -> Outcome:
    table = Table("model", "aliases", "kind", "tasks", "created (UTC)", "metrics")
    for version in versions:
        table.add_row(
            f"{version.name}/{version.version}",
            ", ".join(version.aliases),
            version.kind,
            ", ".join(version.tasks),
            version.created[:16].replace("T", " "),
            _metrics(version),
        )
    summary = {"versions": [describe(version) for version in versions]}
    return Outcome(summary=summary, text=table if versions else empty)


def _metrics(version: ModelVersion) -> str:
    """The first few: `show` has them all."""
    names = sorted(version.metrics, key=lambda name: (_precedence(name), name))
    return "\n".join(f"{name} {version.metrics[name]:.4g}" for name in names[:METRICS_IN_A_ROW])


def _precedence(metric: str) -> int:
    begins = (rank for rank, first in enumerate(FIRST_METRICS) if metric.startswith(first))
    return next(begins, len(FIRST_METRICS))


def _page(version: ModelVersion) -> RenderableType:
    table = Table(show_header=False, title=version.ref, title_justify="left")
    rows = {
        "aliases": ", ".join(version.aliases),
        "kind": version.kind,
        "tasks": ", ".join(version.tasks),
        "fingerprint": version.fingerprint,
        "created": version.created,
        "run": version.run_id,
        "files": version.source,
        **{f"tag {key}": value for key, value in sorted(version.tags.items())},
        **{key: _number(value) for key, value in sorted(version.metrics.items())},
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    return Group(table, _tree(version, full_lineage(version)))


def _number(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"


def _tree(version: ModelVersion, lineage: dict[str, Any]) -> Tree:
    """The chain from the version to its videos, a line each."""
    tree = Tree(f"{version.ref} {(version.fingerprint or '')[:SHORT]}")
    for part in ("run", "checkpoint", "shard_set", "tokenizer"):
        known = lineage.get(part)
        if known:
            tree.add(f"{part.replace('_', ' ')}: {', '.join(facts(known))}")
    sources = tree.add(f"source videos: {lineage.get('sources_unknown') or len(lineage['sources'])}")
    for source in lineage["sources"]:
        sources.add(f"{source['name']}  {source['uri']}")
    return tree
