"""The keymap as one change sees it: reading rows, publishing and removing versions.

State is what the apply modules build on. It keeps history, hard link counts and the
counters right whatever they do, so that they only say which versions come and go. One
State per decided change, inside the writer's SQLite transaction; one thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from engine.changes import Origin, Touched
from engine.errors import NoSuchBucket
from engine.keymap.rows import (
    BRIEF,
    EMPTY_MD5,
    WHOLE,
    key_is_hidden,
    parent_of,
    past,
    rest_of,
    row_of,
    version_id_of,
    version_of,
)
from engine.types import NULL_VERSION_ID, Bucket, Version, Versioning

decode_bucket = msgspec.msgpack.Decoder(Bucket).decode
_PLACES = ", ".join("?" * 15)
_INSERT_KEY = f"INSERT INTO keys (bucket_id, {WHOLE}) VALUES ({', '.join('?' * 14)})"
_INSERT_HISTORY = f"INSERT INTO history (bucket_id, newest_first, {WHOLE}) VALUES ({_PLACES})"
_GROUP = "SELECT count(*), max(size), max(link_count) FROM keys WHERE file_id = ? AND file_id > 0"


def find_bucket(db: sqlite3.Connection, name: str) -> Bucket:
    row = db.execute("SELECT body FROM buckets WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NoSuchBucket(f"there is no bucket {name}")
    return decode_bucket(row[0])


def range_end(prefix: str) -> tuple[str, tuple[str, ...]]:
    """SQL and parameters for "and key sorts below everything past the prefix"."""
    end = past(prefix)
    return ("", ()) if end is None else (" AND key < ?", (end,))


class State:
    """See the module. Call finish() once after the last mutation."""

    def __init__(self, db: sqlite3.Connection, lsn: int, time_ns: int, origin: Origin) -> None:
        self.db = db
        self.lsn = lsn
        self.time_ns = time_ns
        self.origin = origin
        self.touched: list[Touched] = []
        self.counted: dict[str, int] = {}
        self._groups: dict[int, int] = {}  # file id → bytes its names counted twice before this change

    # -- reading ---------------------------------------------------------------

    def bucket(self, name: str) -> Bucket:
        """Raises NoSuchBucket."""
        return find_bucket(self.db, name)

    def newest(self, bucket: Bucket, key: str) -> Version | None:
        """The newest version, delete markers included."""
        select = f"SELECT {WHOLE} FROM keys WHERE bucket_id = ? AND key = ?"
        row = self.db.execute(select, (bucket.bucket_id, key)).fetchone()
        return None if row is None else version_of(bucket.name, row)

    def current(self, bucket: Bucket, key: str) -> Version | None:
        """The version a plain GET shows: None for a delete marker."""
        version = self.newest(bucket, key)
        return None if version is None or version.delete_marker else version

    def noncurrent(self, bucket: Bucket, key: str, version_id: str) -> Version | None:
        select = f"SELECT {WHOLE} FROM history WHERE bucket_id = ? AND key = ? AND version_id = ? "
        if version_id == NULL_VERSION_ID:
            select = select.replace("version_id = ?", "version_id = 'null'")
            row = self.db.execute(select, (bucket.bucket_id, key)).fetchone()
        else:
            row = self.db.execute(select, (bucket.bucket_id, key, version_id)).fetchone()
        return None if row is None else version_of(bucket.name, row, is_latest=False)

    def any_below(self, bucket: Bucket, prefix: str, *, beside: bool = False) -> bool:
        """Whether a visible key starts with prefix; `beside`: other than prefix itself."""
        clause, end = range_end(prefix)
        select = f"SELECT 1 FROM keys WHERE bucket_id = ? AND key {'>' if beside else '>='} ?{clause} AND marker = 0"
        return self.db.execute(f"{select} LIMIT 1", (bucket.bucket_id, prefix, *end)).fetchone() is not None

    def visible_below(self, bucket: Bucket, prefix: str, count: int = 256) -> Iterator[Version]:
        """Visible versions whose keys start with prefix, in key order. The caller may
        change the keys it was given while it goes on."""
        clause, end = range_end(prefix)
        compare, after = ">=", prefix
        while True:
            select = f"SELECT {WHOLE} FROM keys WHERE bucket_id = ? AND key {compare} ?{clause} AND marker = 0"
            rows = self.db.execute(f"{select} ORDER BY key LIMIT {count}", (bucket.bucket_id, after, *end)).fetchall()
            yield from (version_of(bucket.name, row) for row in rows)
            if len(rows) < count:
                return
            compare, after = ">", rows[-1][0]

    def names(self, file_id: int) -> list[tuple[Bucket, str]]:
        """Every name of a file, in order."""
        select = """SELECT b.body, k.key FROM keys k JOIN buckets b USING (bucket_id)
            WHERE k.file_id = ? AND k.file_id > 0 ORDER BY k.bucket_id, k.key"""
        return [(decode_bucket(body), key) for body, key in self.db.execute(select, (file_id,)).fetchall()]

    # -- versions come and go ----------------------------------------------------

    def version_id(self, bucket: Bucket) -> str:
        return version_id_of(self.lsn) if bucket.versioning is Versioning.ENABLED else NULL_VERSION_ID

    def publish(self, bucket: Bucket, version: Version, *, replaces_lsn: int | None = None) -> Version:
        """Make `version` the newest of its key, under this record's LSN and the version id
        the bucket's versioning asks for; what was newest goes where that sends it."""
        new = replace(
            version,
            bucket=bucket.name,
            lsn=self.lsn,
            version_id=self.version_id(bucket),
            is_latest=True,
            changed_lsn=0,
        )
        old = self.newest(bucket, new.key)
        if old is not None:
            replaced = bucket.versioning is Versioning.UNVERSIONED or old.lsn == replaces_lsn
            replaced = replaced or (bucket.versioning is Versioning.SUSPENDED and old.version_id == NULL_VERSION_ID)
            self._remove_newest(bucket, old)
            if not replaced:
                self._insert_history(bucket, old)
        if bucket.versioning is Versioning.SUSPENDED:
            self._remove_noncurrent(bucket, self.noncurrent(bucket, new.key, NULL_VERSION_ID))
        self._insert_newest(bucket, new)
        return new

    def publish_marker(self, bucket: Bucket, key: str) -> Version:
        """A delete marker on a bucket that has or had versioning."""
        return self.publish(
            bucket,
            Version(
                bucket.name, key, "", self.lsn, self.time_ns, delete_marker=True, owner=self.origin.requester, file_id=0
            ),
        )

    def hide(self, bucket: Bucket, current: Version) -> Version | None:
        """What a delete without version id does to an existing version: gone, or under
        the delete marker that is returned."""
        if bucket.versioning is Versioning.UNVERSIONED:
            self._remove_newest(bucket, current)
            return None
        return self.publish_marker(bucket, current.key)

    def remove_version(self, bucket: Bucket, version: Version, *, new_file: bool = False) -> None:
        """Remove one version for good; the next newest becomes the newest, as a `new_file`
        if both were the same file's."""
        if not version.is_latest:
            self._remove_noncurrent(bucket, version)
            return
        self._remove_newest(bucket, version)
        select = f"SELECT {WHOLE} FROM history WHERE bucket_id = ? AND key = ? ORDER BY newest_first LIMIT 1"
        row = self.db.execute(select, (bucket.bucket_id, version.key)).fetchone()
        if row is None:
            return
        promoted = version_of(bucket.name, row, is_latest=False)
        self._remove_noncurrent(bucket, promoted)
        same_file = new_file and promoted.file_id == version.file_id > 0
        if same_file or self.db.execute(_GROUP, (promoted.file_id,)).fetchone()[0]:
            # The file lives on under another name (a rename or a link), or in those who have the
            # removed version open: this is one of its own now.
            promoted = replace(promoted, file_id=self.lsn)
        self._insert_newest(bucket, replace(promoted, link_count=1))

    def rewrite(self, bucket: Bucket, version: Version) -> Version:
        """Set tags and attributes of a version in place."""
        version = replace(version, changed_lsn=self.lsn)
        if version.is_latest:
            where, values = "keys", (bucket.bucket_id, version.key)
            clause = "bucket_id = ? AND key = ?"
        else:
            where, values = "history", (bucket.bucket_id, version.key, -version.lsn)  # type: ignore[assignment]
            clause = "bucket_id = ? AND key = ? AND newest_first = ?"
        self.db.execute(f"UPDATE {where} SET rest = ? WHERE {clause}", (rest_of(version), *values))
        return version

    def leave_parent(self, bucket: Bucket, key: str) -> None:
        """Leave a marker for the directory that held `key` if it would vanish with it."""
        parent = parent_of(key)
        if parent and not self.any_below(bucket, parent):
            self.publish_directory(bucket, parent)
            self.touch(bucket, parent)

    def publish_directory(self, bucket: Bucket, key: str) -> Version:
        """A directory marker: an empty version of a key that ends in "/"."""
        empty = Version(
            bucket.name, key, "", self.lsn, self.time_ns, etag=EMPTY_MD5, file_id=self.lsn, owner=bucket.owner
        )
        return self.publish(bucket, empty)

    def touch(self, bucket: Bucket, key: str, file_id: int = 0) -> None:
        self.touched.append(Touched(bucket.name, key, file_id))

    # -- rows --------------------------------------------------------------------

    def count(self, **changes: int) -> None:
        for name, change in changes.items():
            self.counted[name] = self.counted.get(name, 0) + change

    def _count_version(self, version: Version, sign: int) -> None:
        if version.delete_marker:
            self.count(delete_markers=sign)
        else:
            self.count(versions=sign, logical_bytes=sign * version.size)

    def _count_visible(self, version: Version, sign: int) -> None:
        if not version.delete_marker:
            self.count(objects=sign, hidden_keys=sign * key_is_hidden(version.key))

    def _insert_newest(self, bucket: Bucket, version: Version) -> None:
        self.db.execute(_INSERT_KEY, (bucket.bucket_id, *row_of(version)))
        self._count_version(version, 1)
        self._count_visible(version, 1)

    def _remove_newest(self, bucket: Bucket, version: Version) -> None:
        if version.link_count > 1:
            self.note_links(version.file_id)
        self.db.execute("DELETE FROM keys WHERE bucket_id = ? AND key = ?", (bucket.bucket_id, version.key))
        self._count_version(version, -1)
        self._count_visible(version, -1)

    def _insert_history(self, bucket: Bucket, version: Version) -> None:
        row = row_of(replace(version, link_count=1))
        self.db.execute(_INSERT_HISTORY, (bucket.bucket_id, -version.lsn, *row))
        self._count_version(version, 1)

    def _remove_noncurrent(self, bucket: Bucket, version: Version | None) -> None:
        if version is None:
            return
        self.db.execute(
            "DELETE FROM history WHERE bucket_id = ? AND key = ? AND newest_first = ?",
            (bucket.bucket_id, version.key, -version.lsn),
        )
        self._count_version(version, -1)

    # -- hard links ----------------------------------------------------------------

    def note_links(self, file_id: int) -> None:
        """Call before the names of a linked file change: finish() sets its link count
        and counts its bytes once."""
        if file_id > 0 and file_id not in self._groups:
            self._groups[file_id] = self._counted_twice(file_id)[0]

    def _counted_twice(self, file_id: int) -> tuple[int, int, int]:
        names, size, links = self.db.execute(_GROUP, (file_id,)).fetchone()
        return max(names - 1, 0) * (size or 0), names, links or 0

    def finish(self) -> None:
        """Bring link counts and counters up to what the change did."""
        for file_id, before in self._groups.items():
            after, names, _ = self._counted_twice(file_id)
            self.count(logical_bytes=before - after)
            self.db.execute(
                "UPDATE keys SET link_count = ? WHERE file_id = ? AND file_id > 0 AND link_count <> ?",
                (names, file_id, names),
            )
        self.db.executemany(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(name, change) for name, change in self.counted.items() if change],
        )


__all__ = ["BRIEF", "State", "decode_bucket", "find_bucket", "range_end"]
