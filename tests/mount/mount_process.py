"""A mount in a process of its own, on a real kernel. See serve_mount.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 30


class MountProcess:
    """`top` is the mounted directory; other() plays the S3 door in the same process."""

    def __init__(self, kind: str, data: Path, top: Path) -> None:
        self.kind, self.data, self.top = kind, data, top
        command = [sys.executable, str(ROOT / "tests/mount/serve_mount.py"), str(data), str(top)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._log = open(data.parent / "mount.log", "ab")  # noqa: SIM115 - closed by stop()
        self._index = self._start_index(environment) if kind == "joined" else None
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._answer() == "ready", (data.parent / "mount.log").read_text()

    def _start_index(self, environment: dict[str, str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "engine.process", str(self.data)]
        index = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert index.stdout is not None and index.stdout.readline() == "ready\n"
        return index

    def other(self, *request: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        watchdog = threading.Timer(SECONDS_MAX, self.process.kill)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        return json.loads(line) if line else None

    def stop(self) -> int:
        """SIGTERM; the exit code, once it has drained and unmounted."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS_MAX)
        finally:
            self.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS_MAX)
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS_MAX)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self._index is not None:
            self._index.terminate()
            self._index.wait(SECONDS_MAX)
            self._index.stdout.close()  # type: ignore[union-attr]
            self._index = None
        self._log.close()

    def bounded(self, *command: str, input: bytes | None = None) -> str:
        """Run a command in the mount; a hung mount ends it, not the test run."""
        done = subprocess.run(
            command, cwd=self.top / "bucket", input=input, capture_output=True, timeout=SECONDS_MAX, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return done.stdout.decode()


def start_mount(kind: str, data: Path, top: Path) -> MountProcess:
    return MountProcess(kind, data, top)
