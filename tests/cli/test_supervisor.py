"""The supervisor over small processes of its own: start, restart, drain, and its own death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
from pathlib import Path
from objfs.supervisor import Role, Supervisor

directory = Path(sys.argv[1])
CHILD = '''
import ctypes, os, signal, sys, threading, time
name, log = sys.argv[1], sys.argv[2]
def note(what):
    with open(log, "a") as file:
        file.write(f"{name} {what} {os.getpid()}\\\\n")
def end(*_):
    note("drained")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("started")
if name == "broken":
    sys.exit(3)
print("ready", flush=True)
if name == "stuck" and not os.path.exists(log + ".released"):
    def wait():
        while not os.path.exists(log + ".released"):
            time.sleep(0.05)
        os._exit(1)
    threading.Thread(target=wait).start()
    ctypes.CDLL(None).syscall(60, 0)  # exit(2): of this thread alone
while True:
    time.sleep(60)
'''
def release():
    (directory / "log.released").touch()
roles = [
    Role(name, [sys.executable, "-c", CHILD, name, str(directory / "log")], stage, release=release)
    for stage, name in enumerate(sys.argv[2].split(","))
]
def announce():
    print("ready", flush=True)
sys.exit(Supervisor(roles, doors_answer=lambda: True, on_ready=announce).run())
"""


class Supervised:
    def __init__(self, directory: Path, names: str) -> None:
        self._log = directory / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), str(directory), names],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )

    def wait_ready(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def events(self) -> list[tuple[str, str, int]]:
        lines = (line.split() for line in self._log.read_text().splitlines())
        return [(name, what, int(pid)) for name, what, pid in lines]

    def running(self) -> list[int]:
        return [pid for _, what, pid in self.events() if what == "started" and _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _eventually(condition: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    running = Supervised(tmp_path, "index,tables,gateway")
    assert running.wait_ready() == "ready"
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.wait()
    assert running.process.stdout is not None
    running.process.stdout.close()


def test_starts_in_order_and_drains_in_the_opposite_order(supervised: Supervised) -> None:
    supervised.process.terminate()
    assert supervised.process.wait(10) == 0
    assert [(name, what) for name, what, _ in supervised.events()] == [
        ("index", "started"),
        ("tables", "started"),
        ("gateway", "started"),
        ("gateway", "drained"),
        ("tables", "drained"),
        ("index", "drained"),
    ]
    assert supervised.running() == []


def test_ctrl_c_drains_too(supervised: Supervised) -> None:
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.process.wait(10) == 0
    assert len([what for _, what, _ in supervised.events() if what == "drained"]) == 3


def test_a_killed_process_is_started_again(supervised: Supervised) -> None:
    first = next(pid for name, _, pid in supervised.events() if name == "tables")
    os.kill(first, signal.SIGKILL)
    _eventually(lambda: len([name for name, _, _ in supervised.events() if name == "tables"]) == 2)
    assert len(supervised.running()) == 3


def test_a_process_that_was_killed_and_cannot_end_is_released(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "first,stuck")
    try:
        assert supervised.wait_ready() == "ready"
        deadline = time.monotonic() + 20
        while [name for name, what, _ in supervised.events() if what == "started"].count("stuck") < 2:
            assert time.monotonic() < deadline, "it was not released and started again"
            time.sleep(0.1)
    finally:
        supervised.process.terminate()
        supervised.process.wait(20)


def test_children_die_with_a_killed_supervisor(supervised: Supervised) -> None:
    assert len(supervised.running()) == 3
    supervised.process.kill()
    supervised.process.wait()
    _eventually(lambda: supervised.running() == [])


def test_a_process_that_never_gets_ready_fails_the_start_and_stops_the_others(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "index,broken,gateway")
    assert supervised.wait_ready() == ""
    assert supervised.process.wait(10) == 1
    assert [name for name, what, _ in supervised.events() if what == "started"] == ["index", "broken"]
    assert supervised.running() == []
    assert supervised.process.stdout is not None
    supervised.process.stdout.close()
