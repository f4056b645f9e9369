"""Checkpoints: what the journal holds is put elsewhere, and the journal starts anew.

    rotate       the current journal file is closed; x is the last LSN in it
    move         every chunk that still lies in journal files up to x goes to segments
    snapshot     the keymap, at an LSN not before x, to m+1 nodes
    archive      the records up to x, without their content, to m+1 nodes
    drop         DropJournal is committed: from here on the snapshot stands for them
    files        journal files up to x are deleted, and old snapshots and archives

Stopped anywhere, it leaves a store that opens as it is: until DropJournal is durable the
journal is whole; from then on what is left of the files is recognised and deleted by the
next opening or checkpoint. Runs under the care lock, in any process that has the store
open; drop_journal_before() is the second half, for collection, which holds the lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.from_thread
import anyio.to_thread
from msgspec import Struct

from engine import limits, pieces
from engine.care.lock import care_lock
from engine.care.moving import move_chunks
from engine.care.pace import Meter, Report, Throttle, silent
from engine.changes import DropJournal, Origin
from engine.crash_sites import CrashSite, reached
from engine.errors import JournalCorrupt, StoreError, WritesStopped
from engine.index import snapshots
from engine.index.replicas import choose_replicas
from engine.index.snapshots import KeymapCopy
from engine.interfaces import Node
from engine.journal import archive
from engine.journal.dropping import delete_dropped
from engine.journal.reading import FileKey, list_files
from engine.journal.records import FILE_HEADER_BYTES, decode_payload, decode_record, journal_name
from engine.journal.recovery import JournalScan, superfluous_files
from engine.keymap.schema import get_state, open_reader
from engine.opening import Parts

ORIGIN = Origin(requester="checkpoint")
COPY_NAME = "keymap.copied"  # in DATA/index, while a snapshot is written
COPY_ATTEMPTS = 5
PAGE_CHUNKS = 4000  # taken out of a journal file at a time

Choose = Callable[[int, set[str]], list[str]]


class CheckpointResult(Struct):
    """What a checkpoint did. `reason` says why it was due; without one, and unless it was
    forced, nothing was done. `freed_bytes`: of journal files, over all nodes."""

    done: bool = False
    reason: str = ""
    snapshot_lsn: int = 0
    snapshot_nodes: list[str] = []
    moved_chunks: int = 0
    moved_bytes: int = 0
    archived_records: int = 0
    freed_bytes: int = 0
    notes: list[str] = []


async def checkpoint(
    parts: Parts,
    *,
    report: Report = silent,
    bytes_per_second: int | None = None,
    force: bool = False,
    retention_days: float = limits.JOURNAL_RETENTION_DAYS,
    archive_bytes_max: int = limits.ARCHIVE_BYTES_MAX,
    waiting: Callable[[str], None] | None = None,
) -> CheckpointResult:
    """Raises Unreadable or FragmentCorrupt when content in the journal cannot be read,
    NodeFull, WritesStopped; the journal is as it was then, but for what was moved."""
    async with care_lock(parts.data, "a checkpoint", waiting=waiting):
        reason = await checkpoint_due(parts)
        if reason is None and not force:
            return CheckpointResult()
        last_lsn = await parts.index.rotate_journal()
        throttle = Throttle(bytes_per_second)
        moved, moved_bytes = await _move_riding(parts, last_lsn, throttle, report)
        await parts.plane.seal()
        reached(CrashSite.CHECKPOINT_MOVED)
        result = await drop_journal_before(
            parts,
            last_lsn + 1,
            dead_chunks=0,
            report=report,
            bytes_per_second=bytes_per_second,
            retention_days=retention_days,
            archive_bytes_max=archive_bytes_max,
        )
        result.reason = reason or "it was asked for"
        result.moved_chunks, result.moved_bytes = moved, moved_bytes
        return result


# -- when ----------------------------------------------------------------------------


async def checkpoint_due(parts: Parts) -> str | None:
    """Why a checkpoint is due, in words, or None. Cheap enough for every minute."""
    keymap = parts.index.keymap
    first_lsn, applied_lsn = keymap.journal_first_lsn(), keymap.applied_lsn()
    nodes, versions = dict(parts.nodes.nodes), keymap.counters()["versions"]
    keymap_bytes = (parts.data / "index" / "keymap.sqlite").stat().st_size
    return await anyio.to_thread.run_sync(_due, nodes, first_lsn, applied_lsn, versions, keymap_bytes)


def _due(nodes: dict[str, Node], first_lsn: int, applied_lsn: int, versions: int, keymap_bytes: int) -> str | None:
    found = snapshots.list_snapshots(nodes)
    records = applied_lsn - max((lsn for lsn in found if lsn <= applied_lsn), default=0)
    if records >= max(limits.CHECKPOINT_RECORDS, versions // limits.CHECKPOINT_SHARE):
        return f"{records:,} records since the last index snapshot"
    files = list_files(nodes)
    for key in superfluous_files(files, first_lsn):
        del files[key]
    size = sum(max(sizes.values()) for sizes in files.values())
    large = max(limits.CHECKPOINT_JOURNAL_BYTES, keymap_bytes // limits.CHECKPOINT_SHARE)
    if size >= large:
        return f"the journal holds {size >> 20} MiB"
    if size >= limits.CHECKPOINT_OLD_BYTES:
        oldest = min(files)
        age = time.time() - _first_time_ns(nodes, oldest, list(files[oldest])) / 1e9
        if age >= limits.CHECKPOINT_OLD_SECONDS:
            return f"the journal holds {size >> 20} MiB, the oldest of it for {age / 3600:.0f} hours"
    return None


def _first_time_ns(nodes: dict[str, Node], key: FileKey, holders: list[str]) -> int:
    """The time of a journal file's first record; now, if no replica tells."""
    for node_id in holders:
        try:
            content = nodes[node_id].read(journal_name(*key), FILE_HEADER_BYTES, 2 * limits.COMMIT_BYTES_MAX)
        except StoreError:
            continue  # another replica tells
        raw = decode_record(content, 0, key[0])
        if raw is not None:
            return decode_payload(raw).time_ns
    return time.time_ns()


