"""Scans of the keymap: listings of keys, of versions, and of directories.

Each is one range scan that seeks past a common prefix as soon as it is known, so its
cost follows the page it returns, not the keys below. Functions over a connection; the
caller provides the snapshot.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator

from engine.interfaces import Child, ListPage, VersionsPage
from engine.keymap.rows import BRIEF, Row, component_is_hidden, lsn_of, past, version_of
from engine.types import NULL_VERSION_ID, Bucket, Version


class KeyScan:
    """Rows of one table in key order, from a place it can be moved forward to."""

    def __init__(self, db: sqlite3.Connection, bucket: Bucket, prefix: str, columns: str, where: str = "") -> None:
        self._db = db
        self._bucket_id = bucket.bucket_id
        self._end = past(prefix)
        self._select = f"SELECT {columns} FROM keys k WHERE bucket_id = ? AND key {{}} ?"
        self._select += ("" if self._end is None else " AND key < ?") + where + " ORDER BY key"
        self._rows: Iterator[Row] = iter(())

    def seek(self, key: str, *, inclusive: bool) -> None:
        parameters = (self._bucket_id, key) if self._end is None else (self._bucket_id, key, self._end)
        self._rows = self._db.execute(self._select.format(">=" if inclusive else ">"), parameters)

    def seek_past(self, prefix: str) -> bool:
        """Go on behind every key with this prefix; False if nothing can follow."""
        key = past(prefix)
        if key is None or (self._end is not None and key >= self._end):
            return False
        self.seek(key, inclusive=True)
        return True

    def next(self) -> Row | None:
        return next(self._rows, None)


def common_prefix(key: str, prefix: str, delimiter: str) -> str | None:
    """The key up to its first delimiter behind the prefix."""
    if not delimiter:
        return None
    at = key.find(delimiter, len(prefix))
    return None if at < 0 else key[: at + len(delimiter)]


def _start(scan: KeyScan, prefix: str, delimiter: str, after: str) -> bool:
    """Seek to the first key a listing may show; False if there can be none."""
    if after < prefix:
        scan.seek(prefix, inclusive=True)
        return True
    within = common_prefix(after, prefix, delimiter) if after.startswith(prefix) else None
    if within is not None:  # that common prefix is <= after: shown already
        return scan.seek_past(within)
    scan.seek(after, inclusive=False)
    return True


def list_objects(
    db: sqlite3.Connection, bucket: Bucket, prefix: str, delimiter: str, after: str, limit: int
) -> ListPage:
    """See KeymapReader.list_objects."""
    versions: list[Version] = []
    prefixes: list[str] = []
    if limit <= 0:
        return ListPage(versions, prefixes)
    scan = KeyScan(db, bucket, prefix, BRIEF, " AND marker = 0")
    last = ""
    going = _start(scan, prefix, delimiter, after)
    while going and (row := scan.next()) is not None:
        if len(versions) + len(prefixes) == limit:
            return ListPage(versions, prefixes, last)
        shared = common_prefix(row[0], prefix, delimiter)
        if shared is None:
            versions.append(version_of(bucket.name, row))
            last = row[0]
            continue
        prefixes.append(shared)
        last = shared
        going = scan.seek_past(shared)
    return ListPage(versions, prefixes)


class _VersionScan:
    """Rows of keys and history merged: by key, newest first."""

    def __init__(self, db: sqlite3.Connection, bucket: Bucket, prefix: str) -> None:
        self._db = db
        self._bucket_id = bucket.bucket_id
        self._end = past(prefix)
        self._rows: Iterator[Row] = iter(())

    def seek(self, key: str, *, inclusive: bool) -> None:
        self._rows = self._merged(key, ">=" if inclusive else ">")

    def seek_within(self, key: str, lsn: int) -> None:
        """To the versions of `key` older than `lsn`, then on."""
        select = f"SELECT {BRIEF}, 0 FROM history WHERE bucket_id = ? AND key = ? AND newest_first > ?"
        rest = self._db.execute(f"{select} ORDER BY newest_first", (self._bucket_id, key, -lsn))
        self._rows = _chained(rest, self._merged(key, ">"))

    def seek_past(self, prefix: str) -> bool:
        key = past(prefix)
        if key is None or (self._end is not None and key >= self._end):
            return False
        self.seek(key, inclusive=True)
        return True

    def _merged(self, key: str, compare: str) -> Iterator[Row]:
        where = f"bucket_id = ? AND key {compare} ?" + ("" if self._end is None else " AND key < ?")
        parameters = (self._bucket_id, key) if self._end is None else (self._bucket_id, key, self._end)
        newest = self._db.execute(f"SELECT {BRIEF}, 1 FROM keys WHERE {where} ORDER BY key", parameters)
        older = self._db.execute(f"SELECT {BRIEF}, 0 FROM history WHERE {where} ORDER BY key, newest_first", parameters)
        return heapq.merge(newest, older, key=lambda row: (row[0], -row[1]))

    def next(self) -> Row | None:
        return next(self._rows, None)


def _chained(first: Iterator[Row], then: Iterator[Row]) -> Iterator[Row]:
    yield from first
    yield from then


def list_versions(
    db: sqlite3.Connection,
    bucket: Bucket,
    prefix: str,
    delimiter: str,
    key_marker: str,
    version_id_marker: str,
    limit: int,
) -> VersionsPage:
    """See KeymapReader.list_versions. Starts behind the marker version, or behind all of
    the marker key if it has no such version."""
    versions: list[Version] = []
    prefixes: list[str] = []
    if limit <= 0:
        return VersionsPage(versions, prefixes)
    scan = _VersionScan(db, bucket, prefix)
    going = _start_versions(db, bucket, scan, prefix, delimiter, key_marker, version_id_marker)
    last: tuple[str, str | None] = ("", None)
    while going and (row := scan.next()) is not None:
        if len(versions) + len(prefixes) == limit:
            return VersionsPage(versions, prefixes, *last)
        shared = common_prefix(row[0], prefix, delimiter)
        if shared is None:
            versions.append(version_of(bucket.name, row[:12], is_latest=bool(row[12])))
            last = (row[0], row[3])
            continue
        prefixes.append(shared)
        last = (shared, None)
        going = scan.seek_past(shared)
    return VersionsPage(versions, prefixes)


def _start_versions(
    db: sqlite3.Connection,
    bucket: Bucket,
    scan: _VersionScan,
    prefix: str,
    delimiter: str,
    key_marker: str,
    version_id_marker: str,
) -> bool:
    if key_marker < prefix:
        scan.seek(prefix, inclusive=True)
        return True
    within = common_prefix(key_marker, prefix, delimiter) if key_marker.startswith(prefix) else None
    if within is not None:
        return scan.seek_past(within)
    lsn = _lsn_of_marker(db, bucket, key_marker, version_id_marker) if key_marker.startswith(prefix) else None
    if lsn is None:
        scan.seek(key_marker, inclusive=False)
    else:
        scan.seek_within(key_marker, lsn)
    return True


def _lsn_of_marker(db: sqlite3.Connection, bucket: Bucket, key: str, version_id: str) -> int | None:
    """Where a version id stands among a key's versions, also if it was removed since."""
    if version_id != NULL_VERSION_ID:
        return lsn_of(version_id)
    for table in ("keys", "history"):
        select = f"SELECT lsn FROM {table} WHERE bucket_id = ? AND key = ? AND version_id = 'null'"
        row: tuple[int] | None = db.execute(select, (bucket.bucket_id, key)).fetchone()
        if row is not None:
            return row[0]
    return None


