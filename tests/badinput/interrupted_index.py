"""`python interrupted_index.py DATA SITE COUNT`: an index process that is killed where it
reaches a crash site the COUNT-th time after it was ready."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio

from engine.crash_sites import CrashSite, watch
from engine.process import run_index


def main(data: str, site: str, count: str) -> None:
    left = int(count)
    wanted = CrashSite[site]

    def reached(found: CrashSite) -> None:
        nonlocal left
        if found is wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with watch(reached):
        anyio.run(run_index, Path(data))


if __name__ == "__main__":
    main(*sys.argv[1:])
