"""The DuckDB file: opening or rebuilding it, bulk writes, guarded reads.

Blocking throughout; the service calls it from worker threads. Writing is for one thread
at a time; `query` may run in others beside it, each on a cursor of its own, and sees the
last committed transaction. Knows no journal and no keymap.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow

from engine.errors import QueryFailed, StoreInUse
from engine.file_sums import sum_file, take_sum, write_sum
from engine.tables import schema, statements

log = logging.getLogger(__name__)

RESULT_BYTES_MAX = 512 * 1024**2  # a result is held whole; larger ones must be aggregated or limited
MEMORY_LIMIT = "512MB"  # DuckDB's own; it spills beyond

Rows = Sequence[tuple[Any, ...]]


class TablesDamaged(QueryFailed):
    """The file is not a DuckDB file, of another schema or store, or cannot be read."""


def is_damage(error: duckdb.Error) -> bool:
    """Whether the file, or this process's view of it, is at fault: not the statement."""
    if isinstance(error, (duckdb.FatalException, duckdb.InternalException, duckdb.SerializationException)):
        return True
    return isinstance(error, duckdb.IOException) and ("orrupt" in str(error) or "checksum" in str(error))


def lacks_room(error: duckdb.Error) -> bool:
    """Whether another file in its place would fare no better."""
    return isinstance(error, duckdb.OutOfMemoryException) or "No space left" in str(error)


def _failure(error: Exception) -> QueryFailed:
    """What to tell who asked."""
    damaged = isinstance(error, duckdb.Error) and is_damage(error)
    return (TablesDamaged if damaged else QueryFailed)(statements.one_line(error))


