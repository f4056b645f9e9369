"""Checksums of the keymap file's pages, in `keymap.sqlite.pages`, and SQLite's log with them.

SQLite checks what is in its write-ahead log and trusts what is in the file itself. The file
changes only when the log is copied into it (a WAL checkpoint), so that is done here and
nowhere else, each time noting the checksums of the pages that were written:

1. in the header: that frames 1..n of the log with that salt are being copied; synced,
2. SQLite syncs the log, copies the pages and syncs the file,
3. the pages' checksums; synced,
4. in the header: that this is done.

Meanwhile a reader that stands at frame n keeps the log from being begun anew. Whatever a
crash leaves: a page of the file has its checksum, or is in the log, or the header tells that
the log must hold frames which it does not; then the file is damaged (soundness.py judges).

One process writes, under the owner's lock; PageSums is used by one thread at a time, and
write() by any while the keymap goes on being written. SQLite's file formats:
sqlite.org/walformat.html. Blocking.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import xxhash
from msgspec import Struct

from engine.durable_files import write_durably
from engine.keymap.schema import PAGE_BYTES, KeymapDamaged, open_reader

DUE_FRAMES = 4000  # of the log, copied at a time
HEADER_BYTES = 4096
FORMAT = 1
_MAGIC = b"OBJFSPGS"
_HEADER = struct.Struct("<8sIIQ8sII")  # magic, format, page bytes, pages, salt, frames, being copied
_SUM = struct.Struct("<Q")
_DAMAGED = b"damaged: "

_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_FRAME_BYTES = _FRAME_HEADER_BYTES + PAGE_BYTES
_LOG_INDEX = struct.Struct("=IIIBBHII8s8s8s")  # of the -shm file; twice
_LOG_FRAMES_AT = 16
_LOG_INDEX_VERSION = 3007000
_TRIES = 100
_PAGES_AT_ONCE = 512


class Log(Struct, frozen=True):
    """What SQLite takes for the log: `frames` good ones, in a log with that salt."""

    salt: bytes
    frames: int


class Header(Struct, frozen=True):
    """`frames` of the log with that salt are in the file, or, `copying`, on their way."""

    pages: int
    salt: bytes
    frames: int
    copying: bool


def sums_path(keymap: Path) -> Path:
    return keymap.with_name(keymap.name + ".pages")


def mark_damaged(keymap: Path, reason: str) -> None:
    """Whoever opens the keymap next must not use it."""
    write_durably(sums_path(keymap), _DAMAGED + reason.encode())


# -- reading -----------------------------------------------------------------------


def read_header(keymap: Path) -> Header:
    """Raises KeymapDamaged, also where a running process found the file damaged."""
    for _ in range(_TRIES):  # it may just be written
        try:
            with sums_path(keymap).open("rb") as file:
                found = file.read(HEADER_BYTES)
        except FileNotFoundError:
            raise KeymapDamaged(f"{keymap} has no checksums") from None
        body = found[: _HEADER.size]
        if found[_HEADER.size : _HEADER.size + 8] == xxhash.xxh3_64_digest(body):
            break
    if found.startswith(_DAMAGED):
        raise KeymapDamaged(f"{keymap} was found damaged: {found[len(_DAMAGED) :].decode(errors='replace')}")
    if found[_HEADER.size : _HEADER.size + 8] != xxhash.xxh3_64_digest(body):
        raise KeymapDamaged(f"{sums_path(keymap)} is damaged")
    magic, version, page_bytes, pages, salt, frames, copying = _HEADER.unpack(body)
    if (magic, version, page_bytes) != (_MAGIC, FORMAT, PAGE_BYTES):
        raise KeymapDamaged(f"{sums_path(keymap)} has format {version} for pages of {page_bytes} bytes")
    return Header(pages, salt, frames, bool(copying))


def read_sums(keymap: Path, pages: int) -> array[int]:
    """The checksums of the first `pages` pages; 0 where SQLite never wrote one. Raises
    KeymapDamaged."""
    sums = array("Q")
    with sums_path(keymap).open("rb") as file:
        file.seek(HEADER_BYTES)
        sums.frombytes(file.read(pages * _SUM.size))
    if len(sums) != pages:
        raise KeymapDamaged(f"{sums_path(keymap)} is cut off")
    return sums


def read_log(keymap: Path) -> Log:
    """Call while a connection of this process has read: SQLite has gone through the log then."""
    file = _log_index(keymap)
    for _ in range(_TRIES):
        both = file.read(2 * _LOG_INDEX.size, 0)
        if both[: _LOG_INDEX.size] == both[_LOG_INDEX.size :]:  # else it is being written
            version, _, _, _, _, _, frames, _, _, salt, _ = _LOG_INDEX.unpack(both[: _LOG_INDEX.size])
            assert version == _LOG_INDEX_VERSION, "SQLite's format of the log's index, since 2010"
            return Log(salt, frames)
    raise KeymapDamaged(f"{keymap}-shm is damaged")


def pages_in_log(keymap: Path, first: int, last: int) -> Iterator[int]:
    """The page numbers, from 1, in the log's frames `first` to `last`, counted from 1."""
    if first > last:
        return
    with keymap.with_name(keymap.name + "-wal").open("rb", buffering=0) as file:
        for frame in range(first - 1, last):
            found = os.pread(file.fileno(), 4, _LOG_HEADER_BYTES + frame * _FRAME_BYTES)
            yield int.from_bytes(found, "big")


