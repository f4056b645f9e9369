"""Dirty ranges: bytes written to an open file and not yet published.

The bytes lie at their own offsets in an unlinked sparse temporary file, so memory stays
flat whatever is written and the kernel decides what of it is in RAM; this module keeps
the sorted, disjoint ranges that are valid. Blocking calls are pwrite and pread into the
page cache. One DirtyRanges belongs to one open file, whose lock orders its writes.
"""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

PIECE_BYTES_MAX = 2 * 1024 * 1024  # what a rewrite holds in memory at once


class DirtyRanges:
    def __init__(self, directory: Path | None) -> None:
        """`directory` is where the temporary file is made (None: the system's)."""
        self._directory = directory
        self._fd: int | None = None
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self._starts, self._ends, strict=True))

    @property
    def byte_count(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def write(self, offset: int, content: bytes) -> None:
        """Raises OSError (ENOSPC when the temporary directory is full)."""
        if not content:
            return
        if self._fd is None:
            self._fd = _unlinked_file(self._directory)
        view = memoryview(content)
        position = offset
        while view:
            written = os.pwrite(self._fd, view, position)
            view = view[written:]
            position += written
        self._add(offset, position)

    def truncate(self, size: int) -> None:
        """Forget everything from `size` on."""
        keep = bisect.bisect_left(self._starts, size)
        del self._starts[keep:], self._ends[keep:]
        if self._ends and self._ends[-1] > size:
            self._ends[-1] = size

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte of [start, end) is dirty."""
        index = bisect.bisect_right(self._starts, start) - 1
        return start >= end or (index >= 0 and self._ends[index] >= end)

    def read(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """The dirty bytes in [start, end), as (offset, bytes)."""
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        pieces: list[tuple[int, bytes]] = []
        while index < len(self._starts) and self._starts[index] < end:
            low, high = max(self._starts[index], start), min(self._ends[index], end)
            if low < high:
                pieces.append((low, self._pread(low, high - low)))
            index += 1
        return pieces

    def pieces(self, size: int) -> Sequence[tuple[int, bytes]]:
        """Every dirty byte below `size`, ascending, in pieces of at most PIECE_BYTES_MAX
        that are read when they are asked for. Valid until the next write() or clear()."""
        bounds = [
            (low, min(low + PIECE_BYTES_MAX, end, size))
            for start, end in zip(self._starts, self._ends, strict=True)
            for low in range(start, min(end, size), PIECE_BYTES_MAX)
        ]
        return _Pieces(bounds, self._pread)

    def clear(self) -> None:
        self._starts.clear()
        self._ends.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _pread(self, offset: int, length: int) -> bytes:
        assert self._fd is not None, "ranges have a file behind them"
        content = os.pread(self._fd, length, offset)
        assert len(content) == length, "a valid range is in the file"
        return content

    def _add(self, start: int, end: int) -> None:
        """Add a range, joining every range it touches."""
        low = bisect.bisect_left(self._ends, start)
        high = bisect.bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]


class _Pieces(Sequence[tuple[int, bytes]]):
    """Pieces read one at a time, so that a rewrite of any size stays flat in memory."""

    def __init__(self, bounds: list[tuple[int, int]], read: Callable[[int, int], bytes]) -> None:
        self._bounds = bounds
        self._read = read

    def __len__(self) -> int:
        return len(self._bounds)

    @overload
    def __getitem__(self, index: int) -> tuple[int, bytes]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[int, bytes]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, bytes] | Sequence[tuple[int, bytes]]:
        if isinstance(index, slice):
            return _Pieces(self._bounds[index], self._read)
        start, end = self._bounds[index]
        return start, self._read(start, end - start)


def _unlinked_file(directory: Path | None) -> int:
    fd, path = tempfile.mkstemp(prefix="objfs-dirty-", dir=directory)
    os.unlink(path)
    return fd
