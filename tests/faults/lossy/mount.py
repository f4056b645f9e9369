"""LossyMount: a lossy filesystem as a test holds it. See lossy.filesystem."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

SECONDS_MAX = 60


class LossyMount:
    """Mounted on `top` from start() to cut() or stop(). `name` tells several apart in one
    directory. Not for several threads at once, but for the files in it."""

    def __init__(self, directory: Path, name: str = "disks", *, logged: bool = False) -> None:
        self.top = directory / name
        self.log = directory / f"{name}.log" if logged else None
        self._backing = directory / f"{name}.backing"
        self._errors = directory / f"{name}.errors"
        self._process: subprocess.Popen[str] | None = None
        self.top.mkdir()
        self._backing.mkdir()

    def start(self) -> None:
        command = [sys.executable, "-m", "lossy.filesystem", str(self._backing), str(self.top)]
        if self.log is not None:
            command.append(str(self.log))
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        with open(self._errors, "a") as errors:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._answer() == "ready", self._errors.read_text()

    def command(self, *request: Any) -> Any:
        assert self._process is not None and self._process.stdin is not None, "not mounted"
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def cut(self, seed: int) -> dict[str, int]:
        """The power goes; whoever writes here must have ended. start() brings it back."""
        lost: dict[str, int] = self.command("cut", seed)
        self._end()
        return lost

    def stop(self) -> None:
        """Unmount; nothing is lost. Does nothing when not mounted."""
        if self._process is not None:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(SECONDS_MAX)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
            if os.path.ismount(self.top):
                subprocess.run(["umount", "-l", str(self.top)], capture_output=True, check=False)
        assert process.returncode == 0, self._errors.read_text()

    def _answer(self) -> Any:
        assert self._process is not None and self._process.stdout is not None
        watchdog = threading.Timer(SECONDS_MAX, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"the lossy filesystem ended: {self._errors.read_text()}"
        return json.loads(line)
