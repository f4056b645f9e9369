"""Pins: what keeps collection from deleting under a request what it has found.

Whoever reads the keymap in order to name chunks (dedup, copy) or to read them holds a
pin from before its first keymap read until its commit returned or its last byte was
read. A pin notes the LSN of the newest condemnation at that moment; chunks are dropped
only once every pin older than their condemnation has ended. Epochs, not clocks.

Each process has one file in DATA/index/pins, which it holds locked: two u64, the LSN of
its oldest pin (NONE: it has none) and when that was taken, in ns. A file whose lock is
free belonged to a process that has ended, and its pins ended with it. Beside it may lie a
list of chunks that something holds for longer than a request (a file that is open though
deleted): collection takes them for named.

`Pins` belongs to one process, and its methods to any of its threads; `oldest_pin` and
`held_chunks` may be called by anyone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from engine.types import CHUNK_ID_BYTES

DIRECTORY = "pins"
_NONE = 2**64 - 1
_PAIR = struct.Struct("<QQ")


class Pin:
    """One pin, until end(). Made by Pins.take()."""

    __slots__ = ("_pins", "lsn")

    def __init__(self, pins: Pins, lsn: int) -> None:
        self._pins: Pins | None = pins
        self.lsn = lsn

    def end(self) -> None:
        """Once or more often."""
        pins, self._pins = self._pins, None
        if pins is not None:
            pins._end(self.lsn)


class Pins:
    """The pins of this process. `condemned_lsn` reads the shared page."""

    def __init__(self, directory: Path, condemned_lsn: Callable[[], int]) -> None:
        self._condemned_lsn = condemned_lsn
        self._lock = threading.Lock()
        self._counts: OrderedDict[int, list[int]] = OrderedDict()  # LSN → [pins, when the first was taken]
        self._folder = directory / DIRECTORY
        self._make_file()

    def _make_file(self) -> None:
        if not self._folder.is_dir():
            self._folder.unlink(missing_ok=True)  # a file of that name is nobody's
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.pins"
        # It gets its name only once it is locked: nobody may take it for a dead process's.
        scratch = self._path.with_suffix(".new")
        self._descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        os.ftruncate(self._descriptor, mmap.PAGESIZE)
        self._map = mmap.mmap(self._descriptor, mmap.PAGESIZE)
        self._publish()
        os.rename(scratch, self._path)

    def take(self) -> Pin:
        with self._lock:
            if not self._map.closed and not os.fstat(self._descriptor).st_nlink:
                # Somebody removed DATA/index/pins: collection must see this pin all the same.
                self._map.close()
                os.close(self._descriptor)
                self._make_file()
            lsn = self._condemned_lsn()
            while True:
                self._add(lsn)
                newest = self._condemned_lsn()
                if newest == lsn:
                    return Pin(self, lsn)
                # Condemned while the pin was being written: collection may not have seen it.
                self._remove(lsn)
                lsn = newest

    @contextmanager
    def hold(self) -> Iterator[Pin]:
        pin = self.take()
        try:
            yield pin
        finally:
            pin.end()

    @property
    def name(self) -> str:
        """Of this process's file: it is locked as long as the process lives."""
        return self._path.stem

    @property
    def active(self) -> bool:
        return bool(self._counts)

    def keep(self, chunk_ids: Iterable[bytes]) -> None:
        """Take these chunks for named until the next keep() or the end of the process; call
        it under a pin that is old enough for them, and end that pin afterwards."""
        scratch, path = self._path.with_suffix(".held.new"), self._path.with_suffix(".held")
        scratch.write_bytes(b"".join(chunk_ids))
        scratch.replace(path)

    def close(self) -> None:
        for path in (self._path.with_suffix(".held"), self._path):
            path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._descriptor)

    def _end(self, lsn: int) -> None:
        with self._lock:
            self._remove(lsn)

    def _add(self, lsn: int) -> None:
        count = self._counts.get(lsn)
        if count is None:
            self._counts[lsn] = [1, time.time_ns()]
            self._publish()
        else:
            count[0] += 1

    def _remove(self, lsn: int) -> None:
        count = self._counts[lsn]
        count[0] -= 1
        if not count[0]:
            del self._counts[lsn]
            self._publish()

    def _publish(self) -> None:
        if self._map.closed:
            return  # a pin that outlived the store's closing
        if self._counts:
            oldest = min(self._counts)
            _PAIR.pack_into(self._map, 0, oldest, self._counts[oldest][1])
        else:
            _PAIR.pack_into(self._map, 0, _NONE, 0)


class OldestPin(Struct, frozen=True):
    """The oldest pin anyone holds: nothing condemned after `lsn` is deleted yet."""

    lsn: int
    taken_ns: int
    process_id: int


def oldest_pin(directory: Path) -> OldestPin | None:
    """None when nobody holds one. Removes what ended processes left."""
    found: list[OldestPin] = []
    for path in _of_the_living(directory):
        with suppress(FileNotFoundError):  # its process ended in between
            lsn, taken_ns = _PAIR.unpack(path.read_bytes()[: _PAIR.size])
            if lsn != _NONE:
                found.append(OldestPin(lsn, taken_ns, int(path.stem.partition("-")[0])))
    return min(found, key=lambda pin: (pin.lsn, pin.taken_ns), default=None)


def living_processes(directory: Path) -> int:
    """How many processes have the store open."""
    return len(living_names(directory))


def living_names(directory: Path) -> set[str]:
    """Pins.name of every process that has the store open."""
    return {path.stem for path in _of_the_living(directory)}


def held_chunks(directory: Path) -> set[bytes]:
    """Every chunk some process wants taken for named."""
    held: set[bytes] = set()
    for path in _of_the_living(directory):
        with suppress(FileNotFoundError):
            listed = path.with_suffix(".held").read_bytes()
            held.update(listed[at : at + CHUNK_ID_BYTES] for at in range(0, len(listed), CHUNK_ID_BYTES))
    return held


def _of_the_living(directory: Path) -> Iterator[Path]:
    for path in sorted((directory / DIRECTORY).glob("*.pins")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield path
        else:
            for left in (path.with_suffix(".held.new"), path.with_suffix(".held"), path):
                left.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
