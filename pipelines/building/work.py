"""What is to be sealed: the sources, the units that must have a row, and the parts that it is packed from.

Where a sealed set is there already, made with the same row settings, it stays: what is new is appended, and
where only the packing changed, it is packed anew. Otherwise the start is fresh.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from infra import configs
from pipelines import records
from pipelines.building import claim, inventory
from pipelines.building.job import FramesJob, TokenizerRef, VideoJob
from pipelines.config import DuplicateConfig, FilterConfig, PackConfig
from pipelines.packing.origins import Origin, RowOrigin, ShardOrigin, complete_units
from pipelines.packing.pack import Parts, Recipe
from pipelines.packing.sidecar import NOTHING, Sidecar
from pipelines.selection.filters import RULES, TOO_SHORT, is_tighter
from pipelines.selection.verdicts import filters_of
from pipelines.shards import Manifest, ShardEntry, ShardSet
from pipelines.spans import held_out, span_table, validation_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    out: str
    settings: claim.Settings
    there: ShardSet | None
    """The sealed set that lies in `out`, whatever its settings."""
    former: ShardSet | None
    """The same where it stays, but for what is added to it or packed anew."""
    sources: pa.Table
    spans: pa.Table | None
    """The outcomes of all spans, where those are known already; else each unit is a span."""
    units: pa.Table
    """All of them, their ids in the first column."""
    sealed: Set[str]
    """Ids of the units that need no row any more: what they gave is in the former set."""
    recipe: Recipe
    replaceable: Set[str] = frozenset()
    """Ids of the units of which the former set has rows that may stay where there can be no other."""
    sources_kept: int = 0
    """Of the former set, and not given this time."""
    refused: tuple[str, ...] = ()
    """Names of sources given that the former set holds with another content, and keeps so."""
    left: Mapping[str, str] = field(default_factory=dict)
    """By name of a file given: why it is not to be had as it was listed. There are no units of it."""

    @property
    def place(self) -> str:
        return records.place_of(self.out, self.recipe.kind, self.settings["rows"])

    @property
    def ids(self) -> list[str]:
        ids: list[str] = self.units.column(0).to_pylist()
        return ids

    def units_with_rows(self) -> set[str]:
        """Ids of the units whose rows have all that is to be packed of them."""
        if self.recipe.scores_alone:
            return records.done_units(self.place)
        with_rejected = self.settings.get("keep") == "all"
        return complete_units(self.place, self.recipe.kind, self.recipe.filters, with_rejected=with_rejected)

    def is_sealed(self) -> bool:
        """Whether the set that is there is what is asked for."""
        same = self.there is not None and self.there.manifest.recipe_id == self.recipe.recipe_id
        return same and self.sealed >= set(self.ids)

    def parts(self) -> Parts:
        """Where the clips are, once every unit is done."""
        if self.former is None:
            return self._parts([self._rows(set(self.ids))])
        if self.former.manifest.config["packing"] != self.settings["packing"]:
            return self._parts(self._packed_anew(self.former))
        return self._appended(self.former)

    def _appended(self, former: ShardSet) -> Parts:
        """Rows of what is new or done again, beside the former set; shards without its clips stay."""
        new, spans = set(self.ids) - self.sealed, former.spans()
        kept = set(self.ids) & self.sealed if self.spans is None else spans.column("span_id").to_pylist()
        stays = pa.array([span in kept for span in spans.column("span_id").to_pylist()], pa.bool_())
        touched = former.shards_of(spans.filter(pc.invert(stays)))
        carried = tuple(entry for entry in former.manifest.shards if entry not in touched)
        sealed = ShardOrigin(former, spans.filter(stays), touched, stands=True)
        return self._parts([self._rows(new), sealed], carried)

    def _packed_anew(self, former: ShardSet) -> list[Origin]:
        """Where other clips are chosen, rows of span files where they are still there; else clips of the
        former set."""
        if self.spans is None and chooses_the_same(self.settings, former.manifest):
            kept = ShardOrigin(former, former.spans(), stands=True)
            return [self._rows(set(self.ids) - self.sealed), kept]
        rows = self.units_with_rows() & set(self.ids)
        spans = former.spans()
        if self.spans is None:
            in_rows = pa.array([span in rows for span in spans.column("span_id").to_pylist()], pa.bool_())
            return [self._rows(rows), ShardOrigin(former, spans.filter(pc.invert(in_rows)))]
        if len(rows) == len(self.ids):
            return [self._rows(rows)]
        return [self._rows(rows - self.sealed), ShardOrigin(former, spans)]

    def _rows(self, units: Set[str]) -> RowOrigin:
        return RowOrigin(self.place, units, self.recipe.kind, self.recipe.filters)

    def _parts(self, origins: list[Origin], carried: tuple[ShardEntry, ...] = ()) -> Parts:
        return Parts(
            origins=origins, sources=self.sources, spans=self.spans, former=self.there, carried=carried
        )


def video_work(job: VideoJob, out: str, settings: claim.Settings, found: inventory.Found) -> Work:
    there, given = claim.sealed(out), found.sources
    stays = _staying(there, settings)
    earlier = stays.sources() if stays else None
    sources, refused = inventory.joined(earlier, given) if earlier is not None else (given, ())
    keeps_split = stays and stays.manifest.config["packing"]["split"] == settings["packing"]["split"]
    held = held_out(sources, job.split, earlier if keeps_split else None)
    recipe = _recipe(
        settings, sorted(sources.column("source_id").to_pylist()), held, stays, job.tokenizer, ()
    )
    return Work(
        out=out,
        settings=settings,
        there=there,
        former=stays,
        sources=with_split(sources, held),
        spans=None,
        units=span_table(sources, job.config.sampling.span_seconds),
        sealed=_sealed_spans(stays, settings) if stays else set(),
        recipe=replace(recipe, sidecar=job.sidecar or NOTHING),
        sources_kept=sources.num_rows - given.num_rows,
        refused=refused,
        left=found.left,
    )


def frame_work(job: FramesJob, out: str, settings: claim.Settings, frames: ShardSet) -> Work:
    there = claim.sealed(out)
    stays = _staying(there, settings)
    sources, entries = frames.sources(), frames.manifest.shards
    inputs = tuple(sorted(entry.sha256 for entry in entries))
    if stays and not set(stays.manifest.inputs) <= set(inputs):
        stays = None  # the frames are others than those that were tokenized
    held = validation_of(sources)
    taken = stays.manifest.inputs if stays else ()
    return Work(
        out=out,
        settings=settings,
        there=there,
        former=stays,
        sources=sources,
        spans=frames.spans(),
        units=pa.table(
            {
                "unit_id": [unit for entry in entries for unit in _row_groups(entry)],
                "path": [entry.path for entry in entries for _ in entry.row_groups],
                "group": [group for entry in entries for group in range(len(entry.row_groups))],
            }
        ),
        sealed={unit for entry in entries if entry.sha256 in taken for unit in _row_groups(entry)},
        recipe=_recipe(settings, [frames.manifest.fingerprint], held, stays, job.tokenizer, inputs),
    )


def retry_work(
    shard_set: ShardSet, settings: claim.Settings, failed: pa.Table, tokenizer: TokenizerRef | None
) -> Work:
    """All of a sealed set, but for the spans given, which need another row."""
    sources = inventory.located(shard_set.sources(), shard_set.uri)
    recipe = _recipe(
        settings,
        sorted(sources.column("source_id").to_pylist()),
        validation_of(sources),
        shard_set,
        tokenizer,
        (),
    )
    digest = settings["packing"]["sidecar"]
    again = set(failed.column("span_id").to_pylist())
    return Work(
        out=shard_set.uri,
        settings=settings,
        there=shard_set,
        former=shard_set,
        sources=sources,
        spans=None,
        units=span_table(sources, settings["rows"]["sampling"]["span_seconds"]),
        sealed=set(shard_set.spans().column("span_id").to_pylist()) - again,
        replaceable=again,
        recipe=replace(recipe, sidecar=Sidecar.kept_in(shard_set.uri, digest) if digest else NOTHING),
    )


def _row_groups(entry: ShardEntry) -> list[str]:
    """Ids of a frame shard's units, by its content: appending to a set of frames does not change them."""
    return [f"{entry.sha256[:32]}#{group}" for group in range(len(entry.row_groups))]


