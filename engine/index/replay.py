"""Opening the keymap: keep it, bring it up to the journal's end, or build it again.

The keymap is derived. One that is damaged, of another store, or beyond the journal's end
(power loss took back unsynced records it had applied) is set aside and rebuilt by
replaying the journal from LSN 1. Blocking; runs before anything is served.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.crash_sites import CrashSite, reached
from engine.errors import StoreError
from engine.interfaces import Node
from engine.journal.reading import FileKey
from engine.journal.records import RawRecord, decode_payload, riding_locations, with_frames
from engine.journal.recovery import JournalScan, heal_file
from engine.keymap.apply import decide, remember
from engine.keymap.chunks import place_chunks
from engine.keymap.schema import KeymapDamaged, get_state, open_writer, set_state

TRANSACTION_RECORDS = 1000

logger = logging.getLogger("objfs.index")


@dataclass(frozen=True)
class OpenedKeymap:
    db: sqlite3.Connection
    last_epoch: int
    end_lsn: int
    last_time_ns: int


def bring_up_to_date(
    path: Path, nodes: Mapping[str, Node], store_id: str, m: int, missing: Mapping[str, str]
) -> OpenedKeymap:
    """Raises NodeUnavailable, JournalCorrupt, UnknownFormat, WrongStore."""
    scan = JournalScan(nodes, store_id)
    scan.check_available(missing, m)
    db = _open(path, store_id)
    try:
        opened = _replay(db, scan)
        if opened is None:
            logger.warning("the keymap is ahead of the journal; building it again")
            db.close()
            _set_aside(path)
            db = open_writer(path, store_id)
            opened = _replay(db, scan)
            assert opened is not None, "an empty keymap is ahead of nothing"
    except BaseException:
        db.close()
        raise
    reached(CrashSite.KEYMAP_REPLAYED)
    if scan.files:
        last = max(scan.files)
        candidates = sorted(scan.files[last]) + sorted(set(nodes).difference(scan.files[last]))
        heal_file(nodes, last, store_id, m + 1, candidates)
    return opened


def _open(path: Path, store_id: str) -> sqlite3.Connection:
    try:
        return open_writer(path, store_id)
    except KeymapDamaged as error:
        logger.warning("the keymap is damaged (%s); building it again", error)
        _set_aside(path)
        return open_writer(path, store_id)


def _set_aside(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        found = path.with_name(path.name + suffix)
        if found.exists():
            found.replace(path.with_name(f"{path.name}.damaged{suffix}"))
            reached(CrashSite.KEYMAP_SET_ASIDE)


def _replay(db: sqlite3.Connection, scan: JournalScan) -> OpenedKeymap | None:
    """None when the keymap is not a prefix of the journal."""
    epoch, applied = get_state(db)
    last_time_ns, end_lsn, count = 0, 0, 0
    db.execute("BEGIN IMMEDIATE")
    try:
        for key, offset, raw in scan.records(max(applied, 1)):
            payload = decode_payload(raw)
            last_time_ns, end_lsn = payload.time_ns, raw.lsn
            if raw.lsn == applied:
                if key[0] != epoch:
                    db.execute("ROLLBACK")
                    return None
                continue
            _apply(db, key, offset, raw)
            count += 1
            if count % TRANSACTION_RECORDS == 0:
                db.execute("COMMIT")
                db.execute("BEGIN IMMEDIATE")
                logger.info("replayed %d journal records", count)
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    if end_lsn < applied:
        db.execute("ROLLBACK")
        return None
    db.execute("COMMIT")
    return OpenedKeymap(db, scan.last_epoch, end_lsn, last_time_ns)


def _apply(db: sqlite3.Connection, key: FileKey, offset: int, raw: RawRecord) -> None:
    payload = decode_payload(raw)
    try:
        decision = decide(db, with_frames(payload, raw), lsn=raw.lsn, time_ns=payload.time_ns, origin=payload.origin)
    except StoreError as error:
        raise AssertionError(f"journal record {raw.lsn} was accepted and is now refused: {error}") from error
    if payload.origin.request_id:
        remember(db, payload.origin.request_id, decision.result)
    locations = riding_locations(payload, raw, key[0], key[1], offset)
    place_chunks(db, locations)
    set_state(db, key[0], raw.lsn)
