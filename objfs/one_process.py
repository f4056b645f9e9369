"""`objfs serve --workers 0`: index, gateway, tables and mount in one trio event loop.

The same parts a supervisor runs as processes, opened once and shared: one Store, no
sockets crossed but the ones other commands join by.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from engine.care.caretaker import Caretaker
from engine.opening import Opening, open_parts
from engine.store import Store
from engine.tables.client import tables_service
from engine.tables.server import serve_tables
from gateway.app import Gateway
from gateway.serve import serve_hypercorn
from gateway.worker import DEFAULT_DOMAINS
from objfs.commands.common import only_error
from objfs.listening import Address


def serve_in_one_process(data: Path, address: Address, mount: Path | None, on_ready: Callable[[], None]) -> int:
    """Serve until SIGTERM or SIGINT, then drain; the exit code."""
    try:
        trio.run(_serve, data, address, mount, on_ready)
    except BaseExceptionGroup as group:
        raise only_error(group) from None
    return 0


async def _serve(data: Path, address: Address, mount: Path | None, on_ready: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with open_parts(data, Opening.OWN) as parts, trio.open_nursery() as background:
            store = Store(parts)
            await background.start(partial(serve_tables, tables_service(parts, store.load_tree), data / "index"))
            background.start_soon(Caretaker(parts).run)
            async with AsyncExitStack() as doors:
                # Left in the opposite order: requests end first, then the mount.
                if mount is not None:
                    await doors.enter_async_context(_mounted(store, mount))
                await doors.enter_async_context(_serving_s3(store, address))
                on_ready()
                await anext(signals)
            background.cancel_scope.cancel()


@asynccontextmanager
async def _mounted(store: Store, directory: Path) -> AsyncIterator[None]:
    from objfs.mount.mount import run_mount  # pyfuse3 is loaded only where there is a mount

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await run_mount(store, str(directory), ready=task_status.started, stop=stop)

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(run)
            yield
        finally:
            stop.set()


@asynccontextmanager
async def _serving_s3(store: Store, address: Address) -> AsyncIterator[None]:
    gateway = Gateway(store, users=store.users, host_style_domains=DEFAULT_DOMAINS)
    stop = trio.Event()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await serve_hypercorn(gateway, address.host, address.port, started=task_status.started, shutdown=stop.wait)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield
        finally:
            stop.set()
