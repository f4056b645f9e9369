"""Answers remembered by request id, so that a commit retried after a lost answer is not
done twice. A bounded window; inside the writer's transaction, one thread."""

from __future__ import annotations

import sqlite3

import msgspec
from msgspec.structs import replace

from engine.changes import CommitResult
from engine.keymap.rows import WHOLE, encode, version_of
from engine.types import Manifest

ANSWERS_MAX = 10_000
_PRUNE_EVERY = 64  # records between prunings: the window may be this much longer

_decode = msgspec.msgpack.Decoder(CommitResult).decode


def idempotent(db: sqlite3.Connection, request_id: str) -> CommitResult | None:
    """The answer this request had, if it is among the newest ANSWERS_MAX."""
    row = db.execute("SELECT result FROM answered WHERE request_id = ?", (request_id,)).fetchone()
    if row is None:
        return None
    result = _decode(row[0])
    if result.version is None or result.version.delete_marker:
        return result
    version = result.version
    select = f"""SELECT {WHOLE} FROM keys JOIN (SELECT bucket_id FROM buckets WHERE name = ?) USING (bucket_id)
        WHERE key = ? AND lsn = ?"""
    held = db.execute(select, (version.bucket, version.key, version.lsn)).fetchone()
    if held is not None:  # manifests are not kept twice
        version = replace(version, manifest=version_of(version.bucket, held).manifest)
    return replace(result, version=version)


def remember(db: sqlite3.Connection, request_id: str, result: CommitResult) -> None:
    """Keep the answer of a request; without the manifest, which the keymap has."""
    if result.version is not None:
        result = replace(result, version=replace(result.version, manifest=Manifest()))
    if result.part is not None:
        result = replace(result, part=replace(result.part, manifest=Manifest()))
    db.execute(
        "INSERT OR REPLACE INTO answered (request_id, lsn, result) VALUES (?, ?, ?)",
        (request_id, result.lsn, encode(result)),
    )
    if result.lsn % _PRUNE_EVERY == 0:
        db.execute(
            """DELETE FROM answered WHERE lsn <=
            (SELECT lsn FROM answered ORDER BY lsn DESC LIMIT 1 OFFSET ?)""",
            (ANSWERS_MAX,),
        )