def read_pages(keymap: Path) -> Iterator[bytes]:
    """The file's pages; the last may be cut off. A connection of this process has it open."""
    file, offset = SqliteFile(keymap), 0
    while some := file.read(_PAGES_AT_ONCE * PAGE_BYTES, offset):
        yield from (some[at : at + PAGE_BYTES] for at in range(0, len(some), PAGE_BYTES))
        offset += len(some)


class SqliteFile:
    """Reads a file through the descriptor SQLite has open on it in this process. With one of
    our own, closing it would drop every lock SQLite holds there (fcntl(2), POSIX locks), and
    another process could take away what our readers stand on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._file = (-1, -1)

    def read(self, length: int, offset: int) -> bytes:
        """Fewer bytes at the file's end."""
        for _ in range(_TRIES):
            if self._is_open():
                found = os.pread(self._descriptor, length, offset)
                if self._is_open():  # else it was another file's by then
                    return found
            self._find()
        raise KeymapDamaged(f"{self._path} is not open, or another file by now")

    def _is_open(self) -> bool:
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def _find(self) -> None:
        found = os.stat(self._path)
        self._file = (found.st_dev, found.st_ino)
        for name in os.listdir("/proc/self/fd"):
            self._descriptor = int(name)
            if self._is_open():
                return


def _log_index(keymap: Path) -> SqliteFile:
    return SqliteFile(keymap.with_name(keymap.name + "-shm"))


# -- writing -----------------------------------------------------------------------


