"""What a sidecar file says, as one table: Parquet, CSV or JSON lines, every column of it checked.

A message names the file, the column and the row. What stands in a cell is data: no URI in it is opened.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import StorageError, UsageError

VALUES = ("label", "caption", "action")
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("label", pa.string()),
        ("caption", pa.string()),
        ("action", pa.list_(pa.int32())),
    ]
)
"""`source` is a name or URI; a row without a start or an end is for all before or after; those of VALUES that
are null say nothing."""
TIMES = (("start_seconds", 0.0), ("end_seconds", float("inf")))
"""What a part is that has no such end."""
KINDS = {"string": "text", "double": "numbers", "list<item: int32>": "lists of whole numbers of 32 bits"}
TEXT_KINDS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_integer,
)
"""Of columns that are taken as text: CSV does not tell a number from a word either."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MOST_BLOCK_BYTES = (1 << 31) - 1
FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson")


def read_sidecar(uri: str) -> pa.Table:
    """The rows of the file at `uri`, of SCHEMA. Raises UsageError where it is no such file."""
    uri = storage.absolute(uri)
    suffix = next((suffix for suffix in FORMATS if uri.lower().endswith(suffix)), None)
    if suffix is None:
        raise UsageError(f"{uri} is no sidecar; give a file whose name ends in {', '.join(FORMATS)}")
    try:
        table = _parsed(storage.read_bytes(uri), suffix)
    except StorageError as error:
        raise UsageError(f"the sidecar {uri} cannot be read ({error}); give a file that is there") from None
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise UsageError(
            f"the sidecar {uri} is no {suffix.removeprefix('.')} file that can be read ({_first_line(error)})"
        ) from None
    _check_columns(uri, table.column_names)
    columns = [_column(uri, table, field, is_text=suffix == ".csv") for field in SCHEMA]
    found = _with_open_ends(pa.table(columns, schema=SCHEMA))
    _check_rows(uri, found)
    return found


def _with_open_ends(table: pa.Table) -> pa.Table:
    """Without end is what ends at infinity, too, which JSON has no word for."""
    ends = table.column("end_seconds")
    is_open = pc.equal(ends, float("inf"))
    place = table.schema.get_field_index("end_seconds")
    return table.set_column(place, "end_seconds", pc.if_else(is_open, None, ends))


