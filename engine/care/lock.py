"""One caretaker at a time: who changes where fragments lie holds DATA/care.lock.

The lock belongs to an open file, so it ends with its process. Scrubbing only reads and
has a lock of its own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from engine.errors import StoreInUse

POLL_SECONDS = 0.1
CARE = "care.lock"
SCRUB = "scrub.lock"


@asynccontextmanager
async def care_lock(
    data: Path, what: str, *, name: str = CARE, wait: bool = True, waiting: Callable[[str], None] | None = None
) -> AsyncIterator[None]:
    """Hold the lock for `what` (a few words, shown to whoever waits). Without `wait`
    raises StoreInUse if another holds it. `waiting` is told once what is waited for."""
    descriptor = os.open(data / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                held_for = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "other care"
                if not wait:
                    raise StoreInUse(f"{held_for} is under way; try again when it has ended") from None
                if waiting is not None and not told:
                    waiting(held_for)
                    told = True
            await anyio.sleep(POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{what} (process {os.getpid()})\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
