"""`python -m engine.process DATA`: the index process of a server.

Owns the store: journal, keymap writes, maintenance, the index socket. It never imports
duckdb. Prints `ready` on a line of its own when the socket answers; SIGTERM ends it
after its segments are sealed and the journal is synced.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import anyio

from engine.errors import StoreError
from engine.opening import Opening, open_parts


async def run_index(data: Path) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_parts(data, Opening.OWN):
            print("ready", flush=True)
            async for _ in signals:
                return


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m engine.process DATA", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        anyio.run(run_index, Path(arguments[0]), backend_options={"use_uvloop": True})
    except StoreError as error:
        print(f"objfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
