"""A store of its own for the demonstration and the benchmark: made, served, killed, ended.

Speaks to objfs only as a person would: through the command and its printed lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OBJFS = Path(sys.executable).with_name("objfs")
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60


class Failed(Exception):
    """Something the script relies on did not happen; the text says what."""


class RunningStore:
    """`objfs serve` over a fresh store in `directory`; `mount` is None without /dev/fuse."""

    def __init__(
        self, directory: Path, *, workers: int | None = None, mounted: bool = True, nodes: Sequence[Path] = ()
    ) -> None:
        self.data = directory / "data"
        self.mount = directory / "mnt" if mounted else None
        self.log = directory / "serve.log"
        self.workers = workers
        self.listen = "127.0.0.1:0"
        self.environment: dict[str, str] = {}
        self.program: list[str | Path] = [OBJFS]
        self.ready_line = ""
        self._server: subprocess.Popen[str] | None = None
        self.objfs("init", *(argument for node in nodes for argument in ("--node", str(node))))

    # -- the command -----------------------------------------------------------

    def objfs(self, command: str, *arguments: str) -> str:
        """Standard output of one objfs command; Failed with its error line otherwise."""
        done = subprocess.run(
            [OBJFS, *command.split(), "--data", self.data, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Failed(f"objfs {command} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def sql(self, statement: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.objfs("sql", statement, "--format", "json"))
        return rows

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.objfs("status", "--json"))
        return report

    # -- the server ------------------------------------------------------------

    def start(self) -> None:
        """Returns once the server said it is ready; the address stays the same after."""
        command = [*self.program, "serve", "--data", self.data, "--listen", self.listen]
        if self.mount:
            command += ["--mount", self.mount]
        if self.workers is not None:
            command += ["--workers", str(self.workers)]
        with open(self.log, "a") as log:
            # A session of its own: kill() reaches every process of the server at once.
            self._server = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self._server.stdout is not None
        watchdog = signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(START_SECONDS_MAX)
        try:
            self.ready_line = self._server.stdout.readline().strip()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, watchdog)
        if not self.ready_line.startswith("ready"):
            self._server.wait()
            raise Failed(f"objfs serve did not become ready: {self.log_tail()}")
        self.environment = dict(
            line.removeprefix("export ").replace("'", "").split("=", 1)
            for line in self.objfs("credentials").splitlines()
        )
        self.listen = self.environment["AWS_ENDPOINT_URL"].removeprefix("http://")

    def processes(self) -> list[int]:
        """Every process of the server's session, the supervisor first."""
        if self._server is None:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _session(entry) == self._server.pid:
                found.append(int(entry.name))
        return sorted(found)

    def kill(self) -> int:
        """kill -9 for every process of the server; how many there were."""
        assert self._server is not None
        processes = self.processes()
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue  # ended with its supervisor
        self._server.wait()
        wait_until(lambda: not self.processes(), "every killed process to be gone")
        return len(processes)

    def stop(self) -> None:
        """SIGTERM; Failed unless it drained, exited 0 and left no process and no mount."""
        if self._server is None:
            return
        server = self._server
        server.terminate()
        try:
            code = server.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"objfs serve did not end within {STOP_SECONDS_MAX} s of SIGTERM") from None
        left = self.processes()
        if left:
            self.kill()
        self._server = None
        if code != 0 or left:
            raise Failed(f"objfs serve ended with {code}, leaving processes {left}: {self.log_tail()}")
        if self.mount and os.path.ismount(self.mount):
            raise Failed(f"{self.mount} is still mounted")

    def abandon(self) -> None:
        """Leave nothing running or mounted, whatever state things are in."""
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            try:
                self._server.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.processes():
            self.kill()
        if self.mount:
            subprocess.run(["fusermount3", "-u", "-z", self.mount], stderr=subprocess.DEVNULL, check=False)
        self._server = None

    def log_tail(self) -> str:
        return " | ".join(self.log.read_text().splitlines()[-5:])


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Failed if `condition` is still false after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)


def can_mount() -> bool:
    return os.access("/dev/fuse", os.R_OK | os.W_OK)


def _session(entry: Path) -> int:
    try:
        status = (entry / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    state, _parent, _group, session = status.rpartition(")")[2].split()[:4]
    return -1 if state == "Z" else int(session)


def _too_slow(_number: int, _frame: object) -> None:
    raise Failed(f"objfs serve was not ready after {START_SECONDS_MAX} s")
