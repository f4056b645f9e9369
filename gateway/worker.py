"""One gateway process: `python -m gateway.worker DATA HOST:PORT`.

Opens (joins) the store in the ASGI lifespan, serves it with granian, prints `ready` once
it accepts connections, and drains on SIGTERM. create() is the same application for any
other ASGI server: DATA is OBJFS_DATA, and OBJFS_DOMAINS (comma separated) are the domains
of virtual-host style requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from engine.errors import StoreError
from engine.store import Opening, open_store
from gateway.app import Gateway
from gateway.request import Receive, Scope, Send
from gateway.serve import describe, serve_granian

DEFAULT_DOMAINS = ("localhost",)
_THREADS_MAX = 16

logger = logging.getLogger("objfs.gateway")


class Application:
    """A Gateway over the store at `data`, opened when the server starts."""

    def __init__(self, data: Path, *, domains: Sequence[str] = DEFAULT_DOMAINS) -> None:
        self._data = data
        self._domains = domains
        self._gateway: Gateway | None = None
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        assert self._gateway is not None, "requests come after startup"
        await self._gateway(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        up = False
        try:
            async with open_store(self._data, Opening.JOIN) as store:
                self._gateway = Gateway(store, users=store.users, host_style_domains=self._domains)
                up = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            self.failure = describe(error)
            if up:
                logger.exception("closing the store failed")
            kind = "shutdown" if up else "startup"
            await send({"type": f"lifespan.{kind}.failed", "message": str(self.failure)})
            return
        await send({"type": "lifespan.shutdown.complete"})


def create() -> Application:
    """An application configured by the environment, for `factory` options of servers."""
    domains = [domain for domain in os.environ.get("OBJFS_DOMAINS", "localhost").split(",") if domain]
    return Application(Path(os.environ.get("OBJFS_DATA", "objfs-data")), domains=domains)


def run_worker(data: Path, host: str, port: int, *, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises StoreError if the store does not
    open, RuntimeError if the address cannot be served."""
    application = Application(data)
    try:
        uvloop.run(_run(application, host, port, ready))
    except Exception:
        if application.failure is not None:
            raise application.failure from None
        raise


async def _run(application: Application, host: str, port: int, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def stopped() -> None:
        await stop.wait()

    await serve_granian(application, host, port, started=ready, shutdown=stopped)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or ":" not in arguments[1]:
        print("usage: python -m gateway.worker DATA HOST:PORT", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    host, _, port = arguments[1].rpartition(":")
    try:
        run_worker(Path(arguments[0]), host.strip("[]"), int(port), ready=lambda: print("ready", flush=True))
    except (StoreError, RuntimeError) as error:
        print(f"objfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