def _parsed(data: bytes, suffix: str) -> pa.Table:
    """In this thread: one that Arrow has just started can abort a process that ends at once, on a refusal."""
    from pyarrow import csv, parquet

    if suffix not in (".parquet", ".csv"):
        return _json_lines(data)
    stream = pa.BufferReader(data)
    if suffix == ".parquet":
        return parquet.read_table(stream, use_threads=False, pre_buffer=False)
    as_text = csv.ConvertOptions(
        column_types=dict.fromkeys(SCHEMA.names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    one_block = csv.ReadOptions(use_threads=False, block_size=min(max(1, len(data)), MOST_BLOCK_BYTES))
    return csv.read_csv(stream, one_block, csv.ParseOptions(newlines_in_values=True), as_text)


def _json_lines(data: bytes) -> pa.Table:
    """Arrow's own reader takes dates for times, and no label that is a number in one line and text in
    another."""
    rows = []
    for number, line in enumerate(data.removeprefix(BYTE_ORDER_MARK).split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line.decode(), object_pairs_hook=_object))
            except ValueError as error:
                raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} is no object")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _json_column(name, [row.get(name) for row in rows]) for name in names})


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _json_column(name: str, values: list[Any]) -> pa.Array:
    if name in SCHEMA.names and pa.types.is_string(SCHEMA.field(name).type):
        values = [str(value) if type(value) is int else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ValueError(f"column {name}: {_first_line(error)}") from None


def _check_columns(uri: str, names: list[str]) -> None:
    unknown = [name for name in names if name not in SCHEMA.names]
    if unknown:
        raise UsageError(
            f"the sidecar {uri} has a column {unknown[0]!r}, which means nothing here; drop or rename it: "
            f"there may be {', '.join(SCHEMA.names)}"
        )
    if "source" not in names or not set(VALUES) & set(names):
        raise UsageError(
            f"the sidecar {uri} has the columns {', '.join(names)}; it needs source, the name or URI of a "
            f"video, and one of {', '.join(VALUES)}"
        )
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UsageError(f"the sidecar {uri} has the column {repeated[0]} more than once; keep one of them")


def _column(uri: str, table: pa.Table, field: pa.Field, *, is_text: bool) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    column = table.column(field.name)
    try:
        if is_text and pa.types.is_list(field.type):
            return pa.chunked_array([pa.array(map(_listed, column.to_pylist()), field.type)])
        if is_text or _fits(column.type, field.type):
            return column.cast(field.type)
    except (pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
        raise _bad_type(uri, field, _first_line(error)) from None
    raise _bad_type(uri, field, f"it has {column.type}")


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether every value can be taken as it is, a whole number as a word too; words are no numbers."""
    if pa.types.is_null(given):
        return True
    if pa.types.is_dictionary(given):
        return _fits(given.value_type, wanted)
    if pa.types.is_string(wanted):
        return any(is_kind(given) for is_kind in TEXT_KINDS)
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(given) or pa.types.is_large_list(given)
        return bool(is_list and (pa.types.is_integer(given.value_type) or pa.types.is_null(given.value_type)))
    return bool(pa.types.is_integer(given) or pa.types.is_floating(given))


def _listed(text: str | None) -> list[int] | None:
    """A list as CSV can hold it: JSON, such as [3, 1]."""
    found: Any = None if text is None else json.loads(text)
    if found is not None and not (isinstance(found, list) and all(type(value) is int for value in found)):
        raise ValueError(f"{text!r} is no list such as [3, 1]")
    return found


def _bad_type(uri: str, field: pa.Field, what: str) -> UsageError:
    kind = KINDS[str(field.type)]
    return UsageError(f"the column {field.name} of the sidecar {uri} must hold {kind}: {what}")


def _check_rows(uri: str, table: pa.Table) -> None:
    nameless = pc.fill_null(pc.equal(table.column("source"), ""), True)
    if (row := pc.index(nameless, True).as_py()) >= 0:
        raise UsageError(f"row {row + 1} of the sidecar {uri} names no source; fill it in, or drop the row")
    start, end = (pc.fill_null(table.column(name), other) for name, other in TIMES)
    is_time = pc.and_(pc.greater_equal(start, 0.0), pc.less(start, end))  # nan is neither
    if (row := pc.index(is_time, False).as_py()) >= 0:
        raise UsageError(
            f"row {row + 1} of the sidecar {uri} goes from second {start[row].as_py():g} to "
            f"{end[row].as_py():g}; start_seconds must be 0 or more, and end_seconds greater"
        )
    lacking = [values is not None and None in values for values in table.column("action").to_pylist()]
    if True in lacking:
        raise UsageError(
            f"row {lacking.index(True) + 1} of the sidecar {uri} has an action with a gap in it; give whole "
            f"numbers alone"
        )
    _check_agreement(uri, table)


def _check_agreement(uri: str, table: pa.Table) -> None:
    """No two rows say different things of one part of a source."""
    said: dict[tuple[Any, ...], tuple[int, Any]] = {}
    parts = zip(*(table.column(name).to_pylist() for name in SCHEMA.names[:3]), strict=True)
    columns = {name: table.column(name).to_pylist() for name in VALUES}
    for row, part in enumerate(parts):
        for name in VALUES:
            value = columns[name][row]
            if value is None:
                continue
            first, before = said.setdefault((*part, name), (row, value))
            if before != value:
                raise UsageError(
                    f"rows {first + 1} and {row + 1} of the sidecar {uri} give another {name} of the same "
                    f"part of {part[0]}; keep one of them"
                )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
