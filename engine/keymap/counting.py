"""The recount of every counter, which fsck compares with what was kept along the way."""

from __future__ import annotations

import sqlite3

from engine.keymap.rows import key_is_hidden

COUNTERS = (
    "buckets",
    "objects",
    "versions",
    "delete_markers",
    "logical_bytes",
    "chunks",
    "chunk_bytes",
    "stored_bytes",
    "hidden_keys",
)

_COUNTS = {
    "buckets": "SELECT count(*) FROM buckets",
    "objects": "SELECT count(*) FROM keys WHERE marker = 0",
    "versions": """SELECT (SELECT count(*) FROM keys WHERE marker = 0)
        + (SELECT count(*) FROM history WHERE marker = 0)""",
    "delete_markers": """SELECT (SELECT count(*) FROM keys WHERE marker = 1)
        + (SELECT count(*) FROM history WHERE marker = 1)""",
    # The names of a hard-linked file share their bytes: those are counted once.
    "logical_bytes": """SELECT (SELECT coalesce(sum(size), 0) FROM history)
        + (SELECT coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM keys WHERE file_id > 0 GROUP BY file_id))
        + (SELECT coalesce(sum(size), 0) FROM keys WHERE file_id = 0)""",
    "chunks": "SELECT count(*) FROM chunks",
    "chunk_bytes": "SELECT coalesce(sum(length), 0) FROM chunks",
    "stored_bytes": "SELECT coalesce(sum(stored), 0) FROM chunks",
}


def read_counters(db: sqlite3.Connection) -> dict[str, int]:
    kept = dict(db.execute("SELECT name, value FROM counters").fetchall())
    return {name: kept.get(name, 0) for name in COUNTERS}


def recount(db: sqlite3.Connection) -> list[str]:
    """One line per counter, or link count, that disagrees with the rows."""
    counted = {name: db.execute(select).fetchone()[0] for name, select in _COUNTS.items()}
    counted["hidden_keys"] = sum(key_is_hidden(key) for (key,) in db.execute("SELECT key FROM keys WHERE marker = 0"))
    kept = read_counters(db)
    lines = [
        f"counter {name} says {kept[name]}, the keymap holds {counted[name]}"
        for name in COUNTERS
        if kept[name] != counted[name]
    ]
    wrong = db.execute(
        """SELECT file_id, max(link_count), count(*) FROM keys WHERE file_id > 0 GROUP BY file_id
        HAVING max(link_count) <> count(*) OR min(link_count) <> count(*)"""
    )
    return lines + [f"file {file_id} says it has {links} names, it has {names}" for file_id, links, names in wrong]
