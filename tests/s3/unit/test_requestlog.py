"""The request log writes every line once, in order, by itself and when asked."""

from __future__ import annotations

import io
import threading
import time

import pytest

from gateway import requestlog
from gateway.requestlog import RequestLog


def test_lines_are_written_in_order_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requestlog, "LINES_MAX", 10)
    stream = io.StringIO()
    log = RequestLog(stream)
    for number in range(25):
        log(f"line {number}")
    log.flush()
    log.flush()
    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(25)]


def test_a_lone_line_is_written_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requestlog, "WRITE_SECONDS", 0.01)
    stream = io.StringIO()
    log = RequestLog(stream)
    for line in ("first", "second"):
        log(line)
        written = threading.Event()
        while line not in stream.getvalue() and not written.wait(0.01):
            time.sleep(0)
    assert stream.getvalue() == "first\nsecond\n"
