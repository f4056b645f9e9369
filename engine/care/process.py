"""`python -m engine.care.process DATA`: the caretaker of a server, in a process of its own.

Joins the store that the index process owns; what it reads, recodes and copies costs the
doors no processor time of theirs. Prints `ready` on a line of its own; SIGTERM ends it, and
what was under way is gone on with next time.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import anyio

from engine.care.caretaker import Caretaker
from engine.errors import StoreError
from engine.opening import Opening, open_parts


async def take_care(data: Path) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_parts(data, Opening.JOIN) as parts, anyio.create_task_group() as tasks:
            tasks.start_soon(Caretaker(parts).run)
            print("ready", flush=True)
            await anext(signals)
            tasks.cancel_scope.cancel()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m engine.care.process DATA", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        anyio.run(take_care, Path(arguments[0]), backend_options={"use_uvloop": True})
    except StoreError as error:
        print(f"objfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
