"""The keymap's file: its tables, how the one writer opens it, and what it has applied.

The file is derived from the journal and disposable: whatever makes it doubtful raises
KeymapDamaged, and the caller deletes it and replays. One process writes, through one
connection used from one thread; readers use read-only connections (WAL).

Every WITHOUT ROWID table keeps what listings need in its first columns and the manifest
last, so that a scan never touches the overflow pages of large manifests.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from engine.errors import StoreError

FORMAT = 3  # 3: open segments have an index
PAGE_BYTES = 8192
CACHE_KIBIBYTES = 64 * 1024
MMAP_BYTES = 1024**3
STATEMENTS_CACHED = 256

# The columns of a version, the same in keys (its newest version, delete markers
# included) and in history (all older ones). rest is msgpack of rows.Rest, or NULL.
_VERSION_COLUMNS = """
    lsn INTEGER NOT NULL,
    marker INTEGER NOT NULL,
    version_id TEXT NOT NULL,
    last_modified_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    etag TEXT NOT NULL,
    file_id INTEGER NOT NULL,
    link_count INTEGER NOT NULL,
    storage_class TEXT NOT NULL,
    owner TEXT NOT NULL,
    rest BLOB,
    manifest BLOB
"""

_TABLES = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE buckets (name TEXT PRIMARY KEY, bucket_id INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX buckets_by_id ON buckets (bucket_id);
CREATE TABLE keys (
    bucket_id INTEGER NOT NULL, key TEXT NOT NULL, {_VERSION_COLUMNS}, PRIMARY KEY (bucket_id, key)
) WITHOUT ROWID;
-- The names of a file: a partial index, which SQLite keeps right by itself.
CREATE INDEX names ON keys (file_id) WHERE file_id > 0;
-- newest_first is -lsn, so that history reads newest first in primary key order.
CREATE TABLE history (
    bucket_id INTEGER NOT NULL, key TEXT NOT NULL, newest_first INTEGER NOT NULL, {_VERSION_COLUMNS},
    PRIMARY KEY (bucket_id, key, newest_first)
) WITHOUT ROWID;
CREATE INDEX history_null ON history (bucket_id, key) WHERE version_id = 'null';
CREATE TABLE uploads (
    bucket_id INTEGER NOT NULL, key TEXT NOT NULL, upload_id TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (bucket_id, key, upload_id)
) WITHOUT ROWID;
CREATE TABLE parts (
    upload_id TEXT NOT NULL, number INTEGER NOT NULL, lsn INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (upload_id, number)
) WITHOUT ROWID;
-- stored is the frame's length, location msgpack of types.Location, bucket_id the bucket whose
-- write brought the chunk (0: none). container is the segment id, minus the first LSN of the
-- journal file, or 0 while the record is being written.
CREATE TABLE chunks (
    scope INTEGER NOT NULL, chunk_id BLOB NOT NULL, length INTEGER NOT NULL, stored INTEGER NOT NULL,
    location BLOB NOT NULL, container INTEGER NOT NULL, bucket_id INTEGER NOT NULL, PRIMARY KEY (scope, chunk_id)
) WITHOUT ROWID;
CREATE INDEX chunks_by_container ON chunks (container);
-- Containers nothing new is matched in, each with the LSN of the record that condemned it.
CREATE TABLE condemned (container INTEGER PRIMARY KEY, lsn INTEGER NOT NULL);
-- What tells a deleted segment's leftover files from those of an unknown one.
CREATE TABLE deleted_segments (segment_id INTEGER PRIMARY KEY, lsn INTEGER NOT NULL);
-- open says what the body says, so that opening a store finds the few open ones among many.
CREATE TABLE segments (segment_id INTEGER PRIMARY KEY, open INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX segments_open ON segments (open) WHERE open = 1;
CREATE TABLE nodes (node_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE users (access_key TEXT PRIMARY KEY, name TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX users_by_name ON users (name);
CREATE TABLE answered (request_id TEXT PRIMARY KEY, lsn INTEGER NOT NULL, result BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX answered_by_lsn ON answered (lsn);
"""


class KeymapDamaged(StoreError):
    """The keymap file can't be used: delete it and replay the journal."""


def create_tables(db: sqlite3.Connection, store_id: str) -> None:
    """Lay out an empty keymap, in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)
    meta = {"format": FORMAT, "store_id": store_id, "epoch": 0, "applied_lsn": 0, "journal_first_lsn": 1}
    db.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
    db.execute("COMMIT")


def open_writer(path: Path, store_id: str) -> sqlite3.Connection:
    """The writing connection; creates the file if there is none. Raises KeymapDamaged if
    the file is no whole keymap of this store and format. Ends with page_sums.PageSums.close(),
    or close_unchanged()."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS_CACHED)
    try:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        # The journal is what makes commits durable; the file only must not tear.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
        db.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
        db.execute("PRAGMA wal_autocheckpoint = 0")  # page_sums.py copies the log
        if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            create_tables(db, store_id)
        _check(db, path, store_id)
    except sqlite3.DatabaseError as error:
        _discard(db)
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise
        raise KeymapDamaged(f"{path} is not a whole keymap ({error}); it will be rebuilt from the journal") from error
    except KeymapDamaged:
        _discard(db)
        raise
    return db


def _check(db: sqlite3.Connection, path: Path, store_id: str) -> None:
    meta = dict(db.execute("SELECT name, value FROM meta").fetchall())
    if meta.get("format") != FORMAT:
        raise KeymapDamaged(f"{path} has keymap format {meta.get('format')}, not {FORMAT}; it will be rebuilt")
    if meta.get("store_id") != store_id:
        raise KeymapDamaged(f"{path} belongs to store {meta.get('store_id')}; it will be rebuilt")
    expected = {name for (name,) in _reference().execute("SELECT name FROM sqlite_schema")}
    if not expected <= {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}:
        raise KeymapDamaged(f"{path} lacks a table; it will be rebuilt")
    get_state(db)
    # A damaged header can make SQLite take the file for read-only; only a write tells.
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE meta SET value = value WHERE name = 'format'")
    db.execute("ROLLBACK")


def _reference() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    create_tables(db, "")
    return db


def _discard(db: sqlite3.Connection) -> None:
    with suppress(sqlite3.DatabaseError):  # closing a damaged file may complain once more
        db.close()


def get_state(db: sqlite3.Connection) -> tuple[int, int]:
    """(epoch, applied LSN) of the last applied record; (0, 0) in an empty keymap."""
    meta = dict(db.execute("SELECT name, value FROM meta WHERE name IN ('epoch', 'applied_lsn')").fetchall())
    if len(meta) != 2 or not all(isinstance(value, int) for value in meta.values()):
        raise KeymapDamaged("the keymap does not say what it has applied; it will be rebuilt from the journal")
    return meta["epoch"], meta["applied_lsn"]


def set_state(db: sqlite3.Connection, epoch: int, lsn: int) -> None:
    """Note, in the transaction that applies them, that records up to `lsn` are applied."""
    db.executemany("UPDATE meta SET value = ? WHERE name = ?", ((epoch, "epoch"), (lsn, "applied_lsn")))


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection; raises sqlite3.OperationalError while there is no file."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS_CACHED,
    )
    db.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
    db.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
    return db
