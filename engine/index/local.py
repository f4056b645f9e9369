"""LocalIndex: decides, orders, applies and makes durable. One per store, in the process
that owns it.

Two tasks: one takes what waits, decides it inside one keymap transaction, writes it to
the journal's replicas and commits the transaction; the other syncs the replicas, so the
next batch forms and applies while this one syncs. A change that is refused leaves no
trace; whatever else goes wrong between ordering and applying ends the index (the error
leaves run()), and replay brings it back.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from engine import limits
from engine.changes import (
    Change,
    CommitResult,
    Condemn,
    FragmentsDamaged,
    FragmentsRepaired,
    Origin,
    Record,
    RemoveNode,
    SealSegment,
    SetNode,
    Touched,
)
from engine.crash_sites import CrashSite, reached
from engine.errors import IndexUnavailable, JournalCorrupt, StoreError, WritesStopped
from engine.index.feed import FeedHub, without_duplicates
from engine.index.journal_upkeep import JournalUpkeep
from engine.index.page import PageWriter
from engine.index.room import CommitRoom, riding_bytes
from engine.interfaces import Confirm, FeedBatch, Node
from engine.journal.log import JournalLog, ReplicaFailed
from engine.journal.reading import read_journal_frame
from engine.journal.records import RawRecord, encode_record, to_record, without_frames
from engine.journal.recovery import JournalScan
from engine.keymap.apply import decide, idempotent, recount, remember
from engine.keymap.chunks import move_riding, place_chunks
from engine.keymap.page_sums import PageSums
from engine.keymap.reader import SqliteKeymap
from engine.keymap.schema import set_state
from engine.keymap.soundness import close_soundly
from engine.types import JournalLocation, NodeState

REPLAY_RECORDS = 500  # of the journal, per feed batch of a subscriber that catches up
SYNC_DELAY_SECONDS = 0.01  # for what nobody waits for
COPY_PAUSE_SECONDS = 0.2  # between copies of SQLite's log into its file
ON_LOOP_BYTES = 256 * 1024  # a larger batch is written in a thread
ENDED = "the index has ended; its process starts again and recovers from the journal"

logger = logging.getLogger("objfs.index")


Done = Callable[["CommitResult | None", "StoreError | None"], None]


class _Waiting:
    """A change on its way; `done` is called once, on the event loop."""

    __slots__ = ("change", "done", "durable", "error", "lsn", "origin", "result", "touches")

    def __init__(self, change: Change, origin: Origin, durable: bool, done: Done) -> None:
        self.change = change
        self.origin = origin
        self.durable = durable
        self.done = done
        self.lsn = 0
        self.touches = False  # whether any door may have something of it cached
        self.result: CommitResult | None = None
        self.error: StoreError | None = None


class LocalIndex(JournalUpkeep):
    """See the module; made by engine.index.opening."""

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        sums: PageSums,
        keymap: SqliteKeymap,
        page: PageWriter,
        nodes: Mapping[str, Node],
        *,
        store_id: str,
        m: int,
        last_epoch: int,
        epochs_skipped: int,
        end_lsn: int,
        last_time_ns: int,
        commit_room: CommitRoom | None = None,
    ) -> None:
        self.keymap = keymap
        self._commit_room = commit_room
        self._path = path
        self._db = db
        self._sums = sums
        self._log_due = anyio.Event()  # SQLite's log is to be copied into its file
        self._page = page
        self._nodes = nodes
        self._store_id = store_id
        self._copies = m + 1
        self._log = JournalLog(
            nodes,
            store_id=store_id,
            m=m,
            last_epoch=last_epoch,
            end_lsn=end_lsn,
            choose=self._choose_replicas,
            skip=epochs_skipped,
        )
        self._feed = FeedHub(end_lsn, path.with_name("subscribers"))
        self._last_time_ns = last_time_ns
        self._durable_lsn = end_lsn
        self._durable_changed = anyio.Event()
        self._stopped: WritesStopped | None = None  # why nothing becomes durable right now
        self._undurable: deque[_Waiting] = deque()  # applied, to be answered once durable
        self._durable_waiters = 0  # in wait_durable()
        self._durable_wanted = anyio.Event()  # somebody waits for more to become durable
        self._tasks: TaskGroup | None = None
        self._ordered = anyio.Event()
        self._turn = anyio.Lock()
        self._ended = False
        self._taken_over = False
        self._send, self._receive = anyio.create_memory_object_stream[_Waiting](limits.COMMIT_QUEUE_MAX)
        page.set_applied(end_lsn)
        page.set_durable(end_lsn)
        self._seal_request = 0
        self.protection_lsn = 0  # of the newest record that bears on what has to be repaired
        self._behind: set[str] = set()
        self._condemned_lsn = max(keymap.condemned().values(), default=0)
        page.set_condemned(self._condemned_lsn)

    # -- Index -----------------------------------------------------------------

    async def commit(self, change: Change, origin: Origin, *, durable: bool = True) -> CommitResult:
        answered = anyio.Event()
        outcome: list[CommitResult | StoreError | None] = []

        def done(result: CommitResult | None, error: StoreError | None) -> None:
            outcome.append(error if error is not None else result)
            answered.set()

        await self.submit(change, origin, durable, done)
        await answered.wait()
        (found,) = outcome
        if isinstance(found, StoreError):
            raise found
        assert found is not None, "a commit without error has a result"
        return found

    async def submit(self, change: Change, origin: Origin, durable: bool, done: Done) -> None:
        """commit() without a task that waits: `done` is called with what commit() would
        return or raise. Waits only while the queue is full. Raises IndexUnavailable."""
        if self._ended:
            raise IndexUnavailable("the index is shutting down")
        waiting = _Waiting(change, origin, durable, done)
        try:
            self._send.send_nowait(waiting)
        except anyio.WouldBlock:
            await self._send.send(waiting)

    def _applied(self, batch: list[_Waiting]) -> None:
        """The batch is applied, or refused: answer whom nothing keeps waiting."""
        for waiting in batch:
            if waiting.durable and waiting.lsn > self._durable_lsn:
                self._undurable.append(waiting)
                self._durable_wanted.set()
            else:
                self._answer(waiting)
        if self._stopped is not None and self._undurable:
            self._refuse_undurable(self._stopped)

    def _answer_durable(self) -> None:
        while self._undurable and self._undurable[0].lsn <= self._durable_lsn:
            self._answer(self._undurable.popleft())

    def _refuse_undurable(self, stopped: WritesStopped) -> None:
        while self._undurable:
            waiting = self._undurable.popleft()
            waiting.error = stopped
            self._answer(waiting)

    def _answer(self, waiting: _Waiting) -> None:
        if waiting.error is None and waiting.touches and self._feed.must_confirm():
            assert self._tasks is not None, "changes are decided while run() runs"
            self._tasks.start_soon(self._answer_confirmed, waiting)
        else:
            waiting.done(waiting.result, waiting.error)

    async def _answer_confirmed(self, waiting: _Waiting) -> None:
        await self._feed.wait_confirmed(waiting.lsn, waiting.origin.mount_id)
        waiting.done(waiting.result, None)

    async def freshen(self) -> None:
        """Nothing to wait for: what was answered was applied before."""

    def durable_lsn(self) -> int:
        return self._durable_lsn

    async def wait_durable(self, lsn: int) -> None:
        """Raises WritesStopped while the journal has too few replicas."""
        self._durable_waiters += 1
        try:
            while self._durable_lsn < lsn:
                if self._stopped is not None:
                    raise self._stopped
                self._durable_wanted.set()
                await self._durable_changed.wait()
        finally:
            self._durable_waiters -= 1

    async def subscribe(
        self, *, subscriber_id: str, confirms: bool, from_lsn: int | None = None
    ) -> AsyncIterator[tuple[FeedBatch, Confirm]]:
        next_lsn = self._feed.last_lsn + 1 if from_lsn is None else from_lsn
        while next_lsn < self._feed.first_lsn and from_lsn is not None:
            records = await self._read_back(next_lsn)
            if records is None:
                yield FeedBatch(next_lsn, self._feed.last_lsn, [], [], dropped=True), _nothing
                next_lsn = self._feed.last_lsn + 1
                break
            if not records:
                break
            next_lsn = records[-1].lsn + 1
            yield FeedBatch(records[0].lsn, records[-1].lsn, records, []), _nothing
        async for item in self._feed.follow(subscriber_id, confirms, next_lsn):
            yield item

    async def read_frame(self, location: JournalLocation, chunk_id: bytes | None = None) -> bytes:
        return await read_journal_frame(self._nodes, location, chunk_id)

    async def request_seal(self) -> None:
        self._seal_request += 1
        self._page.request_seal()

    def seal_request(self) -> int:
        return self._seal_request

    def condemned_lsn(self) -> int:
        return self._condemned_lsn

    async def recount(self) -> list[str]:
        return recount(self._db)

    def awaits(self, subscriber_id: str) -> bool:
        return self._feed.awaits(subscriber_id)

    def keep_subscribers(self) -> None:
        """The store is being closed: who follows the feed is to be waited for by the next
        index, though its connection ends with this one."""
        self._feed.ending = True

    async def aclose(self) -> None:
        self._ended = True

    # -- the journal, read back ------------------------------------------------

    async def _read_back(self, from_lsn: int) -> list[Record] | None:
        """None if the journal does not go back that far, or not any more."""
        if from_lsn < self.keymap.journal_first_lsn():
            return None
        try:
            return await anyio.to_thread.run_sync(self._read_records, from_lsn)
        except JournalCorrupt:
            if from_lsn < self.keymap.journal_first_lsn():
                return None  # dropped while it was read
            raise

    def _read_records(self, from_lsn: int) -> list[Record]:
        records = []
        for (epoch, _), _, raw in JournalScan(dict(self._nodes), self._store_id).records(from_lsn):
            if raw.lsn > self._feed.last_lsn:
                break
            records.append(to_record(raw, epoch))
            if len(records) == REPLAY_RECORDS * 20:
                break
        return records

    # -- the two tasks ---------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; an error that leaves it ends the index."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._order)
                self._tasks.start_soon(self._sync)
                self._tasks.start_soon(self._copy_log)
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody decides or syncs any more: whoever waits, or asks from now on, is told so.
        A segment that is being sealed would else wait for ever."""
        self._ended = True
        while True:
            try:
                waiting = self._receive.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
                break
            waiting.done(None, IndexUnavailable(ENDED))
        self._stopped = self._stopped or WritesStopped(ENDED)
        self._wake_durable()

    async def _order(self) -> None:
        async for first in self._receive:
            batch = [first]
            while len(batch) < limits.JOURNAL_BATCH_RECORDS_MAX:
                try:
                    batch.append(self._receive.receive_nowait())
                except anyio.WouldBlock:
                    break
            with anyio.CancelScope(shield=True):  # never stop between ordering and applying
                async with self._turn:
                    try:
                        await self._commit_batch(batch)
                    except BaseException:
                        for waiting in batch:  # they are answered last, so nobody was yet
                            waiting.done(None, IndexUnavailable(ENDED))
                        raise

    async def _look_for_room(self, batch: list[_Waiting]) -> None:
        """The journal leaves nodes that are full while others are not."""
        room = self._commit_room
        if room is None or not room.is_due(len(batch), sum(riding_bytes(waiting.change) for waiting in batch)):
            return
        healthy = self._healthy()
        await anyio.to_thread.run_sync(room.look, healthy)
        short = room.short.intersection(self._log.members)
        if short and len(healthy - room.short) >= self._copies and self._durable_lsn == self._log.end_lsn:
            self._log.retire()

    async def _commit_batch(self, batch: list[_Waiting]) -> None:
        await self._look_for_room(batch)
        self._db.execute("BEGIN IMMEDIATE")
        raws: list[RawRecord] = []
        records: list[Record] = []
        touched: list[Touched] = []
        first_lsn = self._log.end_lsn + 1
        for waiting in batch:
            try:
                self._decide(waiting, first_lsn + len(raws), raws, records, touched)
            except StoreError as error:
                waiting.error = error
                # It tells of what is there: a refusal too must not be answered before that is durable.
                waiting.lsn = first_lsn + len(raws) - 1
        if raws:
            self._forgive_healthy(records)
            try:
                locations = await self._append(raws)
            except WritesStopped as stopped:
                self._db.execute("ROLLBACK")
                self._log.abandon(first_lsn)
                for waiting in batch:
                    # Refusals too: they were judged beside changes of this batch that never came to be.
                    if waiting.result is None or waiting.lsn >= first_lsn:
                        waiting.error, waiting.lsn = stopped, 0
                self._applied(batch)
                return
            reached(CrashSite.COMMIT_ORDERED)
            place_chunks(self._db, locations)
            set_state(self._db, self._log.epoch, raws[-1].lsn)
        self._db.execute("COMMIT")
        if self._sums.due():
            self._log_due.set()
        reached(CrashSite.COMMIT_APPLIED)
        if self._taken_over:  # only now: whoever sees that it is durable finds the new epoch in the keymap
            self._taken_over = False
            self._set_durable(self._log.end_lsn)
        if raws:
            self._note_condemned(records)
            self._note_protection(records)
            self._page.set_applied(raws[-1].lsn)
            stamped = [Record(r.lsn, r.time_ns, self._log.epoch, r.origin, r.change) for r in records]
            self._feed.publish(stamped, without_duplicates(touched))
            self._ordered.set()
        self._applied(batch)

    def _note_condemned(self, records: list[Record]) -> None:
        newest = max((record.lsn for record in records if isinstance(record.change, Condemn)), default=0)
        if newest:
            self._condemned_lsn = newest
            self._page.set_condemned(newest)

    def _forgive_healthy(self, records: list[Record]) -> None:
        """Before they are written: a node that fails then is not forgiven."""
        for record in records:
            change = record.change
            if isinstance(change, SetNode) and change.state is NodeState.HEALTHY:
                self.forgive(change.node_id)

    def _note_protection(self, records: list[Record]) -> None:
        for record in records:
            change = record.change
            if isinstance(change, SetNode | RemoveNode | FragmentsDamaged | FragmentsRepaired) or (
                isinstance(change, SealSegment) and change.fragments_lost
            ):
                self.protection_lsn = record.lsn

    def _decide(
        self,
        waiting: _Waiting,
        lsn: int,
        raws: list[RawRecord],
        records: list[Record],
        touched: list[Touched],
    ) -> None:
        origin = waiting.origin
        answered = idempotent(self._db, origin.request_id) if origin.request_id else None
        if answered is not None:
            waiting.result, waiting.lsn = answered, answered.lsn
            return
        if self._commit_room is not None:
            self._commit_room.refuse(waiting.change)
        time_ns = max(time.time_ns(), self._last_time_ns + 1)
        decision = decide(self._db, waiting.change, lsn=lsn, time_ns=time_ns, origin=origin)
        if origin.request_id:
            remember(self._db, origin.request_id, decision.result)
        self._last_time_ns = time_ns
        raws.append(encode_record(lsn, time_ns, origin, waiting.change, self._durable_lsn))
        records.append(Record(lsn, time_ns, 0, origin, without_frames(waiting.change)))
        touched += decision.touched
        waiting.touches = bool(decision.touched)
        waiting.result, waiting.lsn = decision.result, lsn

    async def _append(self, raws: list[RawRecord]) -> dict[bytes, JournalLocation]:
        """Write to all replicas; on a failed one, to the next epoch's."""
        try:
            if sum(raw.length for raw in raws) <= ON_LOOP_BYTES:
                return self._log.append(raws)
            return await anyio.to_thread.run_sync(self._log.append, raws)
        except ReplicaFailed as failed:
            if failed.node_id:
                logger.warning("%s; a new epoch takes over", failed)
                if self._commit_room is not None:  # it may have been the last of its disk's room
                    await anyio.to_thread.run_sync(self._commit_room.look, self._healthy())
            locations = await anyio.to_thread.run_sync(self._log.take_over, failed.node_id)
            move_riding(self._db, locations)
            self._taken_over = True
            return locations

    async def _copy_log(self) -> None:
        """Keep SQLite's log short, beside commits."""
        while True:
            await self._log_due.wait()
            self._log_due = anyio.Event()
            with anyio.CancelScope(shield=True):
                log = self._sums.begin()
                try:
                    await anyio.to_thread.run_sync(self._sums.write, log)
                except (OSError, sqlite3.OperationalError) as error:
                    logger.warning("SQLite's log is not copied into %s: %s; make room on its disk", self._path, error)
                finally:
                    self._sums.end()
            await anyio.sleep(COPY_PAUSE_SECONDS)

    async def _sync(self) -> None:
        while True:
            if self._durable_lsn >= self._log.written_lsn:
                self._ordered = anyio.Event()
                if self._durable_lsn >= self._log.written_lsn:
                    await self._ordered.wait()
            await self._gather()
            epoch = self._log.epoch
            try:
                self._set_durable(await anyio.to_thread.run_sync(self._log.sync))
            except ReplicaFailed as failed:
                with anyio.CancelScope(shield=True):
                    async with self._turn:
                        if self._log.epoch == epoch:
                            await self._take_over(failed)
                if self._stopped is not None:
                    await anyio.sleep(0.5)

    async def _gather(self) -> None:
        """While nobody waits for a sync, let more come together for it: the mount's
        operations return ahead of theirs."""
        if not self._undurable and not self._durable_waiters:
            self._durable_wanted = anyio.Event()
            with anyio.move_on_after(SYNC_DELAY_SECONDS):
                await self._durable_wanted.wait()

    async def _take_over(self, failed: ReplicaFailed) -> None:
        logger.warning("%s; a new epoch takes over", failed)
        try:
            locations = await anyio.to_thread.run_sync(self._log.take_over, failed.node_id)
        except WritesStopped as stopped:
            self._stopped = stopped
            self._wake_durable()
            return
        self._db.execute("BEGIN IMMEDIATE")
        move_riding(self._db, locations)
        set_state(self._db, self._log.epoch, self._log.end_lsn)
        self._db.execute("COMMIT")
        self._set_durable(self._log.end_lsn)

    def _set_durable(self, lsn: int) -> None:
        self._stopped = None
        if lsn > self._durable_lsn:
            self._durable_lsn = lsn
            self._page.set_durable(lsn)
            self._wake_durable()

    def _wake_durable(self) -> None:
        if self._stopped is not None:
            self._refuse_undurable(self._stopped)
        self._answer_durable()
        self._durable_changed.set()
        self._durable_changed = anyio.Event()

    async def close(self) -> None:
        """Sync what is ordered; called after run() was cancelled."""
        try:
            self._set_durable(await anyio.to_thread.run_sync(self._log.sync))
        except ReplicaFailed as failed:
            logger.warning("closing: %s", failed)
        self._log.close()
        self._page.close()
        self.keymap.close()
        await anyio.to_thread.run_sync(close_soundly, self._db, self._sums)


async def _nothing() -> None:
    """Confirms a batch nobody waits for."""
