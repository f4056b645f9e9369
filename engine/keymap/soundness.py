"""Whether the keymap file found at open is the one that was left, or rots while it is served.

Every page of it has a checksum (page_sums.py), after a crash too. Small files are checked
before anything is served, large ones while it is: opening takes no longer for a large
store. What a check finds then is told by the next open. Blocking.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Container
from pathlib import Path

import xxhash

from engine.keymap.page_sums import (
    PageSums,
    keep_log,
    mark_damaged,
    pages_in_log,
    read_header,
    read_log,
    read_pages,
    read_sums,
)
from engine.keymap.schema import PAGE_BYTES, KeymapDamaged

CHECK_AT_ONCE_BYTES = 128 * 1024**2  # read within a second from a slow disk
CLOSE_BUSY_MS = 1000


class KeymapCheck:
    """A check that runs beside everything else: begin(), then run() from any thread, and
    stop() from another. Until run() ends, the log is not copied any further."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopping = threading.Event()
        self._reader: sqlite3.Connection | None = None
        self._in_log: Container[int] = ()  # their checksums are in the log

    def begin(self) -> None:
        """The keymap is open, in this process or another. Raises KeymapDamaged."""
        self._reader = keep_log(self._path)
        try:
            self._reader.execute("BEGIN")
            self._reader.execute("SELECT count(*) FROM meta").fetchone()
            header, log = read_header(self._path), read_log(self._path)
            in_file = header.frames if header.salt == log.salt and not header.copying else 0
            self._in_log = frozenset(pages_in_log(self._path, in_file + 1, log.frames))
        except BaseException:
            self._reader.close()
            raise

    def run(self) -> str | None:
        """What is wrong, or None."""
        reader = self._reader
        assert reader is not None, "begin() comes first"
        try:
            return self._compare()
        except KeymapDamaged as error:
            return str(error)
        finally:
            reader.close()

    def _compare(self) -> str | None:
        # Only now: what left the log before it was listed has its checksum here.
        known = read_sums(self._path, read_header(self._path).pages)
        number = 0
        for number, page in enumerate(read_pages(self._path), 1):
            if number % 1024 == 0 and self._stopping.is_set():
                return None
            if number in self._in_log:
                continue
            if number > len(known) or len(page) < PAGE_BYTES:
                return f"page {number} was never written"
            if known[number - 1] not in (0, xxhash.xxh3_64_intdigest(page)):
                return f"page {number} does not have its checksum"
        missing = next((one for one in range(number + 1, len(known) + 1) if one not in self._in_log), None)
        return None if missing is None else f"page {missing} is missing"

    def stop(self) -> None:
        self._stopping.set()

    def tell(self, problem: str) -> KeymapDamaged:
        """Keep the next open from using the file; returns what to raise."""
        mark_damaged(self._path, problem)
        return KeymapDamaged(f"{self._path} is damaged ({problem}); it is rebuilt when the store is opened again")


def check_at_open(path: Path) -> KeymapCheck | None:
    """Call when the writer has the keymap open and before it writes; returns the check that
    remains to be run. Raises KeymapDamaged."""
    header = read_header(path)
    check = KeymapCheck(path)
    check.begin()
    log = read_log(path)
    torn = log.frames < header.frames and (header.copying or (log.frames and log.salt == header.salt))
    if torn or (header.copying and log.salt != header.salt):
        check.stop()
        check.run()
        raise KeymapDamaged(f"{path} is in the middle of its log, and the log is not whole")
    if path.stat().st_size > CHECK_AT_ONCE_BYTES:
        return check
    problem = check.run()
    if problem is not None:
        raise KeymapDamaged(f"{path}: {problem}")
    return None


def check_now(path: Path) -> None:
    """Check the keymap, which may be in use by any process. Raises KeymapDamaged, and tells
    the next open."""
    check = KeymapCheck(path)
    check.begin()
    problem = check.run()
    if problem is not None:
        raise check.tell(problem)


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file is not whole, and not that there is no room or a bug."""
    return type(error) is sqlite3.DatabaseError


def close_soundly(db: sqlite3.Connection, sums: PageSums) -> None:
    """Close the writer's connection, and leave everything in the file itself if nobody
    still reads what is in its log."""
    try:
        if sums.copy_log():
            db.execute(f"PRAGMA busy_timeout = {CLOSE_BUSY_MS}")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        sums.close(db)
