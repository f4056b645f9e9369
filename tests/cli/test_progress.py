"""The progress bar of the care commands."""

from __future__ import annotations

import io

import pytest

from engine.care.pace import Progress
from objfs.progress import line, showing, time_left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress("scrub", 0, None), "scrub"),
        (Progress("scrub", 512, None), "scrub  512 B"),
        (
            Progress("scrub", 1024, 4096, bytes_per_second=2048.0, seconds_left=1.5),
            "scrub  [####------------]  25%  1.0 KiB of 4.0 KiB  2.0 KiB/s  0:02 left",
        ),
        (Progress("mark", 12, 1500, unit="manifests"), f"mark  [{'-' * 16}]   1%  12 of 1,500 manifests"),
        (Progress("waiting for process 12", 0, None, unit="pins"), "waiting for process 12"),
    ],
)
def test_a_line_tells_what_how_far_and_how_long(progress: Progress, expected: str) -> None:
    assert line(progress, 120) == expected


def test_a_line_fits_the_terminal() -> None:
    assert len(line(Progress("x" * 300, 1, 2), 79)) == 79


def test_time_left() -> None:
    assert [time_left(seconds) for seconds in (0.4, 65, 7385)] == ["0:00", "1:05", "2 h 03 min"]


def test_the_bar_is_drawn_on_a_terminal_and_wiped() -> None:
    terminal = Terminal()
    with showing(terminal) as report:
        report(Progress("scrub", 1, 2))
    assert "50%" in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_drawn_into_a_file() -> None:
    stream = io.StringIO()
    with showing(stream) as report:
        report(Progress("scrub", 1, 2))
    assert stream.getvalue() == ""