class PageSums:
    """The writer's side. due(), begin() and end() on the thread that writes the keymap,
    between its transactions; write() on any."""

    @classmethod
    def make(cls, keymap: Path) -> PageSums:
        """For a file that was just made and is not served yet. SQLite has it open."""
        copier = _open_copier(keymap)
        try:
            busy, _, _ = copier.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            copier.close()
        assert not busy, "nobody else reads a keymap that is being made"
        sums = array("Q", map(xxhash.xxh3_64_intdigest, read_pages(keymap)))
        header = _encode_header(Header(len(sums), bytes(8), 0, copying=False))
        write_durably(sums_path(keymap), header.ljust(HEADER_BYTES, b"\0") + sums.tobytes())
        return cls(keymap)

    def __init__(self, keymap: Path) -> None:
        """Raises KeymapDamaged. SQLite has the keymap open."""
        header = read_header(keymap)
        self._keymap = keymap
        self._sums = read_sums(keymap, header.pages)
        self._file = os.open(sums_path(keymap), os.O_RDWR)
        self._index = _log_index(keymap)
        self._salt = bytes(8)  # of the log, when it was looked at last
        self._copied = 0  # frames of it that are in the file and have their sums
        self._looked_at = 0  # frames in the log when it was copied last
        self._unsummed: set[int] = set()  # pages that may have been written since
        self._keeper = keep_log(keymap)
        self._pages = SqliteFile(keymap)
        self._copier = _open_copier(keymap)
        log = read_log(keymap)
        if not header.copying and header.salt == log.salt:
            self._salt, self._copied = log.salt, header.frames

    def due(self) -> bool:
        """Whether the log has grown so much that it should be copied. Takes microseconds."""
        frames = int.from_bytes(self._index.read(4, _LOG_FRAMES_AT), sys.byteorder)
        if frames < self._looked_at:  # it was begun anew
            self._looked_at = 0
        return frames - self._looked_at >= DUE_FRAMES

    def begin(self) -> Log:
        """From now on what the log holds stays there, until end()."""
        log = read_log(self._keymap)
        self._keeper.execute("BEGIN")
        self._keeper.execute("SELECT count(*) FROM meta").fetchone()
        return log

    def write(self, log: Log) -> bool:
        """Copy the log into the file as far as its readers let it; whether that was all."""
        if log.salt != self._salt:
            self._salt, self._copied = log.salt, 0
        if log.frames > self._copied or self._unsummed:
            self._unsummed.update(pages_in_log(self._keymap, self._copied + 1, log.frames))
            self._sync_log()  # else a power cut could leave the header without its frames
            self._write_header(log.salt, log.frames, copying=True)
            _, _, copied = self._copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._note_sums()
            # A page that could not be copied yet is met again in the frames behind `copied`.
            self._unsummed.clear()
            self._copied = min(max(copied, 0), log.frames)
        self._looked_at = log.frames
        if self._copied == log.frames:
            self._write_header(log.salt, log.frames, copying=False)
        return self._copied == log.frames

    def end(self) -> None:
        self._keeper.execute("ROLLBACK")

    def copy_log(self) -> bool:
        """All of it on the writer's thread; whether the log is wholly in the file."""
        log = self.begin()
        try:
            return self.write(log)
        finally:
            self.end()

    def close(self, writer: sqlite3.Connection) -> None:
        """Close the writer's connection too."""
        writer.close()
        self._copier.close()
        self._keeper.close()
        os.close(self._file)

    def _sync_log(self) -> None:
        file = os.open(self._keymap.with_name(self._keymap.name + "-wal"), os.O_RDONLY)
        try:
            os.fdatasync(file)
        finally:
            os.close(file)

    def _note_sums(self) -> None:
        pages = self._keymap.stat().st_size // PAGE_BYTES
        self._sums.extend([0] * (pages - len(self._sums)))
        for number in self._unsummed:
            if number <= pages:
                page = self._pages.read(PAGE_BYTES, (number - 1) * PAGE_BYTES)
                self._sums[number - 1] = xxhash.xxh3_64_intdigest(page)
        for first, last in _runs(number - 1 for number in self._unsummed if number <= pages):
            content = self._sums[first : last + 1].tobytes()
            os.pwrite(self._file, content, HEADER_BYTES + first * _SUM.size)
        os.ftruncate(self._file, HEADER_BYTES + len(self._sums) * _SUM.size)
        os.fsync(self._file)

    def _write_header(self, salt: bytes, frames: int, *, copying: bool) -> None:
        os.pwrite(self._file, _encode_header(Header(len(self._sums), salt, frames, copying)), 0)
        os.fsync(self._file)


def keep_log(keymap: Path) -> sqlite3.Connection:
    """A reader. While it is open SQLite does not copy the log when others close the file,
    and when it is closed last neither."""
    reader = open_reader(keymap)
    reader.execute("SELECT count(*) FROM meta").fetchone()
    return reader


def close_unchanged(writer: sqlite3.Connection, keymap: Path) -> None:
    """Close the writer's connection, and leave the log and the file as they are."""
    keeper = keep_log(keymap)
    try:
        writer.close()
    finally:
        keeper.close()


def _encode_header(header: Header) -> bytes:
    body = _HEADER.pack(_MAGIC, FORMAT, PAGE_BYTES, header.pages, header.salt, header.frames, header.copying)
    return body + xxhash.xxh3_64_digest(body)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of successive numbers."""
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]


def _open_copier(keymap: Path) -> sqlite3.Connection:
    return sqlite3.connect(keymap, isolation_level=None, check_same_thread=False)
