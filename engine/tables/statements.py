"""Which statements a user may run: one SELECT, or an EXPLAIN of one. Nothing else.

DuckDB's own locks (no external access, locked configuration, a read-only transaction)
stop writes and files. They do not stop table functions that act on the whole database
instance: `SELECT * FROM enable_logging(storage := 'file', …)` makes every later
statement fail and ends the process, `arrow_scan` reads raw pointers. So table functions
are allowed by name. DESCRIBE, SHOW and SUMMARIZE are SELECTs to the parser. Safe to call
from any thread.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import duckdb

from engine.errors import QueryFailed

TABLE_FUNCTIONS_ALLOWED = frozenset(
    {
        "unnest",
        "range",
        "generate_series",
        "repeat",
        "repeat_row",
        "json_each",
        "json_tree",
        "summary",
        "query_table",
        "histogram",
        "histogram_values",
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_databases",
        "duckdb_functions",
        "duckdb_keywords",
        "duckdb_schemas",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "pragma_database_size",
        "pragma_show",
        "pragma_table_info",
        "pragma_version",
        "pg_timezone_names",
        "icu_calendar_names",
    }
)
SCALAR_FUNCTIONS_REFUSED = frozenset({"write_log", "json_execute_serialized_sql", "query"})

_EXPLAIN = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*explain\b(\s+analyze\b)?(\s*\([^()]*\))?\s*", re.IGNORECASE | re.DOTALL
)
_HISTORY = re.compile("journal|past_events|query_table", re.IGNORECASE)
_QUARANTINE = re.compile("quarantine|query_table", re.IGNORECASE)
_READ_ONLY = "SQL here is read-only: one SELECT, WITH, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN at a time"

_parser_lock = threading.Lock()
_parser: list[duckdb.DuckDBPyConnection] = []


def _serialize(sql: str) -> dict[str, Any]:
    """The parse tree of SELECT statements, by DuckDB's own parser; nothing is run."""
    with _parser_lock:
        if not _parser:
            locked: dict[str, str | bool | int | float | list[str]] = {
                "enable_external_access": "false",
                "lock_configuration": "true",
                "threads": "1",
            }
            _parser.append(duckdb.connect(":memory:", config=locked))
        row = _parser[0].execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    assert row is not None
    tree: dict[str, Any] = json.loads(row[0])
    return tree


def asks_for_history(sql: str) -> bool:
    """Whether the statement may read what happened, and not only what is. Errs on that side."""
    return _HISTORY.search(sql) is not None


def asks_for_quarantine(sql: str) -> bool:
    """Whether the statement may read what was set aside. Errs on that side."""
    return _QUARANTINE.search(sql) is not None


def one_line(error: Exception) -> str:
    """DuckDB's message without the quoted statement that follows it."""
    text = str(error).split("\n\nLINE ")[0].split("\nLINE ")[0].split("Stack Trace:")[0]
    return " ".join(text.split())


def check(sql: str) -> str:
    """The one statement in `sql`, or QueryFailed if a user may not run it."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryFailed(one_line(error)) from error
    if len(statements) != 1:
        raise QueryFailed(_READ_ONLY if statements else "no statement given")
    kind = statements[0].type
    statement: str = statements[0].query
    if kind == duckdb.StatementType.EXPLAIN:
        explain = _EXPLAIN.match(statement)
        if explain is None:
            raise QueryFailed(_READ_ONLY)
        check(statement[explain.end() :])
    elif kind == duckdb.StatementType.SELECT:
        _check_tree(_serialize(statement))
    else:
        raise QueryFailed(f"{kind.name} is refused. {_READ_ONLY}")
    return statement


def _check_tree(tree: dict[str, Any]) -> None:
    if tree.get("error"):
        raise QueryFailed(" ".join(str(tree.get("error_message", _READ_ONLY)).split()))
    stack: list[Any] = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
            if item.get("type") == "TABLE_FUNCTION":
                name = str(item["function"].get("function_name", "")).lower()
                if name not in TABLE_FUNCTIONS_ALLOWED:
                    raise QueryFailed(f"the table function {name} is not available here")
            elif str(item.get("function_name", "")).lower() in SCALAR_FUNCTIONS_REFUSED:
                raise QueryFailed(f"the function {item['function_name']} is not available here")
