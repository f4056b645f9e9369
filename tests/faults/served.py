"""A served store whose nodes lie on a lossy filesystem: supervisor, index, tables, two
gateway workers, mount. Single processes can be killed, or all of them and the power too."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

from lossy.mount import LossyMount
from running import OBJFS, RunningStore, can_mount, wait_until

K, M = 4, 2
BUCKET = "shared"
ROLES = {
    "index": b"engine.process",
    "tables": b"objfs.processes\0tables",
    "caretaker": b"objfs.processes\0caretaker",
    "mount": b"objfs.processes\0mount",
    "gateway": b"gateway.worker",
}


class ServedStore:
    """start() returns when both doors answer; after kill_all() or cut_power() start() again."""

    def __init__(self, directory: Path, *, logged: bool = False) -> None:
        self.disks = LossyMount(directory, logged=logged)
        self.disks.start()
        nodes = [self.disks.top / f"node{number}" for number in range(1, K + M + 1)]
        self.store = RunningStore(directory, workers=2, nodes=nodes)
        self._commands: list[subprocess.Popen[str]] = []
        self._commands_lock = threading.Lock()
        self._up = False
        assert self.store.mount is not None
        self.mount = self.store.mount
        for path in (self.disks.top, *nodes):
            _sync_directory(path)

    @property
    def data(self) -> Path:
        return self.store.data

    @property
    def environment(self) -> dict[str, str]:
        return self.store.environment

    @property
    def bucket_path(self) -> Path:
        return self.mount / BUCKET

    def start(self) -> None:
        self.store.start()
        with self._commands_lock:
            self._up = True

    def command(self, name: str, *arguments: str) -> str | None:
        """Run an objfs command beside the server, which may die meanwhile and take it along:
        its exit code in words, None when the server is down. For any thread."""
        with self._commands_lock:
            if not self._up:
                return None
            process = subprocess.Popen(
                [OBJFS, name, "--data", str(self.data), *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._commands.append(process)
        _, errors = process.communicate()
        with self._commands_lock:
            self._commands.remove(process)
        assert "Traceback" not in errors, f"objfs {name}: {errors}"
        return "done" if process.returncode == 0 else "killed" if process.returncode < 0 else errors.strip() or "failed"

    def _kill_commands(self) -> None:
        """They hold the store open too."""
        with self._commands_lock:
            self._up = False
            running = list(self._commands)
            for process in running:
                process.kill()
        for process in running:
            process.wait()

    # -- processes -------------------------------------------------------------

    def processes(self, role: str) -> list[int]:
        """Pids of "supervisor" or of a role."""
        everyone = self.store.processes()
        if role == "supervisor":
            return everyone[:1]
        return [pid for pid in everyone[1:] if ROLES[role] in _command_line(pid)]

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """False if it had ended already."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def stop(self) -> None:
        """In order."""
        self._kill_commands()
        self.store.stop()

    def kill_all(self) -> None:
        self._kill_commands()
        self.store.kill()

    def cut_power(self, seed: int, *, lose_index: bool = False) -> dict[str, int]:
        """Every process ends at once, and the nodes forget what was not synced. Returns how
        much they forgot. `lose_index`: DATA/index, which holds nothing that cannot be made
        again, is gone too."""
        self.kill_all()
        lost = self.disks.cut(seed)
        if lose_index:
            shutil.rmtree(self.data / "index")
        self.disks.start()
        return lost

    def close(self) -> None:
        """Leaves nothing running and nothing mounted."""
        try:
            self._kill_commands()
            self.store.abandon()
        finally:
            self.disks.stop()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["BUCKET", "ServedStore", "can_mount", "wait_until"]