class Database:
    """One open tables file. The LSNs and the fingerprint are those of its last transaction
    (schema.py, tables_state)."""

    def __init__(self, path: str, store_id: str, *, m: int = 2) -> None:
        self.path = path
        self.store_id = store_id
        self.m = m
        self.applied_lsn = 0
        self.state_lsn = 0
        self.fingerprint = ""
        self.loaded_lsn = 0
        self.recalled_lsn = 0
        self.oldest_lsn = 0
        self._connection = self._open()

    def _open(self) -> duckdb.DuckDBPyConnection:
        """Open the file; one that cannot serve is set aside and made anew."""
        try:
            self._check_sum()
            return self._connect()
        except (duckdb.Error, TablesDamaged, OSError, RuntimeError) as error:
            if "Could not set lock" in str(error):
                raise StoreInUse(f"the tables at {self.path} are open in another process") from error
            if not os.path.exists(self.path):
                raise
            log.warning("the tables at %s are made anew: %s", self.path, statements.one_line(error))
            self._set_aside()
            return self._connect()

    def _check_sum(self) -> None:
        """Raises TablesDamaged unless the file is the one that was closed. After a crash
        there is nothing to compare: DuckDB checks what it reads of the file itself."""
        path = Path(self.path)
        expected = take_sum(path)
        if expected is None or not path.exists():
            return
        if expected.damaged or path.stat().st_size != expected.size or sum_file(path) != expected:
            raise TablesDamaged(expected.damaged or "it does not have the checksum it was closed with")

    def _set_aside(self) -> None:
        for suffix in ("", ".wal"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path + suffix, f"{self.path}.damaged{suffix}")

    def _delete_files(self) -> None:
        for path in (self.path, self.path + ".wal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(
            self.path,
            config={
                "enable_external_access": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": self.path + ".tmp",
                "threads": "2",
                "lock_configuration": "true",
            },
        )
        try:
            known = connection.execute(
                "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'tables_state'"
            ).fetchone()
            if known == (0,):
                self._create(connection)
            self._read_state(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _read_state(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Raises TablesDamaged."""
        rows = connection.execute(
            """SELECT schema_version, store_id, m, applied_lsn, state_lsn, fingerprint, loaded_lsn, recalled_lsn,
                oldest_lsn FROM tables_state"""
        ).fetchall()
        if len(rows) != 1 or rows[0][:3] != (schema.SCHEMA_VERSION, self.store_id, self.m):
            raise TablesDamaged("another store's, or of another release")
        self.applied_lsn, self.state_lsn, self.fingerprint = rows[0][3:6]
        self.loaded_lsn, self.recalled_lsn, self.oldest_lsn = rows[0][6:]

    def _create(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("BEGIN")
        self._lay_out(connection)
        for name, select in schema.VIEWS.items():
            connection.execute(f"CREATE VIEW {name} AS {select}")
        connection.execute("COMMIT")

    def _lay_out(self, connection: duckdb.DuckDBPyConnection) -> None:
        for name in schema.TABLES:
            connection.execute(schema.create_table(name))
        connection.execute(
            "INSERT INTO tables_state VALUES (?, ?, ?, 0, 0, '', 0, 0, 0)",
            [schema.SCHEMA_VERSION, self.store_id, self.m],
        )

    def restart(self) -> None:
        """Put an empty file in the place of this one. No cursor may be open."""
        self._connection.close()
        self._delete_files()
        self._connection = self._open()

    # -- writing: one thread at a time ---------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # the first error is the one to tell
                self._connection.execute("ROLLBACK")
            raise
        self._read_state(self._connection)

    def go_on(self) -> None:
        """Commit, inside the transaction, what there is and begin another: what DuckDB holds
        in memory grows with a transaction."""
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN")

    def empty(self) -> None:
        """Forget, inside the transaction, everything: the tables are at LSN 0 then."""
        self._lay_out(self._connection)

    def loaded(self, lsn: int, fingerprint: str) -> None:
        """Note, inside the transaction, that all of it is the state as of `lsn`."""
        self._connection.execute(
            "UPDATE tables_state SET applied_lsn = $1, state_lsn = $1, fingerprint = $2, loaded_lsn = $1",
            [lsn, fingerprint],
        )

    def recalled(self, lsn: int, oldest_lsn: int) -> None:
        """Note, inside the transaction, that the events from `oldest_lsn` up to `lsn` are in."""
        self._connection.execute("UPDATE tables_state SET recalled_lsn = ?, oldest_lsn = ?", [lsn, oldest_lsn])

    def advance(self, lsn: int, state_lsn: int, fingerprint: str) -> None:
        """Note, inside the transaction, that every record up to `lsn` is in, and the state as
        of `state_lsn`."""
        self._connection.execute(
            "UPDATE tables_state SET applied_lsn = ?, state_lsn = greatest(state_lsn, ?), fingerprint = ?",
            [lsn, state_lsn, fingerprint],
        )

    def insert(self, table: str, rows: Rows) -> None:
        if not rows:
            return
        columns = schema.arrow_schema(table)
        arrays = [
            pyarrow.array(values, field.type) for values, field in zip(zip(*rows, strict=True), columns, strict=True)
        ]
        with self._registered("incoming", pyarrow.Table.from_arrays(arrays, schema=columns)):
            self._connection.execute(f"INSERT INTO {table} SELECT * FROM incoming")

    def delete(self, table: str, columns: Sequence[str], keys: Rows) -> None:
        """Delete the rows whose `columns` equal one of `keys` (no NULLs)."""
        if not keys:
            return
        with self._registered("incoming", self._key_table(table, columns, keys)):
            match = " AND ".join(f't."{column}" = i."{column}"' for column in columns)
            self._connection.execute(f"DELETE FROM {table} t USING incoming i WHERE {match}")

    def matching(self, select: str, table: str, columns: Sequence[str], keys: Rows) -> list[tuple[Any, ...]]:
        """Run `select`, in which `incoming` is the table of `keys`."""
        if not keys:
            return []
        with self._registered("incoming", self._key_table(table, columns, keys)):
            return self.rows(select)

    def replace(self, table: str, rows: Rows) -> None:
        self._connection.execute(f"DELETE FROM {table}")
        self.insert(table, rows)

    def put_in_place(self, table: str, rows: Rows) -> None:
        """replace(), in a transaction of its own, for a query. Raises TablesDamaged, QueryFailed."""
        try:
            with self.transaction():
                self.replace(table, rows)
        except duckdb.Error as error:
            raise _failure(error) from error

    def rows(self, select: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT of ours on the writing connection (timestamps excepted)."""
        return self._connection.execute(select, list(arguments)).fetchall()

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> None:
        self._connection.execute(statement, list(arguments))

    def _key_table(self, table: str, columns: Sequence[str], keys: Rows) -> pyarrow.Table:
        kinds = [schema.ARROW_TYPES[schema.TABLES[table][column]] for column in columns]
        arrays = [pyarrow.array(values, kind) for values, kind in zip(zip(*keys, strict=True), kinds, strict=True)]
        return pyarrow.Table.from_arrays(arrays, names=list(columns))

    @contextlib.contextmanager
    def _registered(self, name: str, table: pyarrow.Table) -> Iterator[None]:
        self._connection.register(name, table)
        try:
            yield
        finally:
            self._connection.unregister(name)

    # -- reading: any thread ------------------------------------------------------

    def cursor(self) -> Cursor:
        return Cursor(self._connection.cursor())

    def close(self) -> None:
        """What is in the file's WAL goes into the file; then its checksum is left beside it."""
        self._connection.close()
        path = Path(self.path)
        if path.exists() and not os.path.exists(self.path + ".wal"):
            write_sum(path)


class Cursor:
    """One user query, in a read-only transaction of its own; `interrupt` ends it from
    another thread."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._interrupted = threading.Event()
        self._lock = threading.Lock()  # interrupt and close exclude each other
        self.ended = False

    def interrupt(self) -> None:
        """May be missed by a statement about to start: repeat until `ended`."""
        self._interrupted.set()
        with self._lock:
            if not self.ended:
                self._connection.interrupt()

    def run(self, sql: str) -> pyarrow.Table:
        try:
            statement = statements.check(sql)
            self._connection.execute("BEGIN TRANSACTION READ ONLY")
            reader = self._connection.execute(statement).to_arrow_reader(10_000)
            return self._collect(reader)
        except (duckdb.Error, pyarrow.ArrowException) as error:
            raise _failure(error) from error
        finally:
            with self._lock:
                self.ended = True
                self._connection.close()

    def _collect(self, reader: pyarrow.RecordBatchReader) -> pyarrow.Table:
        batches, total = [], 0
        for batch in reader:
            if self._interrupted.is_set():
                raise QueryFailed("the query was interrupted")
            total += batch.nbytes
            if total > RESULT_BYTES_MAX:
                raise QueryFailed(f"the result is over {RESULT_BYTES_MAX >> 20} MiB: aggregate, or add LIMIT")
            batches.append(batch)
        return pyarrow.Table.from_batches(batches, schema=reader.schema)
