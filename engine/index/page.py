"""The shared page: one small mapped file with the LSNs other processes read at no cost.

Layout (little-endian u64): magic, applied_lsn, durable_lsn, condemned_lsn (of the newest
record that condemned anything: what a pin says it may have read before), seal_request (a
number that grows whenever every writer should seal its open segment). One process
writes, any number map it. Eight aligned bytes are stored at once, so a reader never sees half a number.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_MAGIC = 0x3130_6567_6170_666F  # "ofpage01"
_U64 = struct.Struct("<Q")
_MAGIC_AT, _APPLIED_AT, _DURABLE_AT, _CONDEMNED_AT, _SEAL_AT = 0, 8, 16, 24, 32
PAGE_BYTES = 4096


class PageWriter:
    """Makes the page anew, so that readers of a former index process must reopen it."""

    def __init__(self, path: Path) -> None:
        temporary = path.with_name(path.name + ".new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, PAGE_BYTES)
            self._map = mmap.mmap(descriptor, PAGE_BYTES)
        finally:
            os.close(descriptor)
        _U64.pack_into(self._map, _MAGIC_AT, _MAGIC)
        os.replace(temporary, path)

    def set_applied(self, lsn: int) -> None:
        _U64.pack_into(self._map, _APPLIED_AT, lsn)

    def set_durable(self, lsn: int) -> None:
        _U64.pack_into(self._map, _DURABLE_AT, lsn)

    def set_condemned(self, lsn: int) -> None:
        """After the record is applied and before it is answered."""
        _U64.pack_into(self._map, _CONDEMNED_AT, lsn)

    def request_seal(self) -> None:
        (value,) = _U64.unpack_from(self._map, _SEAL_AT)
        _U64.pack_into(self._map, _SEAL_AT, value + 1)

    def close(self) -> None:
        self._map.close()


def left_durable_lsn(path: Path) -> int:
    """What the page of an index process that has ended says was durable; 0 if it does not
    say. It was true once; a page is never synced, so it may be old."""
    try:
        content = path.read_bytes()
    except OSError:
        return 0
    if len(content) != PAGE_BYTES or _U64.unpack_from(content, _MAGIC_AT)[0] != _MAGIC:
        return 0
    return int(_U64.unpack_from(content, _DURABLE_AT)[0])


class PageReader:
    """Reads the page; shows zeros while there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        self.reopen()

    def reopen(self) -> None:
        self.close()
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self._map = mmap.mmap(descriptor, PAGE_BYTES, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)

    def applied_lsn(self) -> int:
        return self._read(_APPLIED_AT)

    def durable_lsn(self) -> int:
        return self._read(_DURABLE_AT)

    def condemned_lsn(self) -> int:
        return self._read(_CONDEMNED_AT)

    def seal_request(self) -> int:
        return self._read(_SEAL_AT)

    def _read(self, offset: int) -> int:
        if self._map is None:
            return 0
        (value,) = _U64.unpack_from(self._map, offset)
        return int(value)

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
