"""Results in the four formats of `objfs sql`."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from objfs.sqlformat import escaped, write
from objfs.sqlprompt import is_complete

TABLE = pyarrow.table(
    {
        "key": pyarrow.array(["a", 'comma, "quote"', "evil\x1b[2J\nline", "日本"]),
        "size": pyarrow.array([1, None, 300, 4], pyarrow.int64()),
        "modified": pyarrow.array(
            [datetime.datetime(2026, 11, 21, 5, 0, 0, 7), None, None, None], pyarrow.timestamp("us")
        ),
        "tags": pyarrow.array(
            [[("b", "1"), ("a", "2")], [], None, None], pyarrow.map_(pyarrow.string(), pyarrow.string())
        ),
        "latest": pyarrow.array([True, False, None, True]),
        "total": pyarrow.array([decimal.Decimal(12), None, None, None], pyarrow.decimal128(38, 0)),
    }
)


def written(table: pyarrow.Table, kind: str) -> bytes:
    out = io.BytesIO()
    write(table, kind, out)
    return out.getvalue()


def test_json_gives_back_every_value() -> None:
    rows = json.loads(written(TABLE, "json"))
    assert rows[0] == {
        "key": "a",
        "size": 1,
        "modified": "2026-11-21T05:00:00.000007",
        "tags": {"b": "1", "a": "2"},
        "latest": True,
        "total": 12,
    }
    assert rows[1]["tags"] == {}
    assert rows[2]["key"] == "evil\x1b[2J\nline"
    assert [rows[2][name] for name in ("modified", "tags", "latest", "total")] == [None] * 4


def test_csv_quotes_what_needs_it_and_leaves_null_empty() -> None:
    rows = list(csv.reader(io.StringIO(written(TABLE, "csv").decode(), newline="")))
    assert rows[0] == ["key", "size", "modified", "tags", "latest", "total"]
    assert rows[1] == ["a", "1", "2026-11-21T05:00:00.000007", '{"b": "1", "a": "2"}', "true", "12"]
    assert rows[2] == ['comma, "quote"', "", "", "{}", "false", ""]
    assert rows[3][0] == "evil\x1b[2J\nline"


def test_a_table_is_aligned_and_its_cells_cannot_drive_the_terminal() -> None:
    lines = written(TABLE.select(["key", "size"]), "table").decode().splitlines()
    assert lines == [
        "key                size",
        "-----------------  ----",
        "a                     1",
        'comma, "quote"',
        "evil\\x1b[2J\\nline   300",
        "日本                  4",
        "(4 rows)",
    ]
    assert escaped("a\u202eb\x00") == "a\\u202eb\\x00"


def test_parquet_reads_back_as_it_was() -> None:
    assert pyarrow.parquet.read_table(io.BytesIO(written(TABLE, "parquet"))).equals(TABLE)


@pytest.mark.parametrize(("kind", "empty"), [("json", "[]\n"), ("csv", "key\n"), ("table", "key\n---\n(0 rows)\n")])
def test_no_rows(kind: str, empty: str) -> None:
    assert written(TABLE.select(["key"]).slice(0, 0), kind).decode() == empty


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("SELECT 1;", True),
        ("SELECT 1", False),
        ("SELECT ';", False),
        ("SELECT 'it''s;' ;", True),
        ("SELECT 1 -- not yet;", False),
        ("/* ; */ SELECT 1;", True),
        ('SELECT "a;', False),
        ("", True),
        ("exit", True),
    ],
)
def test_a_statement_goes_on_until_its_semicolon(text: str, complete: bool) -> None:
    assert is_complete(text) is complete
