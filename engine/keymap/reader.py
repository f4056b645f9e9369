"""SqliteKeymap: point reads and scans of the keymap file, by any process.

Reads are synchronous and take microseconds, so they belong on the event loop's thread;
one SqliteKeymap is used from one thread, and says so where it is not: SQLite ends the
process when one thread closes what another reads. Each call sees one snapshot (WAL). The file may
not exist yet, and is replaced by a rebuild: reopen() then. It knows nothing of changes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import get_ident

import msgspec

from engine.errors import IndexUnavailable, NoSuchUpload
from engine.interfaces import Child, ListPage, StoredChunk, VersionsPage
from engine.keymap import listing
from engine.keymap.chunks import decode_segment, find_segment
from engine.keymap.counting import read_counters
from engine.keymap.rows import WHOLE, decode_location, decode_manifest, version_of
from engine.keymap.schema import get_state, open_reader
from engine.keymap.state import decode_bucket, find_bucket
from engine.types import NULL_VERSION_ID, Bucket, Location, Manifest, NodeEntry, Part, Segment, Upload, User, Version

_IDS_AT_ONCE = 500  # SQLite's limit on parameters is far above; statements stay cached

_decode_upload = msgspec.msgpack.Decoder(Upload).decode
_decode_part = msgspec.msgpack.Decoder(Part).decode
_decode_user = msgspec.msgpack.Decoder(User).decode
_decode_node = msgspec.msgpack.Decoder(NodeEntry).decode


class SqliteKeymap:
    """The KeymapReader over the keymap file. See the module."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._thread: int | None = get_ident()  # the only one that may read it; None: any

    @classmethod
    def over(cls, connection: sqlite3.Connection) -> SqliteKeymap:
        """A reader on the writer's own connection and thread: it sees the transaction
        that is open there. close() leaves the connection alone."""
        keymap = cls(None)
        keymap._connection = connection
        return keymap

    def reopen(self) -> None:
        """Use the file that is there now."""
        self.close()

    def close(self) -> None:
        if self._path is not None and self._connection is not None:
            self._check_thread()
            self._connection.close()
            self._connection = None

    def _check_thread(self) -> None:
        if self._thread is not None and self._thread != get_ident():
            raise RuntimeError("the keymap is read by the event loop's thread alone; hand a snapshot() to another")

    @property
    def _db(self) -> sqlite3.Connection:
        self._check_thread()
        if self._connection is None:
            assert self._path is not None
            try:
                self._connection = open_reader(self._path)
            except sqlite3.OperationalError as error:
                raise IndexUnavailable(f"the keymap can't be opened ({error}); is the index process up?") from error
        return self._connection

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        if db.in_transaction:  # the writer's own, or a call inside a call
            yield db
            return
        db.execute("BEGIN")
        try:
            yield db
        finally:
            db.execute("ROLLBACK")

    @contextmanager
    def snapshot(self) -> Iterator[SqliteKeymap]:
        """A reader with a connection of its own, whose calls all see the state of one LSN.
        It may be handed to another thread, and used by one at a time."""
        reader = SqliteKeymap(self._path)
        reader._thread = None
        try:
            reader._db.execute("BEGIN")
            reader.applied_lsn()  # the first read is what fixes the state
            yield reader
        finally:
            reader.close()

    def applied_lsn(self) -> int:
        return get_state(self._db)[1]

    # -- buckets and versions ----------------------------------------------------

    def bucket(self, name: str) -> Bucket:
        return find_bucket(self._db, name)

    def buckets(self) -> list[Bucket]:
        return [decode_bucket(body) for (body,) in self._db.execute("SELECT body FROM buckets ORDER BY name")]

    def head(self, bucket: str, key: str) -> Version | None:
        select = f"""SELECT {WHOLE} FROM keys WHERE key = ?
            AND bucket_id = (SELECT bucket_id FROM buckets WHERE name = ?)"""
        row = self._db.execute(select, (key, bucket)).fetchone()
        if row is not None:
            return version_of(bucket, row)
        find_bucket(self._db, bucket)
        return None

    def version(self, bucket: str, key: str, version_id: str) -> Version | None:
        with self._snapshot() as db:
            newest = self.head(bucket, key)
            if newest is None or newest.version_id == version_id:
                return newest
            # "null" is written out so that SQLite sees that the partial index serves.
            which = "'null'" if version_id == NULL_VERSION_ID else "?"
            parameters = (find_bucket(db, bucket).bucket_id, key) + (() if which == "'null'" else (version_id,))
            select = f"SELECT {WHOLE} FROM history WHERE bucket_id = ? AND key = ? AND version_id = {which}"
            row = db.execute(select, parameters).fetchone()
            return None if row is None else version_of(bucket, row, is_latest=False)

    def list_objects(
        self, bucket: str, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> ListPage:
        with self._snapshot() as db:
            return listing.list_objects(db, find_bucket(db, bucket), prefix, delimiter, after, limit)

    def list_versions(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionsPage:
        with self._snapshot() as db:
            found = find_bucket(db, bucket)
            return listing.list_versions(db, found, prefix, delimiter, key_marker, version_id_marker, limit)

    # -- uploads -----------------------------------------------------------------

    def upload(self, bucket: str, key: str, upload_id: str) -> Upload:
        with self._snapshot() as db:
            select = "SELECT body FROM uploads WHERE bucket_id = ? AND key = ? AND upload_id = ?"
            row = db.execute(select, (find_bucket(db, bucket).bucket_id, key, upload_id)).fetchone()
        if row is None:
            raise NoSuchUpload(f"there is no upload {upload_id} of {key}")
        return _decode_upload(row[0])

    def uploads(
        self, bucket: str, prefix: str = "", after_key: str = "", after_upload_id: str = "", limit: int = 1000
    ) -> list[Upload]:
        """By key, then by age. With `after_upload_id` also later uploads of after_key."""
        with self._snapshot() as db:
            bucket_id = find_bucket(db, bucket).bucket_id
            select = "SELECT body, key FROM uploads WHERE bucket_id = ? AND key >= ?"
            parameters: list[object] = [bucket_id, max(prefix, after_key)]
            if after_key and after_upload_id:
                select += " AND (key, upload_id) > (?, ?)"
                parameters += [after_key, after_upload_id]
            elif after_key:
                select += " AND key > ?"
                parameters.append(after_key)
            found: list[Upload] = []
            for body, key in db.execute(f"{select} ORDER BY key, upload_id", parameters):
                if len(found) >= limit or not key.startswith(prefix):
                    break
                found.append(_decode_upload(body))
            return found

    def parts(self, upload_id: str, after: int = 0, limit: int = 10_000) -> list[Part]:
        select = "SELECT body FROM parts WHERE upload_id = ? AND number > ? ORDER BY number LIMIT ?"
        rows = self._db.execute(select, (upload_id, after, max(limit, 0)))
        return [_decode_part(body) for (body,) in rows]

    # -- chunks, segments, nodes, users --------------------------------------------

    def locations(self, chunk_ids: Iterable[bytes], scope: int = 0) -> dict[bytes, Location]:
        found: dict[bytes, Location] = {}
        wanted = iter(chunk_ids)
        with self._snapshot() as db:
            while some := list(islice(wanted, _IDS_AT_ONCE)):
                places = ", ".join("?" * len(some))
                select = f"SELECT chunk_id, location FROM chunks WHERE scope = ? AND chunk_id IN ({places})"
                for chunk_id, location in db.execute(select, (scope, *some)):
                    if location:  # else of a record that is being written
                        found[chunk_id] = decode_location(location)
        return found

    def matchable(self, chunk_ids: Iterable[bytes], scope: int = 0) -> set[bytes]:
        found: set[bytes] = set()
        wanted = iter(chunk_ids)
        with self._snapshot() as db:
            while some := list(islice(wanted, _IDS_AT_ONCE)):
                places = ", ".join("?" * len(some))
                select = f"""SELECT chunk_id FROM chunks WHERE scope = ? AND chunk_id IN ({places})
                    AND container NOT IN (SELECT container FROM condemned)"""
                found.update(chunk_id for (chunk_id,) in db.execute(select, (scope, *some)))
        return found

    def chunks_in(self, container: int, limit: int = -1, after: tuple[int, bytes] = (-1, b"")) -> list[StoredChunk]:
        select = """SELECT scope, chunk_id, length, stored, location, bucket_id FROM chunks
            WHERE container = ? AND (scope, chunk_id) > (?, ?) ORDER BY scope, chunk_id LIMIT ?"""
        return [
            StoredChunk(scope, chunk_id, length, stored, decode_location(location), bucket_id)
            for scope, chunk_id, length, stored, location, bucket_id in self._db.execute(
                select, (container, *after, limit)
            )
        ]

    def journal_containers(self) -> dict[int, int]:
        select = "SELECT container, sum(stored) FROM chunks WHERE container < 0 GROUP BY container"
        return dict(self._db.execute(select).fetchall())

    def containers(self) -> dict[int, int]:
        select = "SELECT container, sum(stored) FROM chunks GROUP BY container"
        return dict(self._db.execute(select).fetchall())

    def condemned(self) -> dict[int, int]:
        return dict(self._db.execute("SELECT container, lsn FROM condemned").fetchall())

    def manifests(self, after_lsn: int = 0) -> Iterator[Manifest]:
        for table in ("keys", "history"):
            select = f"SELECT manifest FROM {table} WHERE manifest IS NOT NULL AND lsn > ?"
            for (manifest,) in self._db.execute(select, (after_lsn,)):
                yield decode_manifest(manifest)
        for (body,) in self._db.execute("SELECT body FROM parts WHERE lsn > ?", (after_lsn,)):
            yield _decode_part(body).manifest

    def all_versions(self, bucket: str) -> Iterator[Version]:
        bucket_id = find_bucket(self._db, bucket).bucket_id
        for table in ("keys", "history"):
            select = f"SELECT {WHOLE} FROM {table} WHERE bucket_id = ?"
            for row in self._db.execute(select, (bucket_id,)):
                yield version_of(bucket, row, is_latest=table == "keys")

    def all_uploads(self) -> Iterator[Upload]:
        for (body,) in self._db.execute("SELECT body FROM uploads"):
            yield _decode_upload(body)

    def all_parts(self) -> Iterator[Part]:
        for (body,) in self._db.execute("SELECT body FROM parts"):
            yield _decode_part(body)

    def all_chunks(self) -> Iterator[StoredChunk]:
        select = "SELECT scope, chunk_id, length, stored, location, bucket_id FROM chunks"
        for scope, chunk_id, length, stored, location, bucket_id in self._db.execute(select):
            yield StoredChunk(scope, chunk_id, length, stored, decode_location(location), bucket_id)

    def journal_first_lsn(self) -> int:
        (value,) = self._db.execute("SELECT value FROM meta WHERE name = 'journal_first_lsn'").fetchone()
        return int(value)

    def was_deleted(self, segment_id: int) -> bool:
        select = "SELECT 1 FROM deleted_segments WHERE segment_id = ?"
        return self._db.execute(select, (segment_id,)).fetchone() is not None

    def segment(self, segment_id: int) -> Segment | None:
        return find_segment(self._db, segment_id)

    def segments(self) -> Iterator[Segment]:
        """In order of their ids, in pages: the caller may take its time."""
        after = -1
        while True:
            select = "SELECT segment_id, body FROM segments WHERE segment_id > ? ORDER BY segment_id LIMIT 256"
            rows = self._db.execute(select, (after,)).fetchall()
            for after, body in rows:  # noqa: B007  # the next page starts behind the last one
                yield decode_segment(body)
            if not rows:
                return

    def open_segments(self) -> list[Segment]:
        select = "SELECT body FROM segments WHERE open = 1 ORDER BY segment_id"
        return [decode_segment(body) for (body,) in self._db.execute(select)]

    def nodes(self) -> list[NodeEntry]:
        return [_decode_node(body) for (body,) in self._db.execute("SELECT body FROM nodes ORDER BY node_id")]

    def users(self) -> list[User]:
        return [_decode_user(body) for (body,) in self._db.execute("SELECT body FROM users ORDER BY name, access_key")]

    def user_by_access_key(self, access_key: str) -> User | None:
        row = self._db.execute("SELECT body FROM users WHERE access_key = ?", (access_key,)).fetchone()
        return None if row is None else _decode_user(row[0])

    # -- the tree ------------------------------------------------------------------

    def lookup(self, bucket: str, parent: str, name: str) -> Child | None:
        with self._snapshot() as db:
            return listing.lookup(db, find_bucket(db, bucket), parent, name)

    def children(self, bucket: str, parent: str, after: str = "", limit: int = 1000) -> list[Child]:
        with self._snapshot() as db:
            return listing.children(db, find_bucket(db, bucket), parent, after, limit)

    def names(self, file_id: int) -> list[tuple[str, str]]:
        select = """SELECT b.name, k.key FROM keys k JOIN buckets b USING (bucket_id)
            WHERE k.file_id = ? AND k.file_id > 0 ORDER BY k.bucket_id, k.key"""
        return self._db.execute(select, (file_id,)).fetchall()

    def hidden_keys(self) -> int:
        return self.counters()["hidden_keys"]

    def counters(self) -> dict[str, int]:
        return read_counters(self._db)
