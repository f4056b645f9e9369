"""The caretaker: starts care by itself, at limits that leave room for everybody else.

A task in a process of its own beside the index (objfs/processes.py), or in
the only process of a server without workers. It makes a checkpoint when one is due, from
time to time collects and compacts, and scrubs what was not read for long; repair starts
where nodes are watched (engine.maintenance). Each piece of work takes the care lock, so
that it and the commands of a person take turns. What fails is logged and tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import anyio

from engine.care.checkpoint import checkpoint, checkpoint_due
from engine.care.collect import collect
from engine.care.scrub import scrub
from engine.errors import StoreError, StoreInUse
from engine.opening import Parts

CHECKPOINT_EVERY_SECONDS = 10.0  # how often it is asked whether one is due
COLLECT_EVERY_SECONDS = 3600.0
SCRUB_EVERY_SECONDS = 3600.0
SETTLE_SECONDS = 60.0  # a server that has just started has other things to do
SCRUB_AGAIN_SECONDS = 14 * 24 * 3600  # every byte is read every two weeks
PAUSE_AFTER_FAILURE_SECONDS = 60.0
# tools/bench/care.py shows what these leave for requests on two cores.
CHECKPOINT_BYTES_PER_SECOND = 50 * 1024**2
COLLECT_BYTES_PER_SECOND = 50 * 1024**2
SCRUB_BYTES_PER_SECOND = 20 * 1024**2

logger = logging.getLogger("objfs.care")


class Caretaker:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._repeat, "checkpoint", CHECKPOINT_EVERY_SECONDS, self._checkpoint)
            tasks.start_soon(self._repeat, "collection", COLLECT_EVERY_SECONDS, self._collect)
            tasks.start_soon(self._repeat, "scrub", SCRUB_EVERY_SECONDS, self._scrub)

    async def _repeat(self, what: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        await anyio.sleep(min(seconds, SETTLE_SECONDS))
        while True:
            pause = seconds
            try:
                await work()
            except StoreInUse as busy:
                logger.info("%s: %s", what, busy)
            except (StoreError, OSError) as error:
                logger.warning("%s: %s", what, error)
                pause = max(seconds, PAUSE_AFTER_FAILURE_SECONDS)
            await anyio.sleep(pause)

    async def _checkpoint(self) -> None:
        why = await checkpoint_due(self._parts)
        if why is not None:
            logger.info("checkpoint: %s", why)
            await checkpoint(self._parts, bytes_per_second=CHECKPOINT_BYTES_PER_SECOND)

    async def _collect(self) -> None:
        started = time.monotonic()
        result = await collect(self._parts, compact=True, bytes_per_second=COLLECT_BYTES_PER_SECOND)
        for reason in result.reasons:
            logger.warning("collection: %s", reason)
        if result.freed_bytes:
            seconds = time.monotonic() - started
            logger.info("collection freed %d bytes in %.1f s", result.freed_bytes, seconds)

    async def _scrub(self) -> None:
        older_than_ns = time.time_ns() - SCRUB_AGAIN_SECONDS * 10**9
        result = await scrub(self._parts, bytes_per_second=SCRUB_BYTES_PER_SECOND, older_than_ns=older_than_ns)
        for damage in result.damaged:
            logger.warning("scrub: node %s: %s: %s", damage.node_id, damage.where, damage.reason)
        for problem in result.problems:
            logger.warning("scrub: %s", problem)
