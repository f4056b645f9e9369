"""`objfs serve --workers 0`: index, gateway, tables and mount in one trio event loop.

The same parts a supervisor runs as processes, opened once and shared: one Store, no
sockets crossed but the ones other commands join by.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from engine.opening import open_parts
from engine.store import Store
from engine.tables.client import TABLES_NAME
from engine.tables.server import serve_tables
from engine.tables.service import TablesService
from objfs.commands.common import only_error
from objfs.listening import Address, answers

PROBE_SECONDS = 0.05


def serve_in_one_process(data: Path, address: Address, mount: Path | None, on_ready: Callable[[], None]) -> int:
    """Serve until SIGTERM or SIGINT, then drain; the exit code."""
    try:
        trio.run(_serve, data, address, mount, on_ready)
    except BaseExceptionGroup as group:
        raise only_error(group) from None
    return 0


async def _serve(data: Path, address: Address, mount: Path | None, on_ready: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with open_parts(data, join=False) as parts:
            store = Store(parts)
            service = TablesService(
                parts.index, store.expand, data / "index" / TABLES_NAME, store_id=parts.descriptor.store_id
            )
            async with AsyncExitStack() as doors:
                # Left in the opposite order: requests end first, the tables last.
                nursery = await doors.enter_async_context(trio.open_nursery())
                doors.callback(nursery.cancel_scope.cancel)
                await nursery.start(partial(serve_tables, service, data / "index"))
                if mount is not None:
                    await doors.enter_async_context(_mounted(store, mount))
                await doors.enter_async_context(_serving_s3(store, address))
                while not await trio.to_thread.run_sync(answers, address):
                    await trio.sleep(PROBE_SECONDS)
                on_ready()
                await anext(signals)
