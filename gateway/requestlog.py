"""The request log: one line per request on standard error, written a few times a second.

A line costs a request an append to a list; a thread writes what has gathered. Lines of
the last fraction of a second are lost if the process is killed. Any thread.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from typing import TextIO

WRITE_SECONDS = 0.2
LINES_MAX = 10_000  # a reader of standard error that stands still holds requests up from here on


class RequestLog:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._wanted = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self, line: str) -> None:
        self._lines.append(line)
        if not self._wanted.is_set():
            self._wanted.set()
            if self._thread is None:
                self._start()
        if len(self._lines) >= LINES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        with self._writing:
            lines, self._lines = self._lines, []
            if lines:
                stream = sys.stderr if self._stream is None else self._stream
                stream.write("\n".join(lines) + "\n")
                stream.flush()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()
        atexit.register(self.flush)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            time.sleep(WRITE_SECONDS)
            self.flush()
