"""Where the clips of a packing come from: rows of span files, or the shards of a sealed set.

Both give their clips twice, first without payloads to be judged and counted, then whole; a table at a time.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from infra import hashing
from infra.errors import ShardError
from pipelines import records
from pipelines.config import FilterConfig
from pipelines.selection.verdicts import FACTS, filters_of, thresholds_key, verdicts
from pipelines.shards import Kind, ShardEntry, ShardSet
from pipelines.tables import read_table, read_tables

CIRCUMSTANCES = ("attempts", "decode_cpu_seconds", "tokenize_seconds", "error", "decoder")
"""What two tries of one unit may disagree on. `error` tells how a child ended, which `error_class` sums up;
`decoder` may differ where damage lies just behind a span, and the pictures do not."""
JUDGEMENT = ("judged_by", "outcome", "num_clips", "rejected")
"""What follows from the thresholds of the moment, and is found anew at packing."""
OF_THE_MACHINE = frozenset({"cpu_limit", "memory_limit", "decoder_crash", "decoder_hang"})
"""Error classes that a machine in trouble may cause: such a row yields to another one of its unit."""
OF_DAMAGE = frozenset({"corrupt", "truncated"})
"""Error classes of a damaged source. Its rows are the same each time as far as is known; were they not, one
video must not cost a whole output, and a fixed rule chooses."""


class Origin(Protocol):
    @property
    def stands(self) -> bool:
        """Whether its clips are sealed, and stay: a copy of one goes, whatever its id."""

    def facts(self) -> Iterator[pa.Table]:
        """Every clip, kept or not: FACTS, its shape (null without a payload), `rejected`, `judged_by`."""

    def clips(self) -> Iterator[pa.Table]:
        """The same clips in the same order, with all that is known of them."""

    def outcomes(self) -> pa.Table:
        """The spans that it answers for, as their rows say."""

    def seconds(self) -> tuple[float, float]:
        """What decoding and tokenizing took."""


def shape_name(kind: Kind) -> str:
    return "grid" if kind == "tokens" else "shape"


def complete_units(place: str, kind: Kind, filters: FilterConfig, *, with_rejected: bool = False) -> set[str]:
    """Ids of the units with a row that has the payload of every clip which these thresholds keep; rows of
    scores alone do not do where rejected clips are to be kept as well."""
    key = thresholds_key(filters)
    done: set[str] = set()
    files = records.files(place)
    for uri, table in zip(files, read_tables(files, ["unit_id", "judged_by"]), strict=True):
        lacking = set()
        if any(judged_by != key for judged_by in table.column("judged_by").to_pylist()):
            lacking = _lacking_rows(read_table(uri, _fact_columns(kind)), kind, filters, with_rejected)
        units = table.column("unit_id").to_pylist()
        done.update(unit for row, unit in enumerate(units) if row not in lacking)
    return done


def _lacking_rows(table: pa.Table, kind: Kind, filters: FilterConfig, with_rejected: bool) -> set[int]:
    """Numbers of the rows with a clip to be kept that has no payload."""
    clips = records.clips_of(table)
    rows = table.column("clips").combine_chunks().value_parent_indices().to_pylist()
    has_payload = pc.is_valid(clips.column(shape_name(kind))).to_pylist()
    scored = [with_rejected and key is None for key in clips.column("judged_by").to_pylist()]
    found = zip(rows, verdicts(clips, filters, {}), has_payload, scored, strict=True)
    return {row for row, verdict, there, alone in found if not there and (verdict is None or alone)}


def _fact_columns(kind: Kind) -> list[str]:
    names = [*FACTS, "rejected", f"{shape_name(kind)}.list.element"]
    return ["unit_id", "judged_by", *(f"clips.list.element.{name}" for name in names)]


class RowOrigin:
    """Span files in `place`; rows of other units, such as those of a video that has changed, are passed over.

    Raises ShardError where two rows of a unit disagree, neither of which tells of damage.
    """

    stands = False

    def __init__(self, place: str, units: Set[str], kind: Kind, filters: FilterConfig) -> None:
        self._files = records.files(place)
        self._units = units
        self._kind = kind
        self._chosen = self._choose(filters)

    def facts(self) -> Iterator[pa.Table]:
        return (records.clips_of(table) for table in self._rows(_fact_columns(self._kind)))

    def clips(self) -> Iterator[pa.Table]:
        return (records.clips_of(table) for table in self._rows(None))

    def outcomes(self) -> pa.Table:
        names = [field.name for field in records.OUTCOME_FIELDS]
        empty = pa.schema(records.OUTCOME_FIELDS).empty_table()
        return pa.concat_tables([empty, *(table.select(names) for table in self._rows(["unit_id", *names]))])

    def seconds(self) -> tuple[float, float]:
        tables = list(self._rows(["unit_id", "decode_cpu_seconds", "tokenize_seconds"]))
        return tuple(  # type: ignore[return-value]
            sum(pc.sum(table.column(name)).as_py() or 0.0 for table in tables)
            for name in ("decode_cpu_seconds", "tokenize_seconds")
        )

    def _rows(self, columns: list[str] | None) -> Iterator[pa.Table]:
        for uri, table in zip(self._files, read_tables(self._files, columns), strict=True):
            wanted = [
                unit in self._units and self._chosen.get(unit, (uri, row)) == (uri, row)
                for row, unit in enumerate(table.column("unit_id").to_pylist())
            ]
            yield table if all(wanted) else table.filter(pa.array(wanted, pa.bool_()))

    def _choose(self, filters: FilterConfig) -> dict[str, tuple[str, int]]:
        """Of units with several rows, the file and place of the one that counts."""
        tries: dict[str, list[_Try]] = {}
        repeated = self._repeated()
        for uri in self._files if repeated else []:
            units = read_table(uri, ["unit_id"]).column("unit_id").to_pylist()
            if repeated.isdisjoint(units):
                continue
            table = read_table(uri)
            for row, unit in enumerate(units):
                if unit in repeated:
                    found = _try_of(table.slice(row, 1), (uri, row), filters, self._kind)
                    tries.setdefault(unit, []).append(found)
        return {unit: _choose_one(unit, found).place for unit, found in tries.items()}

    def _repeated(self) -> set[str]:
        seen: set[str] = set()
        repeated: set[str] = set()
        for table in read_tables(self._files, ["unit_id"]):
            for unit in table.column("unit_id").to_pylist():
                if unit in self._units:
                    (repeated if unit in seen else seen).add(unit)
        return repeated


@dataclass(frozen=True, slots=True)
class _Try:
    place: tuple[str, int]
    facts: str
    """Hash of all that two tries of a unit must agree on, but the payloads."""
    payloads: dict[str, str]
    """Clip id to the hash of its payload, where it has one."""
    yields: bool
    is_damaged: bool
    lacking: int
    """Clips to be kept that have no payload."""

    def agrees_with(self, other: "_Try") -> bool:
        common = self.payloads.keys() & other.payloads.keys()
        return self.facts == other.facts and all(
            self.payloads[clip] == other.payloads[clip] for clip in common
        )

    def rank(self) -> tuple[int, bool, str]:
        """The least of a unit's tries counts: that with the most of what is to be kept; one that tells of
        damage before one that does not; then by their content."""
        return self.lacking, not self.is_damaged, hashing.digest([self.facts, self.payloads])


def _try_of(row: pa.Table, place: tuple[str, int], filters: FilterConfig, kind: Kind) -> _Try:
    clips = records.clips_of(row)
    kept = [verdict is None for verdict in verdicts(clips, filters, {})]
    fields: dict[str, Any] = row.drop_columns([*CIRCUMSTANCES, *JUDGEMENT]).to_pylist()[0]
    shapes = {"shape", "grid", "frames", "codes", "rejected"}
    facts = [{k: v for k, v in clip.items() if k not in shapes} for clip in fields.pop("clips")]
    payload = clips.column("codes" if kind == "tokens" else "frames")
    ids = clips.column("clip_id").to_pylist()
    hashes = {
        clip_id: hashing.sha256_bytes(data.as_buffer())
        for clip_id, data in zip(ids, payload, strict=True)
        if data.is_valid
    }
    lacking = sum(keep and clip_id not in hashes for clip_id, keep in zip(ids, kept, strict=True))
    error_class = fields["error_class"]
    yields, is_damaged = error_class in OF_THE_MACHINE, error_class in OF_DAMAGE
    return _Try(place, hashing.digest([fields, facts]), hashes, yields, is_damaged, lacking)


def _choose_one(unit: str, tries: list[_Try]) -> _Try:
    """Raises ShardError where tries of a sound source disagree."""
    standing = [one for one in tries if not one.yields] or tries
    sound = [one for one in standing if not one.yields and not one.is_damaged]
    if not all(one.agrees_with(sound[0]) for one in sound):
        raise ShardError(
            f"two tries of {unit} disagree; the build, device or library versions changed in between: "
            f"delete the output and make it anew"
        )
    return min(standing, key=_Try.rank)


class ShardOrigin:
    """Clips of a sealed set, of the spans given, in the shards given or in all of them."""

    def __init__(
        self,
        shard_set: ShardSet,
        spans: pa.Table,
        entries: Sequence[ShardEntry] | None = None,
        *,
        stands: bool = False,
    ) -> None:
        self.stands = stands
        self._set = shard_set
        self._spans = spans
        self._entries = shard_set.manifest.shards if entries is None else entries
        self._judged_by = thresholds_key(filters_of(shard_set.manifest))

    def facts(self) -> Iterator[pa.Table]:
        return self._tables([*FACTS, shape_name(self._set.manifest.kind)])

    def clips(self) -> Iterator[pa.Table]:
        return self._tables(None)

    def outcomes(self) -> pa.Table:
        return self._spans

    def seconds(self) -> tuple[float, float]:
        """Those of the set, in proportion to the spans."""
        manifest = self._set.manifest
        share = self._spans.num_rows / max(1, manifest.spans.rows)
        return manifest.totals["decode_cpu_seconds"] * share, manifest.totals["tokenize_seconds"] * share

    def _tables(self, columns: list[str] | None) -> Iterator[pa.Table]:
        spans = set(self._spans.column("span_id").to_pylist())
        for entry in self._entries:
            table = self._set.read(entry, columns)
            wanted = [span in spans for span in table.column("span_id").to_pylist()]
            table = table.filter(pa.array(wanted, pa.bool_()))
            yield table.append_column("rejected", pa.nulls(table.num_rows, pa.string())).append_column(
                "judged_by", pa.array([self._judged_by] * table.num_rows, pa.string())
            )
