"""The change feed: recent records for subscribers, and the confirmations commits wait for.

A bounded window of batches; a subscriber that falls out of it, or a confirming one that
confirms nothing for LEASE_SECONDS, gets one batch with `dropped` set and goes on from
now. All on one event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable

import anyio

from engine import limits
from engine.changes import Record, Touched
from engine.interfaces import Confirm, FeedBatch


class Subscriber:
    def __init__(self, subscriber_id: str, confirms: bool, next_lsn: int) -> None:
        self.subscriber_id = subscriber_id
        self.confirms = confirms
        self.next_lsn = next_lsn
        self.confirmed_lsn = next_lsn - 1
        self.dropped = False
        self.resumes_at: int | None = None  # told it was dropped; counts again once it confirmed that


class FeedHub:
    def __init__(self, last_lsn: int) -> None:
        self.last_lsn = last_lsn
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
        try:
            while True:
                batch = self._next(subscriber)
                if batch is None:
                    await self._published.wait()
                    continue
                subscriber.next_lsn = batch.last_lsn + 1

                async def confirm(lsn: int = batch.last_lsn) -> None:
                    subscriber.confirmed_lsn = max(subscriber.confirmed_lsn, lsn)
                    if subscriber.resumes_at is not None and lsn >= subscriber.resumes_at:
                        subscriber.resumes_at = None
                    self._confirmed.set()
                    self._confirmed = anyio.Event()

                yield batch, confirm
        finally:
            self._subscribers.discard(subscriber)
            self._confirmed.set()
            self._confirmed = anyio.Event()

    def _next(self, subscriber: Subscriber) -> FeedBatch | None:
        if subscriber.dropped or subscriber.next_lsn < self.first_lsn:
            subscriber.dropped = False
            subscriber.confirmed_lsn = subscriber.resumes_at = self.last_lsn
            return FeedBatch(subscriber.next_lsn, self.last_lsn, [], [], dropped=True)
        if subscriber.next_lsn > self.last_lsn:
            return None
        # The window is contiguous, so the batch is the newest one that starts at or before.
        return next(batch for batch in reversed(self._window) if batch.first_lsn <= subscriber.next_lsn)

    def must_confirm(self) -> bool:
        return any(subscriber.confirms for subscriber in self._subscribers)

    async def wait_confirmed(self, lsn: int, except_id: str) -> None:
        """Until every confirming subscriber but `except_id` confirmed `lsn`. Those that do
        not within the lease are dropped: their caches have run out by then."""
        with anyio.move_on_after(limits.LEASE_SECONDS):
            while self._late(lsn, except_id):
                await self._confirmed.wait()
            return
        for subscriber in self._late(lsn, except_id):
            subscriber.dropped = True
            subscriber.confirmed_lsn = self.last_lsn

    def _late(self, lsn: int, except_id: str) -> list[Subscriber]:
        return [
            subscriber
            for subscriber in self._subscribers
            if subscriber.confirms
            and not subscriber.dropped
            and subscriber.resumes_at is None
            and subscriber.subscriber_id != except_id
            and subscriber.confirmed_lsn < lsn
        ]


def without_duplicates(touched: Iterable[Touched]) -> list[Touched]:
    return list(dict.fromkeys(touched))
