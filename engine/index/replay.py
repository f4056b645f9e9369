"""Opening the keymap: keep it, bring it up to the journal's end, or build it again.

The keymap is derived. One that is damaged, of another store, older than the journal, or
beyond its end (power loss took back unsynced records it had applied) is set aside and
built again: from the newest index snapshot that is whole on some node, and the journal
after it. Blocking; runs before anything is served.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from engine.crash_sites import CrashSite, reached
from engine.errors import JournalCorrupt, StoreError, UnknownFormat
from engine.index.evidence import refuse_lost_journal, refuse_lost_records
from engine.index.page import left_durable_lsn
from engine.index.snapshots import list_snapshots, restore_newest, snapshot_name
from engine.interfaces import Node
from engine.journal.dropping import delete_dropped
from engine.journal.reading import FileKey
from engine.journal.records import Payload, RawRecord, decode_payload, riding_locations, with_frames
from engine.journal.recovery import JournalScan, heal_file, set_aside_void
from engine.keymap.apply import decide, remember
from engine.keymap.chunks import place_chunks
from engine.keymap.page_sums import PageSums, close_unchanged, read_header
from engine.keymap.schema import KeymapDamaged, get_state, open_writer, set_state
from engine.keymap.soundness import KeymapCheck, check_at_open

TRANSACTION_RECORDS = 1000

logger = logging.getLogger("objfs.index")

Told = Callable[[str, int, int], None]  # (what, bytes done, bytes in all)


@dataclass(frozen=True)
class OpenedKeymap:
    """`snapshot_lsn`: of the snapshot it was rebuilt from, 0 from none, None: it was kept.
    `check` still runs while the keymap is served."""

    db: sqlite3.Connection
    sums: PageSums
    last_epoch: int
    end_lsn: int
    last_time_ns: int
    replayed: int
    durable_lsn: int = 0  # what the last record says was durable before it
    snapshot_lsn: int | None = None
    check: KeymapCheck | None = None
    last_number: int = 0  # of any journal epoch ever begun; `last_epoch` is the newest that was opened
    nodes_behind: list[str] = field(default_factory=list)  # they may miss what was written since


def _nobody(what: str, done: int, total: int) -> None:
    """Nobody watches."""


def bring_up_to_date(
    path: Path,
    nodes: Mapping[str, Node],
    store_id: str,
    m: int,
    missing: Mapping[str, str],
    *,
    told: Told = _nobody,
) -> OpenedKeymap:
    """Raises NodeUnavailable, JournalCorrupt, UnknownFormat, WrongStore."""
    scan = JournalScan(nodes, store_id)
    scan.check_available(missing, m)
    refuse_lost_journal(nodes, scan)
    if not path.exists():
        set_aside(path)  # a log without its keymap: SQLite would apply it to the one that is made next
    opened = _keep(path, nodes, store_id, scan, told) or _rebuild(path, nodes, store_id, scan, told)
    reached(CrashSite.KEYMAP_REPLAYED)
    closed = left_durable_lsn(path.with_name("page")) >= opened.end_lsn  # all of it, without an error
    try:
        for key in scan.unsynced_files(opened.end_lsn, opened.durable_lsn):
            candidates = sorted(scan.files[key]) + sorted(set(nodes).difference(scan.files[key]))
            copies = max(m + 1, len(scan.files[key]))  # all that are there: a torn one may have its full size
            torn = key[0] == scan.last_epoch
            heal_file(nodes, key, store_id, copies, candidates, torn_tail=torn, anew=not closed)
        # What an interrupted checkpoint left, or an old disk brought back. All is durable now.
        (first,) = opened.db.execute("SELECT value FROM meta WHERE name = 'journal_first_lsn'").fetchone()
        delete_dropped(nodes, store_id, first)
        set_aside_void(nodes, store_id, scan.unfinished)
    except BaseException:
        opened.sums.close(opened.db)
        raise
    return replace(opened, nodes_behind=scan.nodes_behind(), last_number=scan.last_number)


# -- keeping the keymap that is there ------------------------------------------------


def _keep(path: Path, nodes: Mapping[str, Node], store_id: str, scan: JournalScan, told: Told) -> OpenedKeymap | None:
    """None when it has to be built again; it is set aside then."""
    if not path.exists():
        return None
    newest = next(iter(list_snapshots(nodes)), 0)
    try:
        read_header(path)
        file = _Keymap(path, open_writer(path, store_id))
    except KeymapDamaged as error:
        _give_up(path, None, str(error))
        return None
    applied = 0
    try:
        epoch, applied = get_state(file.db)
        if applied == 0 and newest:
            _give_up(path, file, "it is empty")
            return None
        check = file.begin_check()
        opened = _replay(file.db, file.sums, scan, max(applied, 1), told)
        if opened is None and newest <= applied:
            refuse_lost_records(path, scan, epoch, applied)
    except JournalCorrupt as error:
        if newest < applied:
            file.close()
            raise
        _give_up(path, file, f"it is older than the journal ({error})")
        return None
    except (KeymapDamaged, msgspec.DecodeError) as error:
        _give_up(path, file, str(error))
        return None
    except BaseException as error:
        if isinstance(error, sqlite3.DatabaseError) and _is_damage(error):
            _give_up(path, file, str(error))
            return None
        file.close()
        raise
    if opened is None or opened.end_lsn < newest:
        _give_up(path, file, "it is ahead of the journal" if opened is None else "a snapshot is newer")
        return None
    return replace(opened, check=check)


class _Keymap:
    """The file while it is not known yet whether it is kept."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self.db = db
        self._sums: PageSums | None = None
        self._check: KeymapCheck | None = None

    def begin_check(self) -> KeymapCheck | None:
        """Raises KeymapDamaged."""
        self._check = check_at_open(self.path)
        self._sums = PageSums(self.path)
        return self._check

    @property
    def sums(self) -> PageSums:
        assert self._sums is not None, "begin_check() comes first"
        return self._sums

    def close(self) -> None:
        if self._check is not None:
            self._check.stop()
            self._check.run()  # ends at once
        if self._sums is not None:
            self._sums.close(self.db)
        else:
            close_unchanged(self.db, self.path)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Other operational errors (locked, no room, I/O) say nothing about the file. One that
    claims to be read-only has a damaged header: its permissions let it be opened."""
    return not isinstance(error, sqlite3.OperationalError) or "readonly" in str(error)


def _give_up(path: Path, file: _Keymap | None, reason: str) -> None:
    logger.warning("the keymap cannot be used: %s; it is set aside and built again", reason)
    if file is not None:
        try:
            file.close()
        except sqlite3.DatabaseError as error:
            logger.info("closing it: %s", error)
            file.db.close()
    set_aside(path)


def set_aside(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".pages"):
        found = path.with_name(path.name + suffix)
        if found.exists():
            found.replace(path.with_name(f"{path.name}.damaged{suffix}"))
            reached(CrashSite.KEYMAP_SET_ASIDE)


# -- building it again -----------------------------------------------------------------


def _rebuild(path: Path, nodes: Mapping[str, Node], store_id: str, scan: JournalScan, told: Told) -> OpenedKeymap:
    header = restore_newest(nodes, store_id, path, told=told)
    lsn = header.lsn if header is not None else 0
    db = open_writer(path, store_id)
    sums = PageSums.make(path)
    try:
        opened = _replay(db, sums, scan, lsn + 1, told)
    except JournalCorrupt as error:
        sums.close(db)
        aside = path.with_name(f"{path.name}.damaged")
        former = f"; the former keymap is {aside}" if aside.exists() else ""
        raise JournalCorrupt(f"the index cannot be rebuilt: {error}; {_what_there_is(nodes, lsn)}{former}") from error
    except BaseException:
        sums.close(db)
        raise
    assert opened is not None, "nothing is compared with the journal here"
    last_time_ns = max(opened.last_time_ns, header.time_ns if header is not None else 0)
    return replace(opened, last_time_ns=last_time_ns, snapshot_lsn=lsn)


def _what_there_is(nodes: Mapping[str, Node], used_lsn: int) -> str:
    if used_lsn:
        return f"the newest whole index snapshot is {snapshot_name(used_lsn)}; bring missing nodes back and try again"
    found = [f"{snapshot_name(lsn)} on {', '.join(holders)}" for lsn, holders in list_snapshots(nodes).items()]
    if not found:
        return "there is no index snapshot on these nodes; bring missing nodes back and try again"
    return f"every copy of an index snapshot is damaged ({'; '.join(found)}); bring missing nodes back and try again"


# -- replaying -----------------------------------------------------------------------


def _replay(
    db: sqlite3.Connection, sums: PageSums, scan: JournalScan, from_lsn: int, told: Told
) -> OpenedKeymap | None:
    """Apply what the keymap lacks. The record it applied last is compared if `from_lsn` is
    its LSN: None when the keymap is not a prefix of the journal."""
    epoch, applied = get_state(db)
    end_lsn, count, done = from_lsn - 1, 0, 0
    last: Payload | None = None
    total = scan.bytes_from(from_lsn)
    db.execute("BEGIN IMMEDIATE")
    try:
        for key, offset, raw in scan.records(from_lsn):
            end_lsn = raw.lsn
            if raw.lsn == applied:
                if key[0] != epoch:
                    db.execute("ROLLBACK")
                    return None
                last = decode_payload(raw)
                continue
            last = _apply(db, key, offset, raw)
            count, done = count + 1, done + raw.length
            if count % TRANSACTION_RECORDS == 0:
                db.execute("COMMIT")
                if sums.due():
                    sums.copy_log()
                db.execute("BEGIN IMMEDIATE")
                told("replaying the journal", done, total)
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    if end_lsn < applied:
        db.execute("ROLLBACK")
        return None
    db.execute("COMMIT")
    told("replaying the journal", done, done)
    if last is None:
        return OpenedKeymap(db, sums, scan.last_epoch, end_lsn, 0, count)
    return OpenedKeymap(db, sums, scan.last_epoch, end_lsn, last.time_ns, count, last.durable_lsn)


def _apply(db: sqlite3.Connection, key: FileKey, offset: int, raw: RawRecord) -> Payload:
    """Raises KeymapDamaged."""
    payload = decode_payload(raw)
    try:
        decision = decide(db, with_frames(payload, raw), lsn=raw.lsn, time_ns=payload.time_ns, origin=payload.origin)
    except UnknownFormat as error:
        raise UnknownFormat(f"journal record {raw.lsn}: {error}") from error
    except StoreError as error:
        raise KeymapDamaged(f"journal record {raw.lsn} was accepted and is now refused: {error}") from error
    if payload.origin.request_id:
        remember(db, payload.origin.request_id, decision.result)
    place_chunks(db, riding_locations(payload, raw, key[0], key[1], offset))
    set_state(db, key[0], raw.lsn)
    return payload
