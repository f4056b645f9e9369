"""TablesService: follows the change feed, keeps the DuckDB file at its heels, answers SQL.

Two tasks: one takes batches from the feed into a bounded queue, the other writes them to
DuckDB, within a second of their commit and at once when a query waits. A query notes the
newest answered LSN, waits until the tables have reached it, and then runs on a cursor of
its own in a read-only transaction: SQL reads its own writes.

The file is disposable. A damaged one, another store's, or one that is ahead of the
journal (its last record is not the journal's at that LSN) is deleted and fed again from
LSN 1. DuckDB blocks, so all of it runs in worker threads, one at a time for writing.
Works under trio and asyncio. Knows the index, not how manifests are stored (`expand`).
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import anyio
import anyio.abc
import anyio.from_thread
import anyio.to_thread
import msgspec
import pyarrow

from engine.changes import CompleteUpload, MoveChunks, PutPart, PutVersion, Record, Touched
from engine.errors import QueryFailed, StoreError
from engine.interfaces import FeedBatch, Index
from engine.tables.apply import apply, fingerprint
from engine.tables.database import Cursor, Database
from engine.types import Entry, Manifest, NewChunk, TreeEntry

log = logging.getLogger(__name__)

Expand = Callable[[Manifest], AsyncIterator[Entry]]
Result = TypeVar("Result")

LAG_SECONDS = 0.5  # between a record's arrival and its transaction, when no query waits
PENDING_RECORDS_MAX = 2000  # records held in memory; the feed waits beyond
QUERY_SECONDS_MAX = 300.0  # for reaching the newest LSN and for the query itself, each
QUERIES_MAX = 4  # at one time
RESUBSCRIBE_SECONDS = 0.2


class TablesService:
    """See the module. `run` must be running for `query` to return."""

    def __init__(
        self,
        index: Index,
        expand: Expand,
        path: str | os.PathLike[str],
        *,
        store_id: str = "",
        query_seconds: float = QUERY_SECONDS_MAX,
    ) -> None:
        self._index = index
        self._expand = expand
        self._path = os.fspath(path)
        self._store_id = store_id
        self._query_seconds = query_seconds
        self._database: Database | None = None
        self._writing = anyio.CapacityLimiter(1)
        self._asking = anyio.CapacityLimiter(QUERIES_MAX)
        self._pending: deque[FeedBatch] = deque()
        self._pending_records = 0
        self._received_lsn = 0
        self._settled_lsn = 0  # the tables are exactly the keymap's state as of this LSN
        self._wanted_lsn = 0  # a query waits for this LSN
        self._news = anyio.Event()  # set, and made anew, whenever one of the above changes

    @property
    def applied_lsn(self) -> int:
        """The LSN up to which the tables are the keymap's exact state."""
        return self._settled_lsn

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the feed until cancelled. Raises StoreInUse if the file is another process's."""
        self._database = database = await self._blocking(lambda: Database(self._path, self._store_id))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow, database)
                tasks.start_soon(self._write, database)
                self._notify()
                task_status.started()
        finally:
            self._database = None
            with anyio.CancelScope(shield=True):
                await self._blocking(database.close)

    # -- queries -------------------------------------------------------------------

    async def query(self, sql: str) -> pyarrow.Table:
        """The rows of one read-only statement, over everything answered to anyone before.
        Raises QueryFailed."""
        await self.catch_up()
        with anyio.move_on_after(self._query_seconds):
            async with self._asking:
                if self._database is None:
                    raise QueryFailed("the tables are closing; try again")
                return await _run_query(self._database.cursor(), sql)
        raise QueryFailed(f"the query took longer than {self._query_seconds:g} seconds and was stopped")

    async def catch_up(self) -> None:
        """Return once the tables show everything answered to anyone before the call.
        Raises QueryFailed when that takes too long."""
        await self._index.freshen()
        target = self._index.keymap.applied_lsn()
        with anyio.move_on_after(self._query_seconds):
            self._wanted_lsn = max(self._wanted_lsn, target)
            self._notify()
            while self._database is None or self._settled_lsn < target:
                await self._news.wait()
            return
        behind = target - self._received_lsn + self._pending_records
        raise QueryFailed(f"the tables are still {behind} records behind the journal; try again later")

    # -- taking from the feed --------------------------------------------------------

    async def _follow(self, database: Database) -> None:
        await self._check_journal(database)
        self._received_lsn = database.applied_lsn
        self._notify()
        while True:
            async with aclosing(self._feed(self._received_lsn + 1)) as feed:
                async for batch in feed:
                    if batch.dropped:
                        log.warning("the tables fell out of the change feed at LSN %d; reading on", self._received_lsn)
                        break
                    await self._take(batch)
            await anyio.sleep(RESUBSCRIBE_SECONDS)

    async def _check_journal(self, database: Database) -> None:
        """Make the tables anew unless their last record is the journal's at that LSN."""
        if database.applied_lsn == 0:
            return
        known = max(database.applied_lsn, database.state_lsn) <= self._index.keymap.applied_lsn()
        if not known or await self._fingerprint_at(database.applied_lsn) != database.fingerprint:
            log.warning("the tables at %s do not follow from this journal; they are made anew", self._path)
            await self._blocking(database.restart)

    async def _feed(self, from_lsn: int) -> AsyncGenerator[FeedBatch, None]:
        async for batch, _ in self._index.subscribe(subscriber_id="tables", confirms=False, from_lsn=from_lsn):
            yield batch

    async def _fingerprint_at(self, lsn: int) -> str:
        async with aclosing(self._feed(lsn)) as feed:
            async for batch in feed:
                found = [record for record in batch.records if record.lsn == lsn]
                return fingerprint(found[0]) if found else ""
        return ""

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
        with self._index.keymap.snapshot() as reader:
            state_lsn = reader.applied_lsn()
            while self._received_lsn < state_lsn and self._pending_records < PENDING_RECORDS_MAX:
                await self._news.wait()
            records, touched = self._until(state_lsn)
            if records:
                await self._blocking(
                    lambda: apply(database, reader, records, touched, self._expand_now, state_lsn=state_lsn)
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

    def _expand_now(self, manifest: Manifest) -> Sequence[Entry]:
        """The leaves of a manifest, from a worker thread."""
        if not any(isinstance(entry, TreeEntry) for entry in manifest.entries):
            return manifest.entries
        return anyio.from_thread.run(self._leaves, manifest)

    async def _leaves(self, manifest: Manifest) -> Sequence[Entry]:
        try:
            return [entry async for entry in self._expand(manifest)]
        except StoreError as error:
            log.warning("a manifest could not be read for the tables, its subtrees stand for it: %s", error)
            return manifest.entries

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
