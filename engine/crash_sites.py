"""Crash sites: named places where a crash leaves something particular behind.

The engine says that it reached one; nothing happens then, unless a test asked to be told
(watch), which ends the process there or makes it look ended. Each row of the crash tables
in FORMAT.md is one or more of these. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class CrashSite(StrEnum):
    # a commit
    JOURNAL_EPOCH_NAMED = "the epoch file stands on its first node"
    JOURNAL_EPOCH_OPENED = "the epoch file stands on all nodes, its journal file does not"
    JOURNAL_FILE_CREATED = "a journal file is created on all replicas, without its records"
    JOURNAL_PARTLY_WRITTEN = "records are written to the first replica"
    JOURNAL_WRITTEN = "records are written to all replicas, none synced"
    JOURNAL_TAIL_WRITTEN = "a new epoch holds the unsynced tail, none of it synced"
    JOURNAL_SYNCED = "all replicas are synced, nobody is told"
    COMMIT_ORDERED = "the batch is ordered, the keymap's transaction still open"
    COMMIT_APPLIED = "the keymap's transaction is committed, nobody is told"
    # a segment
    SEGMENT_ANNOUNCED = "the index knows the segment, its files do not exist"
    SEGMENT_PARTLY_CREATED = "the first fragment file is created"
    SEGMENT_CREATED = "the fragment files are created"
    STRIPE_PARTLY_WRITTEN = "a stripe is written to the first node"
    STRIPE_WRITTEN = "a stripe is written to all nodes, not synced"
    FRAGMENT_SYNCED = "one fragment file is synced"
    STRIPES_SYNCED = "all fragments are synced, the commit is not sent"
    SEAL_CUT = "a failed segment is cut to what was synced"
    SEAL_PARTLY_WRITTEN = "directory and footer are on the first node"
    SEAL_WRITTEN = "directory and footer are synced on all nodes, the index is not told"
    SEAL_ANNOUNCED = "the index knows the segment is sealed"
    # recovery
    RECOVERY_SURVEYED = "the stripes of an orphan are found, nothing is changed"
    RECOVERY_CUT = "an orphan's torn tail is cut on one node"
    RECOVERY_COMPLETED = "an orphan's file is whole on one node"
    REBUILD_WRITTEN = "a fragment file is written anew and synced beside its place"
    REBUILD_QUARANTINED = "the damaged fragment file is set aside, the new one not yet in its place"
    REBUILD_RENAMED = "the new fragment file is in its place"
    REPAIR_PLACED = "rebuilt fragment files are in their places, the index is not told"
    REPAIR_TOLD = "the index names the rebuilt fragments, what they replace elsewhere is still there"
    JOURNAL_HEALED = "a journal file is whole on one more node"
    KEYMAP_SET_ASIDE = "a keymap that can't be used is set aside, no new one is made"
    KEYMAP_REPLAYED = "the keymap is at the journal's end, the journal's last file is not healed"
    KEYMAP_RESTORED = "a keymap out of a snapshot is in its place, nothing is replayed"
    # a checkpoint
    JOURNAL_ROTATED = "the current journal file is closed, nothing is moved out of the older ones"
    CHECKPOINT_MOVED = "no chunk lies in the older journal files, there is no snapshot yet"
    SNAPSHOT_COPIED = "the keymap is copied on DATA's disk"
    PIECES_PARTLY_WRITTEN = "a piece of a snapshot or archive is written, unnamed"
    PIECES_VERIFIED = "all copies are synced and read back, none has its name"
    PIECES_NAMED = "one more copy has its name"
    JOURNAL_ARCHIVED = "snapshot and archive stand, the journal is not dropped"
    JOURNAL_DROPPED = "the index knows the journal files are superfluous, they are still there"
    JOURNAL_PARTLY_DELETED = "one superfluous journal or epoch file is deleted"
    SNAPSHOT_PARTLY_PRUNED = "one old snapshot or archive is deleted"
    # a collection
    COLLECTION_CONDEMNED = "the containers are condemned, nothing is moved out of them"
    COLLECTION_MOVED = "nothing that was named lies in the condemned containers, their pins are not waited for"
    COLLECTION_MARKED = "the second mark is made, nothing is deleted"
    SEGMENTS_DELETED = "the index has dropped the segments, their files are still there"
    FRAGMENT_DELETED = "one fragment file is deleted"
    # the tables
    TABLES_LOADED = "everything is read from the keymap, in a transaction still open"
    TABLES_WRITTEN = "a batch is written, its transaction still open"
    TABLES_COMMITTED = "the transaction of a batch is committed, no query is told"
    TABLES_RECALLED = "older events are read back, in a transaction still open"
    # nodes
    NODE_DESCRIBED = "the empty directory has the node's descriptor, store.json the old place"
    NODE_PLACED = "store.json names the new place, the index does not"


_watcher: Callable[[CrashSite], None] | None = None


def reached(site: CrashSite) -> None:
    if _watcher is not None:
        _watcher(site)


@contextmanager
def watch(watcher: Callable[[CrashSite], None]) -> Iterator[None]:
    """Tell `watcher` of every site while the context lasts; it may raise."""
    global _watcher
    assert _watcher is None, "one watcher at a time"
    _watcher = watcher
    try:
        yield
    finally:
        _watcher = None
