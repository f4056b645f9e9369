"""SQL is read-only and touches nothing outside the tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import QueryFailed
from engine.tables.database import Database
from engine.tables.schema import TABLES, VIEWS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(str(tmp_path / "tables.duckdb"), "store")
    yield made
    made.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM inventory",
        "FROM journal LIMIT 3;",
        "WITH v AS (SELECT * FROM versions) SELECT count(*) FROM v",
        "VALUES (1), (2)",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "DESCRIBE inventory",
        "SUMMARIZE versions",
        "EXPLAIN SELECT * FROM journal",
        "-- why is it slow?\nEXPLAIN ANALYZE SELECT * FROM space",
        "SELECT unnest([1, 2]) AS n, list_transform([1], lambda x: x + 1)",
        "SELECT * FROM range(3)",
        "PIVOT versions ON is_latest IN (true, false) USING count(*)",
        "SELECT table_name FROM duckdb_tables()",
        "SELECT bucket, key FROM inventory WHERE object_tags['team'] = 'ink' AND user_metadata['a'] IS NULL",
    ],
)
def test_reading_statements_run(database: Database, sql: str) -> None:
    assert database.cursor().run(sql).num_columns > 0


HOSTILE = [
    "COPY versions TO '{out}/stolen.csv'",
    "COPY (SELECT 1) TO '{out}/stolen.parquet' (FORMAT parquet)",
    "EXPORT DATABASE '{out}/stolen'",
    "INSERT INTO buckets (bucket) VALUES ('x')",
    "UPDATE versions SET size = 0",
    "DELETE FROM versions",
    "DROP TABLE versions",
    "CREATE TABLE mine (a INT)",
    "CREATE TEMP TABLE mine AS SELECT 1",
    "CREATE OR REPLACE VIEW inventory AS SELECT 1",
    "CREATE MACRO f(x) AS x",
    "ALTER TABLE versions DROP COLUMN size",
    "TRUNCATE versions",
    "EXPLAIN ANALYZE DELETE FROM versions",
    "EXPLAIN COPY versions TO '{out}/stolen.csv'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_parquet('/etc/passwd')",
    "SELECT * FROM read_json('http://127.0.0.1:1/x')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM "/etc/passwd"',
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "DESCRIBE SELECT * FROM read_csv('/etc/passwd')",
    "SUMMARIZE SELECT * FROM read_csv('/etc/passwd')",
    "WITH a AS (SELECT * FROM read_text('/etc/passwd')) SELECT * FROM a",
    "SELECT (SELECT count(*) FROM read_text('/etc/passwd'))",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT getenv('HOME')",
    "ATTACH '{out}/other.duckdb'",
    "ATTACH ':memory:' AS other",
    "DETACH tables",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '100GB'",
    "SET GLOBAL enable_external_access = true",
    "RESET enable_external_access",
    "PRAGMA enable_profiling",
    "PRAGMA memory_limit = '1GB'",
    "CALL enable_logging()",
    "SELECT * FROM enable_logging(storage := 'file', storage_config := {{'path': '{out}/log'}})",
    "SELECT * FROM enable_profiling(save_location := '{out}/profile')",
    "SELECT * FROM disable_logging()",
    "SELECT write_log('x')",
    "SELECT * FROM arrow_scan(1, 1, 1)",
    "SELECT * FROM pandas_scan(0)",
    "SELECT * FROM python_map_function(0)",
    "SELECT * FROM force_checkpoint()",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "BEGIN",
    "COMMIT",
    "ROLLBACK; DELETE FROM versions",
    "SELECT 1; DROP TABLE versions",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT nextval('x')",
    "",
    ";",
    "SELEC 1",
    "SELECT * FROM no_such_table",
    "SELECT * FROM statements",  # a Python variable is no table
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_anything_else_is_refused_on_one_line(database: Database, tmp_path: Path, sql: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    statements = ["a", "python", "variable"]
    with pytest.raises(QueryFailed) as refused:
        database.cursor().run(sql.format(out=outside))
    assert "\n" not in str(refused.value)
    assert str(refused.value)
    assert not list(outside.iterdir())
    # the database is as it was, and still answers
    assert database.cursor().run("SELECT count(*) AS n FROM versions").to_pylist() == [{"n": 0}]
    assert {row[0] for row in database.rows("SELECT table_name FROM duckdb_tables()")} == set(TABLES)
    assert statements


def test_a_query_can_be_interrupted(database: Database) -> None:
    import threading

    cursor = database.cursor()
    timer = threading.Timer(0.3, cursor.interrupt)
    timer.start()
    with pytest.raises(QueryFailed, match=r"(?i)interrupt"):
        cursor.run("SELECT count(*) FROM range(100000000000) a, range(1000) b WHERE (a.range * b.range) % 7 = 3")
    timer.join()


def test_an_endless_result_is_refused_before_it_fills_memory(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.tables.database.RESULT_BYTES_MAX", 1024 * 1024)
    with pytest.raises(QueryFailed, match="LIMIT"):
        database.cursor().run("SELECT range FROM range(100000000)")


def test_every_view_answers_on_an_empty_store(database: Database) -> None:
    for view in VIEWS:
        assert database.cursor().run(f"SELECT * FROM {view}").num_columns > 0, view
