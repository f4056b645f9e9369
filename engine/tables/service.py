"""TablesService: follows the change feed, keeps the DuckDB file at its heels, answers SQL.

The tables start from the keymap's state as one snapshot shows it, and follow the feed from
there; meanwhile the events before it are read back from what the journal and its archives
still hold. One task takes batches from the feed into a bounded queue, another writes them
to DuckDB, within a second of their commit and at once when a query waits. A query notes
the newest answered LSN, waits until the tables have reached it (and, if it asks what
happened, until the older events are back), and then runs on a cursor of its own in a
read-only transaction: SQL reads its own writes. What stands in quarantine no record tells:
it is read from the nodes before each query that asks for it.

The file is disposable. One that does not follow from this journal (its last record is not
the journal's at that LSN) or that the journal has left behind is loaded again; a damaged
one is deleted first, whenever the damage shows. DuckDB blocks, so all of it runs in worker
threads, one at a time for writing. Works under trio and asyncio. Knows the index, not how
manifests and archives are stored.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import TypeVar

import anyio
import anyio.abc
import anyio.from_thread
import anyio.to_thread
import duckdb
import msgspec
import pyarrow

from engine.changes import CompleteUpload, MoveChunks, PutPart, PutVersion, Record, Touched
from engine.errors import QueryFailed, StoreError
from engine.interfaces import FeedBatch, Index
from engine.quarantine import SetAside
from engine.tables import statements
from engine.tables.apply import apply, fingerprint, mend
from engine.tables.database import Cursor, Database, TablesDamaged, lacks_room
from engine.tables.load import load, recall, recall_ends
from engine.tables.rows import quarantine_row
from engine.types import Manifest, NewChunk, TreeEntry

log = logging.getLogger(__name__)

LoadTree = Callable[[TreeEntry], Awaitable[Manifest]]
Archives = Callable[[int], AsyncIterator[list[Record]]]  # records from an LSN on, older than the journal's files
Result = TypeVar("Result")

LAG_SECONDS = 0.5  # between a record's arrival and its transaction, when no query waits
PENDING_RECORDS_MAX = 2000  # records held in memory; the feed waits beyond
QUERY_SECONDS_MAX = 300.0  # for reaching the newest LSN and for the query itself, each
QUERIES_MAX = 4  # at one time
RESUBSCRIBE_SECONDS = 0.2
RECALL_RETRY_SECONDS = 5.0  # between attempts to read archives that cannot be read
MEND_SECONDS = 10.0  # between attempts to read what could not be read of a manifest
DAMAGES_MAX = 2  # in a row, without a transaction in between; then it is not the file


class TablesService:
    """See the module. `run` must be running for `query` to return."""

    def __init__(
        self,
        index: Index,
        load_tree: LoadTree,
        path: str | os.PathLike[str],
        *,
        store_id: str = "",
        m: int = 2,
        archives: Archives | None = None,
        hold_pin: Callable[[], AbstractContextManager[object]] = nullcontext,
        set_aside: Callable[[], Sequence[SetAside]] = tuple,
        query_seconds: float = QUERY_SECONDS_MAX,
    ) -> None:
        self._index = index
        self._load_tree = load_tree
        self._path = os.fspath(path)
        self._store_id = store_id
        self._m = m
        self._archives = archives
        self._hold_pin = hold_pin  # while manifests are read that may be deleted meanwhile
        self._set_aside = set_aside  # what stands in quarantine now; blocking
        self._query_seconds = query_seconds
        self._database: Database | None = None
        self._writing = anyio.CapacityLimiter(1)
        self._asking = anyio.CapacityLimiter(QUERIES_MAX)
        self._cursors: set[Cursor] = set()
        self._session = anyio.CancelScope()
        self._renewals = 0  # how often the tables were begun again; a query notices
        self._damages = 0
        self._damaged = False  # the file is to be replaced by an empty one
        self._to_load = False  # whatever the file says
        self._pending: deque[FeedBatch] = deque()
        self._pending_records = 0
        self._received_lsn = 0
        self._settled_lsn = 0  # the tables are exactly the keymap's state as of this LSN
        self._wanted_lsn = 0  # a query waits for this LSN
        self._recalled = False  # whether all older events are back
        self._recall_failure = ""
        self._unread_trees = True  # whether a node of a manifest's tree may be missing; the file may lack some
        self._news = anyio.Event()  # set, and made anew, whenever one of the above changes

    @property
    def applied_lsn(self) -> int:
        """The LSN up to which the tables are the keymap's exact state."""
        return self._settled_lsn

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the feed until cancelled. Raises StoreInUse if the file is another process's."""
        open_file = lambda: Database(self._path, self._store_id, m=self._m)  # noqa: E731  # as _blocking takes it
        self._database = database = await self._blocking(open_file)
        started = False
        try:
            while True:
                async with anyio.create_task_group() as tasks:
                    self._session = tasks.cancel_scope
                    tasks.start_soon(self._work, database)
                    if not started:
                        task_status.started()
                        started = True
                await self._begin_again(database)
        finally:
            self._database = None
            with anyio.CancelScope(shield=True):
                await self._blocking(database.close)

    # -- queries -------------------------------------------------------------------

    async def query(self, sql: str) -> pyarrow.Table:
        """The rows of one read-only statement, over everything answered to anyone before.
        Raises QueryFailed."""
        history = statements.asks_for_history(sql)
        failure = "the tables are being made anew; ask again"
        for _ in range(DAMAGES_MAX + 1):
            await self.catch_up(history=history)
            renewals = self._renewals
            with anyio.move_on_after(self._query_seconds):
                async with self._asking:
                    database = self._database
                    if database is None:
                        raise QueryFailed("the tables are closing; try again")
                    if renewals != self._renewals:
                        continue
                    try:
                        if statements.asks_for_quarantine(sql):
                            await self._look_into_quarantine(database)
                        answer = await self._ask(database.cursor(), sql)
                        if renewals == self._renewals:
                            return answer
                    except TablesDamaged as damage:
                        failure = str(damage)
                        if renewals == self._renewals:
                            self._stop_session(failure, damaged=True)
                        continue
                    except QueryFailed:
                        if renewals == self._renewals:
                            raise
                        continue  # interrupted, because the tables are begun again
            raise QueryFailed(f"the query took longer than {self._query_seconds:g} seconds and was stopped")
        raise QueryFailed(failure)

    async def _look_into_quarantine(self, database: Database) -> None:
        """Raises TablesDamaged, QueryFailed."""
        found = await anyio.to_thread.run_sync(self._set_aside)
        await self._blocking(lambda: database.put_in_place("quarantine", [quarantine_row(one) for one in found]))

    async def _ask(self, cursor: Cursor, sql: str) -> pyarrow.Table:
        self._cursors.add(cursor)
        try:
            return await _run_query(cursor, sql)
        finally:
            self._cursors.discard(cursor)

    async def catch_up(self, *, history: bool = False) -> None:
        """Return once the tables show everything answered to anyone before the call; with
        `history` also all that happened before, as far as it is kept. Raises QueryFailed
        when that takes too long."""
        await self._index.freshen()
        target = self._index.keymap.applied_lsn()
        with anyio.move_on_after(self._query_seconds):
            self._wanted_lsn = max(self._wanted_lsn, target)
            self._notify()
            while self._database is None or self._settled_lsn < target or (history and not self._recalled):
                if history and self._recall_failure:
                    raise QueryFailed(f"the older history cannot be read ({self._recall_failure}); run objfs status")
                await self._news.wait()
            return
        if self._settled_lsn >= target:
            raise QueryFailed("the older history is still being read from the journal; try again later")
        behind = target - self._received_lsn + self._pending_records
        raise QueryFailed(f"the tables are still {behind} records behind the journal; try again later")

    # -- beginning, and beginning again ------------------------------------------------

    async def _work(self, database: Database) -> None:
        """A session: from tables of any kind to tables that follow the feed."""
        if self._to_load or not await self._follows(database):
            log.info("the tables at %s are loaded from the keymap", self._path)
            await self._load(database)
            self._to_load = False
        self._received_lsn = database.applied_lsn
        if database.state_lsn == database.applied_lsn:
            self._settled_lsn = database.applied_lsn
        self._notify()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            tasks.start_soon(self._write, database)
            tasks.start_soon(self._recall, database)
            tasks.start_soon(self._mend, database)

    async def _follows(self, database: Database) -> bool:
        """Whether the tables' last record is the journal's at that LSN, and the journal goes
        on from there."""
        keymap = self._index.keymap
        if database.applied_lsn == 0 or max(database.applied_lsn, database.state_lsn) > keymap.applied_lsn():
            return False
        if database.applied_lsn < keymap.journal_first_lsn() or not database.fingerprint:
            return False
        return await self._fingerprint_at(database.applied_lsn) == database.fingerprint

    async def _load(self, database: Database) -> None:
        with self._hold_pin(), self._index.keymap.snapshot() as reader:
            lsn = reader.applied_lsn()
            last = await self._fingerprint_at(lsn) if lsn else ""
            await self._changing(lambda: load(database, reader, self._load_now, last))

    def _stop_session(self, reason: str, *, damaged: bool = False) -> None:
        """End the session; the next one begins with the keymap's state."""
        log.warning("the tables at %s are begun again: %s", self._path, reason)
        self._damaged, self._to_load = damaged, True
        self._renewals += 1
        self._settled_lsn = 0
        self._recalled = False
        self._session.cancel()

    async def _begin_again(self, database: Database) -> None:
        self._pending.clear()
        self._pending_records = 0
        if not self._damaged:
            return
        while self._cursors:  # the file can be deleted only once nobody has it open
            for cursor in self._cursors:
                cursor.interrupt()
            await anyio.sleep(0.05)
        await self._blocking(database.restart)
        self._damaged = False

    async def _changing(self, call: Callable[[], Result]) -> Result:
        """A call that writes. Whatever DuckDB cannot do with this file it may do with a new one."""
        try:
            result = await self._blocking(call)
        except duckdb.Error as error:
            self._damages += 1
            if lacks_room(error) or self._damages > DAMAGES_MAX:
                raise
            self._stop_session(statements.one_line(error), damaged=True)
            await anyio.sleep_forever()
            raise
        self._damages = 0
        return result

    # -- taking from the feed --------------------------------------------------------

    async def _follow(self) -> None:
        fell_at = -1
        while True:
            if self._received_lsn + 1 < self._index.keymap.journal_first_lsn() or fell_at == self._received_lsn:
                self._stop_session("the journal does not go on where they end")
                return
            async with aclosing(self._feed(self._received_lsn + 1)) as feed:
                async for batch in feed:
                    if batch.dropped or batch.first_lsn > self._received_lsn + 1:
                        log.warning("the tables fell out of the change feed at LSN %d; reading on", self._received_lsn)
                        fell_at = self._received_lsn
                        break
                    await self._take(batch)
            await anyio.sleep(RESUBSCRIBE_SECONDS)

    async def _feed(self, from_lsn: int) -> AsyncGenerator[FeedBatch, None]:
        async for batch, _ in self._index.subscribe(subscriber_id="tables", confirms=False, from_lsn=from_lsn):
            yield batch

    async def _fingerprint_at(self, lsn: int) -> str:
        """Of the journal's record at the LSN; "" if the journal does not hold it."""
        if lsn < self._index.keymap.journal_first_lsn():
            return ""
        async with aclosing(self._feed(lsn)) as feed:
            async for batch in feed:
                found = [record for record in batch.records if record.lsn == lsn]
                return fingerprint(found[0]) if found else ""
        return ""

    # -- reading older events back -------------------------------------------------------

    async def _recall(self, database: Database) -> None:
        while database.recalled_lsn < database.loaded_lsn:
            before = database.recalled_lsn
            try:
                async with aclosing(self._past(before + 1, database.loaded_lsn)) as past:
                    async for records in past:
                        await self._changing(lambda records=records: recall(database, records))  # type: ignore[misc]
            except StoreError as error:
                self._recall_failure = str(error)
                self._notify()
                await anyio.sleep(RECALL_RETRY_SECONDS)
                continue
            if database.recalled_lsn == before:
                await self._changing(lambda: recall_ends(database))
        self._recall_failure = ""
        self._recalled = True
        self._notify()

    async def _past(self, from_lsn: int, to_lsn: int) -> AsyncGenerator[list[Record], None]:
        """Records of the stretch that are still kept, in order."""
        first = self._index.keymap.journal_first_lsn()
        if from_lsn < first and self._archives is not None:
            async for records in self._archives(from_lsn):
                yield [record for record in records if from_lsn <= record.lsn < first]
        from_lsn = max(from_lsn, first)
        if from_lsn > to_lsn:
            return
        waiting: list[Record] = []
        async with aclosing(self._feed(from_lsn)) as feed:
            async for batch in feed:
                if batch.dropped:
                    return  # out of the window: what is missing is asked for again
                waiting += [_without_frames(record) for record in batch.records]
                while len(waiting) >= PENDING_RECORDS_MAX or (waiting and batch.last_lsn >= to_lsn):
                    yield waiting[:PENDING_RECORDS_MAX]
                    waiting = waiting[PENDING_RECORDS_MAX:]
                if batch.last_lsn >= to_lsn:
                    return

    async def _take(self, batch: FeedBatch) -> None:
        while self._pending_records >= PENDING_RECORDS_MAX:
            await self._news.wait()
        records = [_without_frames(record) for record in batch.records if record.lsn > self._received_lsn]
        if not records:
            return
        self._pending.append(msgspec.structs.replace(batch, first_lsn=records[0].lsn, records=records))
        self._pending_records += len(records)
        self._received_lsn = records[-1].lsn
        self._notify()

    # -- reading again what could not be read -------------------------------------------

    async def _mend(self, database: Database) -> None:
        while True:
            if self._unread_trees:
                self._unread_trees = False  # set again by what still cannot be read
                with self._index.keymap.snapshot() as reader:
                    await self._changing(lambda reader=reader: mend(database, reader, self._load_now))  # type: ignore[misc]
            await anyio.sleep(MEND_SECONDS)

    # -- writing to DuckDB -----------------------------------------------------------

    async def _write(self, database: Database) -> None:
        while True:
            while not self._pending and self._wanted_lsn <= self._settled_lsn:
                await self._news.wait()
            with anyio.move_on_after(LAG_SECONDS):
                while self._wanted_lsn <= self._settled_lsn and self._pending_records < PENDING_RECORDS_MAX:
                    await self._news.wait()
            await self._settle(database)

    async def _settle(self, database: Database) -> None:
        """Write what is pending. Normally up to exactly the state a snapshot of the keymap
        shows; when far behind, as much as memory holds, read from a later state."""
        with self._hold_pin(), self._index.keymap.snapshot() as reader:
            state_lsn = reader.applied_lsn()
            while self._received_lsn < state_lsn and self._pending_records < PENDING_RECORDS_MAX:
                await self._news.wait()
            records, touched = self._until(state_lsn)
            if records:
                await self._changing(
                    lambda: apply(database, reader, records, touched, self._load_now, state_lsn=state_lsn)
                )
        if database.applied_lsn == state_lsn and database.state_lsn <= state_lsn:
            self._settled_lsn = state_lsn
        self._notify()

    def _until(self, lsn: int) -> tuple[list[Record], list[Touched]]:
        """Take from the queue the records up to `lsn`. A batch cut in two touches its names
        both times."""
        records: list[Record] = []
        touched: list[Touched] = []
        while self._pending and self._pending[0].first_lsn <= lsn:
            batch = self._pending.popleft()
            touched += batch.touched
            now = [record for record in batch.records if record.lsn <= lsn]
            later = batch.records[len(now) :]
            records += now
            if later:
                rest = msgspec.structs.replace(batch, first_lsn=later[0].lsn, records=later)
                self._pending.appendleft(rest)
        self._pending_records -= len(records)
        return records, touched

    def _load_now(self, entry: TreeEntry) -> Manifest | None:
        """A node of a manifest's tree, from a worker thread."""
        return anyio.from_thread.run(self._tree, entry)

    async def _tree(self, entry: TreeEntry) -> Manifest | None:
        try:
            return await self._load_tree(entry)
        except StoreError as error:
            log.warning("a manifest could not be read for the tables, its tree stands for it: %s", error)
            self._unread_trees = True
            return None

    async def _blocking(self, call: Callable[[], Result]) -> Result:
        return await anyio.to_thread.run_sync(call, limiter=self._writing)

    def _notify(self) -> None:
        self._news.set()
        self._news = anyio.Event()


