"""Making the tables from the keymap's state, and reading the events before it back.

load() reads everything from one snapshot. Rows travel in batches and transactions of a
bounded size, so memory does not grow with the store; until the last one the tables are at
LSN 0, which is to be loaded. recall() then derives the events of records that were applied before: the journal's files
and the archives hold those of the retention, older ones are gone.

Blocking; one thread at a time. Knows nothing of sockets or of where records come from.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from itertools import chain, islice

from engine.changes import Record
from engine.crash_sites import CrashSite, reached
from engine.interfaces import KeymapReader
from engine.tables.care_events import care_rows
from engine.tables.database import Database
from engine.tables.events import EventDeriver
from engine.tables.rows import (
    LoadTree,
    Row,
    bucket_row,
    chunk_row,
    fragment_rows,
    node_row,
    part_row,
    reference_rows,
    segment_row,
    upload_row,
    user_row,
    version_row,
)
from engine.types import Version

ROWS_AT_ONCE = 10_000
TRANSACTION_ROWS = 250_000
STATE = "STATE"  # record_type of rows that are no events

# What each name had: History's beginning.
_SEED_EVENTS = f"""
    INSERT INTO journal_events BY NAME
    SELECT $1::BIGINT AS lsn, -1 AS ordinal, bucket, key, '{STATE}' AS record_type, version_id, is_delete_marker,
        size, last_modified, nullif(etag, '') AS etag, storage_class, is_multipart, checksum_algorithm, tags,
        user_metadata, file_id, lsn AS published_lsn
    FROM versions
"""
# A version published before the oldest record that is kept was there when that was written.
_SEED_PAST = f"""
    INSERT INTO past_events
    SELECT * REPLACE ($1::BIGINT - 1 AS lsn) FROM journal_events WHERE record_type = '{STATE}' AND published_lsn < $1
"""


def load(database: Database, reader: KeymapReader, load_tree: LoadTree, fingerprint: str) -> None:
    """Replace everything by the state `reader` shows. `fingerprint` is that of its last record."""
    lsn = reader.applied_lsn()
    gc.freeze()  # else the collector goes through all that is there again for every few thousand rows
    with database.transaction():
        database.empty()
        loading = _Loading(database, reader, load_tree)
        loading.small_tables()
        loading.segments()
        loading.chunks()
        loading.uploads()
        loading.versions()
        database.execute(_SEED_EVENTS, [lsn])
        database.execute("INSERT INTO journal_buckets SELECT bucket, versioning FROM buckets")
        database.loaded(lsn, fingerprint)
        reached(CrashSite.TABLES_LOADED)


class _Loading:
    def __init__(self, database: Database, reader: KeymapReader, load_tree: LoadTree) -> None:
        self.database = database
        self.reader = reader
        self.load_tree = load_tree
        self._inserted = 0  # rows of the transaction

    def _insert(self, table: str, rows: Iterable[Row]) -> None:
        waiting = iter(rows)
        while some := list(islice(waiting, ROWS_AT_ONCE)):
            self.database.insert(table, some)
            self._inserted += len(some)
            if self._inserted >= TRANSACTION_ROWS:
                self.database.go_on()
                self._inserted = 0

    def small_tables(self) -> None:
        self._insert("buckets", map(bucket_row, self.reader.buckets()))
        self._insert("users", map(user_row, self.reader.users()))
        self._insert("nodes", map(node_row, self.reader.nodes()))

    def segments(self) -> None:
        self._insert("segment_states", map(segment_row, self.reader.segments()))
        self._insert("segment_fragments", chain.from_iterable(map(fragment_rows, self.reader.segments())))

    def chunks(self) -> None:
        chunks = self.reader.all_chunks()
        self._insert("chunks", (chunk_row(c.chunk_id, c.scope, c.length, c.location) for c in chunks))

    def uploads(self) -> None:
        self._insert("uploads", map(upload_row, self.reader.all_uploads()))
        self._insert(
            "journal_uploads",
            (
                (u.upload_id, u.storage_class, u.initiated_ns, list(u.user_metadata.items()), list(u.tags.items()))
                for u in self.reader.all_uploads()
            ),
        )
        names = {upload.upload_id: (upload.bucket, upload.key) for upload in self.reader.all_uploads()}
        self._insert("parts", map(part_row, self.reader.all_parts()))
        references = (
            reference_rows((*names[part.upload_id], None, part.upload_id, part.number), part.manifest, self.load_tree)
            for part in self.reader.all_parts()
        )
        self._insert("chunk_references", chain.from_iterable(references))

    def versions(self) -> None:
        """Versions and their references side by side: manifests are read once."""
        for bucket in self.reader.buckets():
            versions = self.reader.all_versions(bucket.name)
            while some := list(islice(versions, ROWS_AT_ONCE)):
                self._insert("versions", map(version_row, some))
                self._insert("chunk_references", chain.from_iterable(map(self._references, some)))

    def _references(self, version: Version) -> Iterable[Row]:
        owner = (version.bucket, version.key, version.version_id, None, None)
        return reference_rows(owner, version.manifest, self.load_tree)


def recall(database: Database, records: list[Record]) -> None:
    """Derive the events of the next records up to database.loaded_lsn, oldest first. The first
    of all may come later than LSN 1: what was there before it and is gone is not known then."""
    records = [record for record in records if database.recalled_lsn < record.lsn <= database.loaded_lsn]
    if not records:
        return
    with database.transaction():
        oldest_lsn = database.oldest_lsn or records[0].lsn
        if not database.oldest_lsn and oldest_lsn > 1:
            database.execute(_SEED_PAST, [oldest_lsn])
            database.execute(
                "INSERT INTO past_buckets SELECT bucket, versioning FROM buckets WHERE bucket_id < ?", [oldest_lsn]
            )
        deriver = EventDeriver(database, "past", partial=oldest_lsn > 1)
        deriver.derive(records, [])
        deriver.write()
        database.insert("store_journal", list(care_rows(records)))
        database.recalled(records[-1].lsn, oldest_lsn)
        reached(CrashSite.TABLES_RECALLED)


def recall_ends(database: Database) -> None:
    """There are no more records to come."""
    with database.transaction():
        database.recalled(database.loaded_lsn, database.oldest_lsn)
        for table in ("past_buckets", "past_uploads"):
            database.execute(f"DELETE FROM {table}")
        database.execute(f"DELETE FROM past_events WHERE record_type = '{STATE}'")
