"""The tables process of the store at argv[1], killed with -9 when it reaches the crash site
argv[2] for the argv[3]rd time. Says so on its standard output when it is ready."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio

from engine.crash_sites import CrashSite, watch
from engine.tables import service
from objfs.processes import run_tables


def main() -> None:
    site, left = CrashSite[sys.argv[2]], int(sys.argv[3])

    def watcher(found: CrashSite) -> None:
        nonlocal left
        left -= found is site
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    service.PENDING_RECORDS_MAX = 40  # several batches of few records
    with watch(watcher):
        anyio.run(run_tables, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