# -- moving what rides -----------------------------------------------------------------


async def _move_riding(parts: Parts, last_lsn: int, throttle: Throttle, report: Report) -> tuple[int, int]:
    """Move every chunk that lies in a journal file that begins at or before `last_lsn`.
    Returns how many, and their stored bytes."""
    with parts.index.keymap.snapshot() as reader:
        containers = await anyio.to_thread.run_sync(reader.journal_containers)
    wanted = {container: size for container, size in containers.items() if -container <= last_lsn}
    meter = Meter("moving content out of the journal", sum(wanted.values()), report)
    moved = 0
    for container in sorted(wanted, reverse=True):  # the oldest file first
        while chunks := parts.index.keymap.chunks_in(container, PAGE_CHUNKS):
            await move_chunks(parts, chunks, throttle, meter)
            left = parts.index.keymap.chunks_in(container, 1)
            if left and left[0].chunk_id == chunks[0].chunk_id:
                raise WritesStopped(f"chunk {chunks[0].chunk_id.hex()} did not leave the journal; try again")
            moved += len(chunks)
    meter.tell()
    return moved, meter.done


# -- the second half --------------------------------------------------------------------


async def drop_journal_before(
    parts: Parts,
    before_lsn: int,
    *,
    dead_chunks: int,
    as_of_lsn: int = 0,
    report: Report = silent,
    bytes_per_second: int | None = None,
    retention_days: float = limits.JOURNAL_RETENTION_DAYS,
    archive_bytes_max: int = limits.ARCHIVE_BYTES_MAX,
) -> CheckpointResult:
    """Let a snapshot and an archive stand for the journal before `before_lsn` (the first
    LSN after a rotation), and delete its files. `dead_chunks` is how many chunks were found
    dead in condemned journal files before it, by a mark at `as_of_lsn`; nothing else may
    lie there. The caller holds the care lock. Raises CollectionStopped, WritesStopped."""
    keymap = parts.index.keymap
    work = _Dropping(parts, before_lsn, report, Throttle(bytes_per_second))
    result = CheckpointResult(done=True)
    first_lsn = keymap.journal_first_lsn()
    try:
        copy = await work.copy_durable()
        result.snapshot_lsn = copy.lsn
        result.snapshot_nodes = await anyio.to_thread.run_sync(work.write_snapshot, copy)
    finally:
        work.scratch.unlink(missing_ok=True)
    if first_lsn < before_lsn:
        try:
            await anyio.to_thread.run_sync(work.write_archive, first_lsn)
            result.archived_records = before_lsn - first_lsn
        except JournalCorrupt as error:
            # The snapshot holds what these records did; what is lost is how they came about.
            result.notes.append(f"the journal before LSN {before_lsn} could not be archived: {error}")
    reached(CrashSite.JOURNAL_ARCHIVED)
    await parts.index.commit(DropJournal(before_lsn, copy.lsn, dead_chunks, as_of_lsn), ORIGIN)
    reached(CrashSite.JOURNAL_DROPPED)
    oldest_ns = time.time_ns() - int(retention_days * 86400 * 10**9)
    result.freed_bytes = await anyio.to_thread.run_sync(work.delete, copy.lsn, oldest_ns, archive_bytes_max)
    return result


