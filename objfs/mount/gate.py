"""The gate around directory renames.

A directory rename moves every path below it in one commit. An operation that has built a
key from its parent's path must not have that path move before its commit is ordered, or
it would bring the old directory back to life. Operations that build keys pass the gate
together; a directory rename passes it alone. For one trio loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class TreeGate:
    def __init__(self) -> None:
        self._inside = 0
        self._alone = False
        self._changed = trio.Event()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        while self._alone:
            await self._changed.wait()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._wake()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        while self._alone:
            await self._changed.wait()
        self._alone = True
        try:
            while self._inside:
                await self._changed.wait()
            yield
        finally:
            self._alone = False
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