# -- the tree ------------------------------------------------------------------

# Whether the key, taken as a name, is also a directory; '0' is what follows '/'.
_SHADOWED = """EXISTS (SELECT 1 FROM keys d WHERE d.bucket_id = k.bucket_id
    AND d.key >= k.key || '/' AND d.key < k.key || '0' AND d.marker = 0)"""


def lookup(db: sqlite3.Connection, bucket: Bucket, parent: str, name: str) -> Child | None:
    """See KeymapReader.lookup."""
    if component_is_hidden(name) or "/" in name:
        return None
    path = parent + name
    scan = KeyScan(db, bucket, path + "/", BRIEF, " AND marker = 0")
    scan.seek(path + "/", inclusive=True)
    row = scan.next()
    if row is not None:
        marker = version_of(bucket.name, row) if row[0] == path + "/" else None
        return Child(name, True, marker)
    select = f"SELECT {BRIEF} FROM keys WHERE bucket_id = ? AND key = ? AND marker = 0"
    row = db.execute(select, (bucket.bucket_id, path)).fetchone()
    return None if row is None else Child(name, False, version_of(bucket.name, row))


def children(db: sqlite3.Connection, bucket: Bucket, parent: str, after: str, limit: int) -> list[Child]:
    """See KeymapReader.children. A directory stands where its keys stand, so `after` is
    taken as a directory if it is one; `name/` says that it was one."""
    found: list[Child] = []
    if limit <= 0:
        return found
    scan = KeyScan(db, bucket, parent, f"{BRIEF}, {_SHADOWED}", " AND marker = 0")
    going = True
    if not after:
        scan.seek(parent, inclusive=False)
    elif after.endswith("/") or ((at := lookup(db, bucket, parent, after)) is not None and at.is_directory):
        going = scan.seek_past(parent + after.removesuffix("/") + "/")
    else:
        scan.seek(parent + after, inclusive=False)
    while going and len(found) < limit and (row := scan.next()) is not None:
        directory = common_prefix(row[0], parent, "/")
        if directory is None:
            name, shadowed = row[0][len(parent) :], row[12]
            if not shadowed and not component_is_hidden(name):
                found.append(Child(name, False, version_of(bucket.name, row[:12])))
            continue
        name = directory[len(parent) : -1]
        if not component_is_hidden(name):
            marker = version_of(bucket.name, row[:12]) if row[0] == directory else None
            found.append(Child(name, True, marker))
        going = scan.seek_past(directory)
    return found
