"""Query results as text or bytes: an aligned table, CSV, JSON or Parquet.

NULL is empty in a table and in CSV, null in JSON; times are ISO 8601 (UTC, as DuckDB's
TIMESTAMP has no zone); maps, lists and structs are JSON. Control characters in a table's
cells are escaped, so that a hostile key cannot drive the terminal. Pure but for the
stream written to.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet
import pyarrow.types

FORMATS = ("table", "csv", "json", "parquet")
ROWS_AT_ONCE = 10_000


def write(table: pyarrow.Table, format: str, out: BinaryIO) -> None:
    """Write the whole result to `out` in one of FORMATS."""
    _WRITERS[format](table, out)


# -- values ----------------------------------------------------------------------


def plain(value: Any, kind: pyarrow.DataType) -> Any:
    """A value as JSON has it: None, bool, int, float, str, list or dict."""
    if value is None:
        return None
    if pyarrow.types.is_map(kind):
        return {str(plain(key, kind.key_type)): plain(held, kind.item_type) for key, held in value}
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        return [plain(held, kind.value_type) for held in value]
    if pyarrow.types.is_struct(kind):
        return {field.name: plain(value[field.name], field.type) for field in kind}
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    match value:
        case bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case _:
            return str(value)


def text(value: Any) -> str:
    """A plain value in a cell of a table or of CSV."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case dict() | list():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def _rows(table: pyarrow.Table) -> Iterator[list[Any]]:
    kinds = [field.type for field in table.schema]
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield [plain(value, kind) for value, kind in zip(row, kinds, strict=True)]


# -- formats ---------------------------------------------------------------------


def _write_table(table: pyarrow.Table, out: BinaryIO) -> None:
    names = [escaped(name) for name in table.schema.names]
    numeric = [
        pyarrow.types.is_integer(field.type)
        or pyarrow.types.is_floating(field.type)
        or pyarrow.types.is_decimal(field.type)
        for field in table.schema
    ]
    cells = [[escaped(text(value)) for value in row] for row in _rows(table)]
    widths = [columns_wide(name) for name in names]
    for row in cells:
        widths = [max(width, columns_wide(cell)) for width, cell in zip(widths, row, strict=True)]
    lines = [_line(names, widths, [False] * len(names)), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, numeric) for row in cells]
    count = len(cells)
    lines.append(f"({count} row{'' if count == 1 else 's'})")
    out.write(("\n".join(lines) + "\n").encode())


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for cell, width, to_right in zip(cells, widths, right, strict=True):
        space = " " * (width - columns_wide(cell))
        padded.append(space + cell if to_right else cell + space)
    return "  ".join(padded).rstrip()


def escaped(cell: str) -> str:
    """Control and formatting characters as Python writes them."""
    if cell.isprintable():
        return cell
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cell)


def columns_wide(cell: str) -> int:
    """Terminal columns: East Asian wide characters take two, combining ones none."""
    if cell.isascii():
        return len(cell)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in cell)
    return len(cell) + wide - sum(unicodedata.combining(c) > 0 for c in cell)


def _write_csv(table: pyarrow.Table, out: BinaryIO) -> None:
    stream = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(table.schema.names)
        for row in _rows(table):
            writer.writerow([text(value) for value in row])
    finally:
        stream.detach()


def _write_json(table: pyarrow.Table, out: BinaryIO) -> None:
    names = table.schema.names
    separator = b"[\n"
    for row in _rows(table):
        out.write(separator + json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False).encode())
        separator = b",\n"
    out.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def _write_parquet(table: pyarrow.Table, out: BinaryIO) -> None:
    pyarrow.parquet.write_table(table, out)


_WRITERS: dict[str, Callable[[pyarrow.Table, BinaryIO], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
}
