"""The change feed: recent records for subscribers, and the confirmations commits wait for.

A bounded window of batches; a subscriber that falls out of it gets one batch with
`dropped` set and goes on from now. A confirming one that falls out, or confirms nothing
for LEASE_WAIT_SECONDS, is told so and has to subscribe anew: nobody waits for it any
more. Time in which this process itself stood still does not count. Who confirms is kept
in a file beside the keymap: an index that starts again waits for those that confirmed to
its predecessor, until they are back or their lease has run out. All on one event loop.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import anyio
import msgspec

from engine import limits
from engine.changes import Record, Touched
from engine.interfaces import Confirm, FeedBatch
from engine.pins import living_names

GATHER_SECONDS = 0.01  # subscribers that only follow are this much behind
GATHER_RECORDS = 500  # in one message to them
SLICE_SECONDS = 0.5  # of waiting for a confirmation: what counts at most when this process stood still

_NAME = re.compile(r"mount-(\d+-[0-9a-f]+)-[0-9a-f]{16}")


class Subscriber:
    def __init__(self, subscriber_id: str, confirms: bool, next_lsn: int) -> None:
        self.subscriber_id = subscriber_id
        self.confirms = confirms
        self.next_lsn = next_lsn
        self.confirmed_lsn = next_lsn - 1
        self.dropped = False


class FeedHub:
    """`path`: where the names of confirming subscribers are kept. Made on the event loop."""

    def __init__(self, last_lsn: int, path: Path) -> None:
        self.last_lsn = last_lsn
        self.ending = False  # connections that end now do not end the caches behind them
        self._path = path
        self._awaited = _read_names(path)
        self._awaited_until = anyio.current_time() + limits.LEASE_WAIT_SECONDS
        self._window: deque[FeedBatch] = deque()
        self._window_records = 0
        self._subscribers: set[Subscriber] = set()
        self._published = anyio.Event()
        self._confirmed = anyio.Event()

    @property
    def first_lsn(self) -> int:
        """The oldest LSN in the window."""
        return self._window[0].first_lsn if self._window else self.last_lsn + 1

    def publish(self, records: list[Record], touched: list[Touched]) -> None:
        batch = FeedBatch(records[0].lsn, records[-1].lsn, records, touched)
        self._window.append(batch)
        self._window_records += len(records)
        self.last_lsn = batch.last_lsn
        while self._window_records > limits.FEED_RECORDS_MAX:
            self._window_records -= len(self._window.popleft().records)
        self._published.set()
        self._published = anyio.Event()

    async def follow(
        self, subscriber_id: str, confirms: bool, next_lsn: int
    ) -> AsyncIterator[tuple[FeedBatch, Confirm]]:
        """Batches from `next_lsn` (in the window or the next to come) on."""
        subscriber = Subscriber(subscriber_id, confirms, next_lsn)
        self._subscribers.add(subscriber)
        if confirms:
            self._awaited.discard(subscriber_id)
            self._keep_names()
            self._confirmed.set()
            self._confirmed = anyio.Event()
        try:
            if confirms:
                yield FeedBatch(next_lsn, next_lsn - 1, [], [], awaited=True), _nothing
            while True:
                batch = self._next(subscriber)
                if batch is None:
                    await self._published.wait()
                    if not confirms:  # nobody waits for it: a few batches in one message cost less
                        await anyio.sleep(GATHER_SECONDS)
                    continue
                subscriber.next_lsn = batch.last_lsn + 1

                async def confirm(lsn: int = batch.last_lsn) -> None:
                    subscriber.confirmed_lsn = max(subscriber.confirmed_lsn, lsn)
                    self._confirmed.set()
                    self._confirmed = anyio.Event()

                yield batch, confirm
                if confirms and batch.dropped:
                    return
        finally:
            self._subscribers.discard(subscriber)
            if confirms and not self.ending:
                self._keep_names()
            self._confirmed.set()
            self._confirmed = anyio.Event()

    def _next(self, subscriber: Subscriber) -> FeedBatch | None:
        if subscriber.dropped or subscriber.next_lsn < self.first_lsn:
            subscriber.dropped = subscriber.confirms
            return FeedBatch(subscriber.next_lsn, self.last_lsn, [], [], dropped=True)
        while subscriber.next_lsn <= self.last_lsn:
            batches = self._from(subscriber.next_lsn)
            if subscriber.confirms and all(
                record.origin.mount_id == subscriber.subscriber_id for record in batches[0].records
            ):
                # A mount knows what it did itself, and nobody waits for it to say so.
                subscriber.next_lsn = batches[0].last_lsn + 1
                subscriber.confirmed_lsn = max(subscriber.confirmed_lsn, batches[0].last_lsn)
                continue
            return batches[0] if subscriber.confirms else _joined(batches)
        return None

    def _from(self, lsn: int) -> list[FeedBatch]:
        """The batches from the one that holds `lsn` on, to at most GATHER_RECORDS records."""
        batches: list[FeedBatch] = []
        for batch in reversed(self._window):  # the window is contiguous
            batches.append(batch)
            if batch.first_lsn <= lsn:
                break
        batches.reverse()
        records = 0
        for count, batch in enumerate(batches):
            records += len(batch.records)
            if records > GATHER_RECORDS:
                return batches[: max(count, 1)]
        return batches

    def must_confirm(self) -> bool:
        return any(subscriber.confirms for subscriber in self._subscribers) or self._awaits("")

    def _awaits(self, except_id: str) -> bool:
        """Whether one that confirmed to the index before this one may still hold caches."""
        return bool(self._awaited - {except_id}) and anyio.current_time() < self._awaited_until

    def _keep_names(self) -> None:
        names = self._awaited | {one.subscriber_id for one in self._subscribers if one.confirms}
        scratch = self._path.with_name(self._path.name + ".new")
        scratch.write_bytes(msgspec.json.encode(sorted(names)))
        scratch.replace(self._path)

    async def wait_confirmed(self, lsn: int, except_id: str) -> None:
        """Until every confirming subscriber but `except_id` confirmed `lsn`. Those that do
        not in time are dropped: their caches have run out by then."""
        while self._awaits(except_id):
            with anyio.move_on_after(self._awaited_until - anyio.current_time()):
                await self._confirmed.wait()
        waited, last = 0.0, anyio.current_time()
        while waited < limits.LEASE_WAIT_SECONDS:
            if not self._late(lsn, except_id):
                return
            with anyio.move_on_after(SLICE_SECONDS):
                await self._confirmed.wait()
            now = anyio.current_time()
            waited, last = waited + min(now - last, SLICE_SECONDS), now
        for subscriber in self._late(lsn, except_id):
            subscriber.dropped = True
        self._published.set()  # they are told so
        self._published = anyio.Event()

    def awaits(self, subscriber_id: str) -> bool:
        return any(one.subscriber_id == subscriber_id and one.confirms and not one.dropped for one in self._subscribers)

    def _late(self, lsn: int, except_id: str) -> list[Subscriber]:
        return [
            subscriber
            for subscriber in self._subscribers
            if subscriber.confirms
            and not subscriber.dropped
            and subscriber.subscriber_id != except_id
            and subscriber.confirmed_lsn < lsn
        ]


async def _nothing() -> None:
    """Confirms a batch nobody waits for."""


def subscriber_name(process: str) -> str:
    """A name for a confirming subscriber of the process whose Pins.name is `process`: with
    the process the mount and all it cached have ended."""
    return f"mount-{process}-{secrets.token_hex(8)}"


def _read_names(path: Path) -> set[str]:
    try:
        names = msgspec.json.decode(path.read_bytes(), type=set[str])
    except FileNotFoundError:
        return set()
    except (OSError, msgspec.DecodeError):
        return {"unknown"}  # somebody may be there: wait for the lease
    living = living_names(path.parent)
    found = {name: _NAME.fullmatch(name) for name in names}
    return {name for name, match in found.items() if match is None or match[1] in living}


def _joined(batches: list[FeedBatch]) -> FeedBatch:
    if len(batches) == 1:
        return batches[0]
    records = [record for batch in batches for record in batch.records]
    touched = without_duplicates(one for batch in batches for one in batch.touched)
    return FeedBatch(batches[0].first_lsn, batches[-1].last_lsn, records, touched)


def without_duplicates(touched: Iterable[Touched]) -> list[Touched]:
    return list(dict.fromkeys(touched))
