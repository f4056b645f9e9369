"""`python crash_in_checkpoint.py DATA SITE [TIMES]`: runs a checkpoint and ends the process, as
kill -9 would, when the crash site is reached for the TIMESth time; exits 0 if it never is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

from engine.care.checkpoint import checkpoint
from engine.crash_sites import CrashSite, watch
from engine.store import open_store

KILLED = 77


async def run(data: Path, site: CrashSite, times: int) -> None:
    left = times

    def watcher(found: CrashSite) -> None:
        nonlocal left
        left -= found is site
        if found is site and left == 0:
            os._exit(KILLED)

    async with open_store(data) as store:
        with watch(watcher):
            await checkpoint(store.parts, force=True)


if __name__ == "__main__":
    anyio.run(run, Path(sys.argv[1]), CrashSite[sys.argv[2]], int((sys.argv[3:] or ["1"])[0]))