class _Dropping:
    """The steps of drop_journal_before(). The blocking ones run in a worker thread."""

    def __init__(self, parts: Parts, before_lsn: int, report: Report, throttle: Throttle) -> None:
        self.scratch = parts.data / "index" / COPY_NAME
        self._parts = parts
        self._before_lsn = before_lsn
        self._report = report
        self._throttle = throttle
        self._meter = Meter("writing the index snapshot", None, report)
        self._nodes = dict(parts.nodes.nodes)
        self._store_id = parts.descriptor.store_id
        self._copies = parts.descriptor.m + 1
        self._places = parts.index.keymap.nodes()

    async def copy_durable(self) -> KeymapCopy:
        """A copy of the keymap that holds nothing a power loss could take back."""
        path = self._parts.data / "index" / "keymap.sqlite"
        for _ in range(COPY_ATTEMPTS):
            copy = await anyio.to_thread.run_sync(snapshots.copy_keymap, path, self.scratch)
            await self._parts.index.wait_durable(copy.lsn)
            # A new epoch may have written again, elsewhere, what was not durable when it was copied.
            if await anyio.to_thread.run_sync(_epoch_now, path) == copy.epoch:
                assert copy.lsn >= self._before_lsn - 1, "the keymap was at this LSN before"
                return copy
        raise WritesStopped("the journal's replicas fail one after the other; try again when the nodes are well")

    def write_snapshot(self, copy: KeymapCopy) -> list[str]:
        for prefix in (snapshots.PREFIX, archive.PREFIX):
            pieces.delete_scratch(self._nodes, prefix)
        choose, time_ns = self._choose(copy.lsn), time.time_ns()
        self._meter = Meter("writing the index snapshot", None, self._report)
        return snapshots.write_snapshot(copy, self._nodes, choose, self._copies, self._store_id, time_ns, pay=self._pay)

    def write_archive(self, first_lsn: int) -> None:
        """Raises JournalCorrupt, WritesStopped."""
        header = archive.ArchiveHeader(self._store_id, first_lsn, self._before_lsn - 1, time.time_ns())

        def make() -> Iterator[bytes]:
            return archive.encode_archive(header, JournalScan(self._nodes, self._store_id).records(first_lsn))

        name = archive.archive_name(first_lsn, self._before_lsn - 1)
        self._meter = Meter("archiving the journal", None, self._report)
        choose = self._choose(first_lsn)
        pieces.write_copies(self._nodes, choose, self._copies, name, archive.MAGIC, make, pay=self._pay)

    def delete(self, snapshot_lsn: int, oldest_ns: int, archive_bytes_max: int) -> int:
        """What DropJournal made superfluous, on every node that is there."""
        freed = delete_dropped(self._nodes, self._store_id, self._before_lsn)
        snapshots.prune_snapshots(self._nodes, snapshot_lsn)
        held = archive.list_archives(self._nodes)
        gone = archive.expired(self._nodes, self._store_id, before_ns=oldest_ns, bytes_max=archive_bytes_max)
        for covered in gone:
            for node_id in held.get(covered, []):
                snapshots.delete_quietly(self._nodes, node_id, archive.archive_name(*covered))
        return freed

    def _choose(self, turn: int) -> Choose:
        def choose(count: int, excluded: set[str]) -> list[str]:
            return choose_replicas(self._places, self._nodes, count, excluded, turn)

        return choose

    def _pay(self, count: int) -> None:
        anyio.from_thread.run(self._work, count)

    async def _work(self, count: int) -> None:
        await self._throttle.take(count)
        self._meter.add(count)


def _epoch_now(path: Path) -> int:
    db = open_reader(path)
    try:
        return get_state(db)[0]
    finally:
        db.close()
