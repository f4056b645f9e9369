"""Whether a keymap file found at open is the one that was closed.

At a clean close the file's checksum is written beside it; at open it is compared. After a
crash there is none, and SQLite looks over the file's structure instead. Small files are
checked before anything is served, large ones while it is: opening takes no longer for a
large store. What a check finds is told by the next open (file_sums.mark_damaged).
Blocking.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from engine.file_sums import FileSum, mark_damaged, sum_file, sum_path, take_sum, write_sum
from engine.keymap.schema import KeymapDamaged, open_reader

SUM_AT_ONCE_BYTES = 128 * 1024**2  # read within a second from a slow disk
LOOK_AT_ONCE_BYTES = 16 * 1024**2  # quick_check does some 100 MiB/s
CLOSE_BUSY_MS = 1000


def take_suspicion(path: Path) -> KeymapCheck | None:
    """Call before the keymap is opened for writing: checks what is small, and returns the
    check that remains. Raises KeymapDamaged."""
    expected = take_sum(path)
    if not path.exists():
        return None
    if expected is None:
        return KeymapCheck(path, None)
    if expected.damaged:
        raise KeymapDamaged(f"{path} was found damaged: {expected.damaged}")
    wal = path.with_name(path.name + "-wal")
    if path.stat().st_size != expected.size or (wal.exists() and wal.stat().st_size):
        raise KeymapDamaged(f"{path} has another size than when it was closed")
    if expected.size <= SUM_AT_ONCE_BYTES:
        if sum_file(path) != expected:
            raise KeymapDamaged(f"{path} does not have the checksum it was closed with")
        return None
    return KeymapCheck(path, expected)


class KeymapCheck:
    """A check that runs beside everything else. begin() is called once the writer has the
    file open and before it writes; then run() from any thread, and stop() from another."""

    def __init__(self, path: Path, expected: FileSum | None) -> None:
        self._path = path
        self._expected = expected
        self._stopping = threading.Event()
        self._reader: sqlite3.Connection | None = None

    def begin(self) -> KeymapCheck | None:
        """None if it was small and is done. Raises KeymapDamaged."""
        self._reader = open_reader(self._path)
        if self._expected is not None:
            # While this reader looks at the file as it is now, SQLite writes only beside it.
            self._reader.execute("BEGIN")
            self._reader.execute("SELECT count(*) FROM meta").fetchone()
        elif self._path.stat().st_size <= LOOK_AT_ONCE_BYTES:
            problem = self.run()
            if problem is not None:
                raise KeymapDamaged(f"{self._path}: {problem}")
            return None
        return self

    def run(self) -> str | None:
        """What is wrong, or None."""
        reader = self._reader
        assert reader is not None, "begin() comes first"
        try:
            if self._expected is not None:
                found = sum_file(self._path, self._stopping.is_set)
                return None if found in (None, self._expected) else "it does not have the checksum it was closed with"
            return self._look_over(reader)
        except sqlite3.DatabaseError as error:
            return None if self._stopping.is_set() else str(error)
        finally:
            reader.close()

    def _look_over(self, reader: sqlite3.Connection) -> str | None:
        if self._path.stat().st_size <= LOOK_AT_ONCE_BYTES:
            checks = ["PRAGMA quick_check(1)"]
        else:  # one after the other: SQLite's WAL grows while one is read. The schema's looks at free pages too
            tables = reader.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            checks = [f"PRAGMA quick_check({table})" for table in ("sqlite_schema", *(name for (name,) in tables))]
        for check in checks:
            (problem,) = reader.execute(check).fetchone()
            if problem != "ok":
                return str(problem)
        return None

    def stop(self) -> None:
        self._stopping.set()
        if self._reader is not None:
            try:
                self._reader.interrupt()
            except sqlite3.ProgrammingError:
                return  # it has ended and closed its connection

    def tell(self, problem: str) -> KeymapDamaged:
        """Keep the next open from using the file; returns what to raise."""
        mark_damaged(self._path, problem)
        return KeymapDamaged(f"{self._path} is damaged ({problem}); it is rebuilt when the store is opened again")


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file is not whole, and not that there is no room or a bug."""
    return type(error) is sqlite3.DatabaseError


def close_soundly(db: sqlite3.Connection, path: Path) -> None:
    """Close the writer's connection; leave the checksum if all is in the file itself."""
    try:
        db.execute(f"PRAGMA busy_timeout = {CLOSE_BUSY_MS}")
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        db.close()
    if not busy and not sum_path(path).exists():  # else somebody found the file damaged meanwhile
        write_sum(path)
