"""How care yields and how it tells: a throttle in bytes per second, and progress.

One Throttle may be shared by several tasks of one event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from msgspec import Struct

BURST_SECONDS = 0.1  # how far ahead of its rate work may run


class Progress(Struct, frozen=True):
    """How far a piece of work is. `total` may grow; None: not known yet."""

    what: str  # such as "scrub"
    done: int
    total: int | None
    unit: str = "bytes"
    bytes_per_second: float | None = None
    seconds_left: float | None = None


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """For callers nobody watches."""


class Throttle:
    """Keeps to `bytes_per_second` on average (None: no limit)."""

    def __init__(self, bytes_per_second: int | None) -> None:
        assert bytes_per_second is None or bytes_per_second > 0
        self._rate = bytes_per_second
        self._free_at = 0.0  # when everything taken so far will have been paid for

    async def take(self, count: int) -> None:
        """Return when `count` more bytes may be worked on."""
        if self._rate is None:
            await anyio.lowlevel.checkpoint()
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self._rate
        await anyio.sleep(max(self._free_at - now, 0))


class Meter:
    """Measures work and reports it, at most five times a second, and once at the end."""

    def __init__(self, what: str, total: int | None, report: Report, *, unit: str = "bytes") -> None:
        self.done = 0
        self.total = total
        self._what, self._unit, self._report = what, unit, report
        self._started = time.monotonic()
        self._told = 0.0

    def add(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self._told >= 0.2:
            self.tell()

    def tell(self) -> None:
        now = time.monotonic()
        self._told = now
        seconds = now - self._started
        rate = self.done / seconds if seconds > 0 else None
        left = None if not rate or self.total is None else max(self.total - self.done, 0) / rate
        self._report(Progress(self._what, self.done, self.total, self._unit, rate, left))