def _staying(there: ShardSet | None, settings: claim.Settings) -> ShardSet | None:
    """The sealed set that is there, if its rows are those that the settings determine."""
    before = there.manifest.config if there else {}
    same = before.get("rows") == settings["rows"]
    return there if same and claim.scores_alone(before) == claim.scores_alone(settings) else None


def chooses_the_same(settings: claim.Settings, former: Manifest) -> bool:
    """Whether a set is packed anew of the clips that it has."""
    packing, before = settings["packing"], former.config["packing"]
    return all(packing[part] == before[part] for part in ("filters", "duplicates"))


def _sealed_spans(former: ShardSet, settings: claim.Settings) -> set[str]:
    """The spans of a sealed set that need no row: all, or those of which no clip that was left out may come
    back. A copy may as soon as the clip that it is a copy of goes."""
    spans = former.spans()
    if not chooses_the_same(settings, former.manifest):
        filters = configs.from_dict(FilterConfig, settings["packing"]["filters"])
        tighter = is_tighter(filters, filters_of(former.manifest))
        stays_out = {rule.reason for rule in RULES} if tighter else set()
        rejected = (dict(counts or []) for counts in spans.column("rejected").to_pylist())
        spans = spans.filter(pa.array([not counts.keys() - stays_out - {TOO_SHORT} for counts in rejected]))
    return set(spans.column("span_id").to_pylist())


def _recipe(
    settings: claim.Settings,
    inputs: list[str],
    held: frozenset[str],
    stays: ShardSet | None,
    tokenizer: TokenizerRef | None,
    frame_shards: tuple[str, ...],
) -> Recipe:
    chain = (*stays.manifest.parents, stays.manifest.fingerprint) if stays else ()
    parent = (settings["base"],) if "base" in settings else ()
    return Recipe(
        kind=settings["kind"],
        recipe_id=claim.recipe_id(settings, inputs),
        config=settings,
        held_out=held,
        scores_alone=claim.scores_alone(settings),
        filters=configs.from_dict(FilterConfig, settings["packing"]["filters"]),
        duplicates=DuplicateConfig(exact=False)
        if frame_shards
        else configs.from_dict(DuplicateConfig, settings["packing"]["duplicates"]),
        pack=configs.from_dict(PackConfig, settings["packing"]["pack"]),
        tokenizer=tokenizer.uri if tokenizer else None,
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else None,
        num_codes=tokenizer.num_codes if tokenizer else None,
        parents=(*chain, *parent),
        inputs=frame_shards,
    )


def with_split(sources: pa.Table, held: frozenset[str]) -> pa.Table:
    ids = sources.column("source_id").to_pylist()
    split = ["validation" if source_id in held else "train" for source_id in ids]
    columns = [name for name in sources.column_names if name not in ("modified", "split")]
    return sources.select(columns).append_column("split", pa.array(split, pa.string()))
