"""`python -m objfs.processes ROLE DATA …`: the processes a supervisor runs beside the index
and the gateways. Each prints a line `ready` once it answers and ends in order on SIGTERM.

    tables DATA        owns the DuckDB file and answers SQL on DATA/index/tables.sock
    caretaker DATA     checkpoints, collects and scrubs when it is time
    mount DATA DIR     mounts the store on DIR

A process here joins the index that runs already; it never serves anything the supervisor
did not ask it for.
"""

from __future__ import annotations

import logging
import signal
import sys
from functools import partial
from pathlib import Path

import anyio

from engine.errors import StoreError
from objfs.commands.common import only_error

LOG_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"


def announce_ready() -> None:
    print("ready", flush=True)


async def run_tables(data: Path) -> None:
    from engine.opening import Opening, open_parts
    from engine.store import Store
    from engine.tables.client import tables_service
    from engine.tables.server import serve_tables

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_parts(data, Opening.JOIN) as parts:
            service = tables_service(parts, Store(parts).load_tree)
            async with anyio.create_task_group() as tasks:
                await tasks.start(partial(serve_tables, service, data / "index"))
                announce_ready()
                await anext(signals)
                tasks.cancel_scope.cancel()


async def run_caretaker(data: Path) -> None:
    """In a process of its own, so that what it reads, recodes and copies costs the doors no
    processor time of theirs. What is under way when it ends is gone on with next time."""
    from engine.care.caretaker import Caretaker
    from engine.opening import Opening, open_parts

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_parts(data, Opening.JOIN) as parts, anyio.create_task_group() as tasks:
            tasks.start_soon(Caretaker(parts).run)
            announce_ready()
            await anext(signals)
            tasks.cancel_scope.cancel()


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    match arguments:
        case ["tables", data]:
            run = partial(anyio.run, run_tables, Path(data))
        case ["caretaker", data]:
            run = partial(anyio.run, run_caretaker, Path(data))
        case ["mount", data, directory]:
            from objfs.commands.serving import mount_until_signalled

            run = partial(mount_until_signalled, Path(data), Path(directory), announce_ready)
        case _:
            print("usage: python -m objfs.processes tables DATA | caretaker DATA | mount DATA DIR", file=sys.stderr)
            return 2
    try:
        run()
    except (StoreError, OSError, BaseExceptionGroup) as error:
        failure = only_error(error)
        if not isinstance(failure, StoreError | OSError):
            raise
        print(f"objfs: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
