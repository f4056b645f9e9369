"""A keymap in memory with a clock of its own, for the keymap's tests."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from engine.changes import Change, CommitResult, Condition, CreateBucket, Door, Origin, PutVersion, SetBucketVersioning
from engine.errors import StoreError
from engine.keymap.apply import Decision, decide, recount
from engine.keymap.reader import SqliteKeymap
from engine.keymap.schema import create_tables, open_writer
from engine.types import Content, InlineEntry, Manifest, Versioning


class World:
    """Applies changes one by one; a refused change must leave no trace."""

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self.db = sqlite3.connect(":memory:", isolation_level=None)
            create_tables(self.db, "store")
        else:
            self.db = open_writer(path, "store")
        self.reader = SqliteKeymap.over(self.db)
        self.lsn = 0

    def decide(self, change: Change, door: Door = Door.S3) -> Decision:
        lsn = self.lsn + 1
        self.db.execute("BEGIN IMMEDIATE")
        before = self.db.total_changes
        try:
            decision = decide(self.db, change, lsn=lsn, time_ns=lsn * 10**9, origin=Origin("me", door=door))
        except StoreError:
            assert self.db.total_changes == before, "a refused change changed rows"
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
        self.lsn = lsn
        assert recount(self.db) == []
        return decision

    def do(self, change: Change, door: Door = Door.S3) -> CommitResult:
        return self.decide(change, door).result

    def mount(self, change: Change) -> CommitResult:
        return self.do(change, Door.MOUNT)

    def bucket(self, name: str = "bucket", versioning: Versioning = Versioning.UNVERSIONED) -> str:
        self.do(CreateBucket(name))
        if versioning:
            self.do(SetBucketVersioning(name, versioning))
        return name

    def put(
        self, key: str, content: bytes = b"", bucket: str = "bucket", door: Door = Door.S3, **fields: Any
    ) -> CommitResult:
        return self.do(put(key, content, bucket, **fields), door)

    def listed(self, bucket: str = "bucket") -> list[str]:
        return [version.key for version in self.reader.list_objects(bucket, limit=10**6).versions]

    def text(self, key: str, bucket: str = "bucket") -> bytes | None:
        version = self.reader.head(bucket, key)
        if version is None or version.delete_marker:
            return None
        return b"".join(entry.content for entry in version.manifest.entries if isinstance(entry, InlineEntry))


def put(key: str, content: bytes = b"", bucket: str = "bucket", **fields: Any) -> PutVersion:
    entries: list[Any] = [InlineEntry(content)] if content else []
    return PutVersion(bucket, key, Content(Manifest(entries)), etag="etag-" + content.decode(), **fields)


ABSENT = Condition(absent_path=True)