async def _run_query(cursor: Cursor, sql: str) -> pyarrow.Table:
    """Run in a thread; when cancelled, interrupt it and wait for its end."""
    outcome: list[pyarrow.Table | QueryFailed] = []

    def work() -> None:
        try:
            outcome.append(cursor.run(sql))
        except QueryFailed as error:
            outcome.append(error)

    async def interrupt_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                while not cursor.ended:
                    cursor.interrupt()
                    await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(interrupt_when_cancelled)
        await anyio.to_thread.run_sync(work)
        tasks.cancel_scope.cancel()
    if isinstance(outcome[0], QueryFailed):
        raise outcome[0]
    return outcome[0]


def _without_frames(record: Record) -> Record:
    """The record without the content that rides in it: the tables need only its names."""

    def bare(chunks: Sequence[NewChunk]) -> list[NewChunk]:
        return [msgspec.structs.replace(chunk, frame=None) for chunk in chunks]

    change = record.change
    if isinstance(change, (PutVersion, PutPart, CompleteUpload)):
        content = msgspec.structs.replace(change.content, new_chunks=bare(change.content.new_chunks))
        return msgspec.structs.replace(record, change=msgspec.structs.replace(change, content=content))
    if isinstance(change, MoveChunks):
        return msgspec.structs.replace(record, change=msgspec.structs.replace(change, moves=bare(change.moves)))
    return record
