"""Servers for the gateway: hypercorn inside a trio program, granian in a process of its own.

Both read bodies with back-pressure, answer Expect: 100-continue, and give raw_path. A
granian process binds with SO_REUSEPORT, so that N of them share one address and the
kernel spreads connections over them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from gateway.request import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]

DRAIN_SECONDS = 20.0
KEEP_ALIVE_SECONDS = 75.0
HEADER_BYTES_MAX = 64 * 1024
_LISTEN_POLL_SECONDS = 0.01
_BACKLOG = 1024
_CONCURRENT_REQUESTS_MAX = 256  # per process; more wait in granian, and then in the backlog


async def serve_hypercorn(
    app: App,
    host: str,
    port: int,
    *,
    started: Callable[[], None],
    shutdown: Callable[[], Awaitable[None]],
) -> None:
    """Serve until `shutdown` returns, then let requests end. trio only. `started` is called
    once the address is bound."""
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve

    config = Config()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.graceful_timeout = DRAIN_SECONDS
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    config.include_server_header = False
    config.errorlog = None
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, cast(Any, app), config, shutdown_trigger=shutdown, mode="asgi"))
        started()


async def serve_granian(
    app: App,
    host: str,
    port: int,
    *,
    started: Callable[[], None],
    shutdown: Callable[[], Awaitable[None]],
) -> None:
    """As above, on asyncio, one per process. The app's lifespan runs around it. Raises
    RuntimeError when the server ends by itself (its startup failed)."""
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    server = Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.auto,
        websockets=False,
        backlog=_BACKLOG,
        backpressure=_CONCURRENT_REQUESTS_MAX,
        http1_settings=HTTP1Settings(max_buffer_size=HEADER_BYTES_MAX * 6),
        log_access=False,
        log_enabled=False,
    )
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.ensure_future(shutdown())
    listening = asyncio.create_task(_until_listening(port))
    done, _ = await asyncio.wait({serving, stopping, listening}, return_when=asyncio.FIRST_COMPLETED)
    if listening in done:
        started()
        done, _ = await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    stopped_by_itself = serving in done
    server.stop()  # type: ignore[no-untyped-call]
    stopping.cancel()
    await serving
    if stopped_by_itself:
        raise RuntimeError(f"the HTTP server on {host}:{port} did not start or ended by itself")


async def _until_listening(port: int) -> None:
    """Until this process accepts connections on the port. Connecting would not tell: with
    SO_REUSEPORT another process may answer."""
    while not _listens(port):  # noqa: ASYNC110 - granian tells nobody
        await asyncio.sleep(_LISTEN_POLL_SECONDS)


def _listens(port: int) -> bool:
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                accepts = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if accepts and copy.family in (socket.AF_INET, socket.AF_INET6) and copy.getsockname()[1] == port:
                    return True
        except OSError:
            continue  # closed meanwhile
    return False


def describe(error: BaseException) -> BaseException:
    """The one error inside a task group's, for a message of one line."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
