"""A progress bar on standard error for the commands that take care of a store.

`showing()` gives the Report such work tells of its progress (engine.care.pace). Nothing is
shown where standard error is no terminal. One bar at a time, from one thread.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from engine.care.pace import Progress, Report, silent
from objfs.render import size

BAR_CELLS = 16
_CLEAR = "\r\x1b[K"


def line(progress: Progress, width: int) -> str:
    """One line of at most `width` characters."""
    in_bytes = progress.unit == "bytes"
    amount = size if in_bytes else lambda count: f"{count:,}"
    facts = [progress.what]
    if progress.total:
        share = min(progress.done / progress.total, 1.0)
        full = int(share * BAR_CELLS)
        facts.append(f"[{'#' * full}{'-' * (BAR_CELLS - full)}] {share:4.0%}")
        facts.append(f"{amount(progress.done)} of {amount(progress.total)}")
    elif progress.done:
        facts.append(amount(progress.done))
    if not in_bytes and (progress.done or progress.total):
        facts[-1] += f" {progress.unit}"
    if progress.bytes_per_second:
        facts.append(f"{amount(int(progress.bytes_per_second))}/s")
    if progress.seconds_left is not None and progress.done:
        facts.append(f"{time_left(progress.seconds_left)} left")
    return "  ".join(facts)[:width]


def time_left(seconds: float) -> str:
    """65 → "1:05"; an hour or more → "2 h 03 min"."""
    whole = int(seconds + 0.5)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def showing(stream: TextIO | None = None) -> Iterator[Report]:
    """A Report that draws a bar while the context lasts, and wipes it at its end."""
    shown = sys.stderr if stream is None else stream
    if not shown.isatty():
        yield silent
        return

    def draw(progress: Progress) -> None:
        width = shutil.get_terminal_size().columns - 1
        shown.write(_CLEAR + line(progress, width))
        shown.flush()

    try:
        yield draw
    finally:
        shown.write(_CLEAR)
        shown.flush()
