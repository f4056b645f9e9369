"""Care under way, for whoever asks: how far each piece is, whichever process does it.

DATA/index/underway/<process id>-<what>.json holds the Progress told last, at most twice a
second; its process removes it at the end. One that was not told again for long belonged to
a process that ended. Derived and disposable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.care.pace import Progress, Report

FOLDER = "underway"
TOLD_SECONDS = 0.5
STALE_SECONDS = 60.0  # a slow limit may leave a piece without news for a while


@contextmanager
def telling(data: Path, what: str, report: Report) -> Iterator[Report]:
    """A Report that also lets others see how far it is."""
    folder = data / "index" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if not _lives(left):
            left.unlink(missing_ok=True)  # its process was killed
    path = folder / f"{os.getpid()}-{what}.json"
    scratch = path.with_suffix(".new")
    told = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told
        report(progress)
        if time.monotonic() - told >= TOLD_SECONDS:
            told = time.monotonic()
            scratch.write_bytes(msgspec.json.encode(progress))
            scratch.replace(path)

    try:
        yield tell
    finally:
        scratch.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def under_way(data: Path) -> list[Progress]:
    """Every piece of care some process is at."""
    found: list[Progress] = []
    for path in sorted((data / "index" / FOLDER).glob("*.json")):
        try:
            if time.time() - path.stat().st_mtime < STALE_SECONDS and _lives(path):
                found.append(msgspec.json.decode(path.read_bytes(), type=Progress))
        except (FileNotFoundError, msgspec.MsgspecError):
            continue  # it ended in between
    return found


def _lives(path: Path) -> bool:
    return Path(f"/proc/{path.name.partition('-')[0]}").exists()
