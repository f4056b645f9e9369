"""The supervisor of `objfs serve`: starts the processes of a server, restarts those that
die, and drains them in order.

It knows commands, pids and the lines `ready`; it opens no store and serves nothing
itself, so nothing a door does can bring it down. One thread: a selector over the
children's pidfds, their output and the signals. Children die with it (PR_SET_PDEATHSIG),
and get no terminal signals of their own, so that Ctrl-C drains instead of cutting.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec

from engine.errors import StoreError

START_SECONDS_MAX = 120.0  # replaying a long journal takes its time
DRAIN_SECONDS_MAX = 30.0
LOOK_SECONDS = 1.0  # between looks whether a killed process cannot end
BACKOFF_SECONDS_FIRST = 0.2
BACKOFF_SECONDS_MAX = 10.0
STEADY_SECONDS = 30.0  # who ran this long starts at the first back-off again
PROBE_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1

# Worker threads free what others allocated: with an arena per thread glibc keeps it all.
_CHILD_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}

logger = logging.getLogger("objfs.serve")


class Announcement(msgspec.Struct, frozen=True):
    """Where the running server is found: DATA/index/server.json."""

    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    listen: str
    mount: str | None = None


def write_announcement(data: Path, announcement: Announcement) -> None:
    path = _announcement_path(data)
    scratch = path.with_suffix(".new")
    scratch.write_bytes(msgspec.json.encode(announcement) + b"\n")
    scratch.replace(path)


def read_announcement(data: Path) -> Announcement | None:
    """None when no server runs on the store at `data`."""
    try:
        announcement = msgspec.json.decode(_announcement_path(data).read_bytes(), type=Announcement)
        os.kill(announcement.pid, 0)
    except (FileNotFoundError, ProcessLookupError, msgspec.DecodeError):
        return None
    except PermissionError:
        pass  # it runs as somebody else
    return announcement


def remove_announcement(data: Path) -> None:
    _announcement_path(data).unlink(missing_ok=True)


def _announcement_path(data: Path) -> Path:
    return data / "index" / "server.json"


@dataclass(frozen=True)
class Role:
    """One process to run; it is up once it printed a line `ready`. `before` runs ahead of
    each start and after the end, `release` when it was killed and cannot end because the
    kernel waits for its answer. `stage`: started in ascending, drained in descending
    order; while one of the lowest stage is down, no other is started again."""

    name: str
    command: Sequence[str]
    stage: int
    before: Callable[[], None] | None = None
    release: Callable[[], None] | None = None


@dataclass
class Child:
    """A role and, while it runs, its process."""

    role: Role
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    ready: bool = False
    started: float = 0.0
    backoff: float = BACKOFF_SECONDS_FIRST
    start_again: float = 0.0
    output: bytearray = field(default_factory=bytearray)


class Supervisor:
    """Runs the roles until a signal. `run()` is called once, in the main thread."""

    def __init__(
        self, roles: Sequence[Role], *, doors_answer: Callable[[], bool], on_ready: Callable[[], None]
    ) -> None:
        self._children = [Child(role) for role in roles]
        self._doors_answer = doors_answer
        self._on_ready = on_ready
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def run(self) -> int:
        """The exit code: 0 after an orderly drain, 1 if the server did not come up."""
        with self._signals():
            try:
                if not self._start_all():
                    return 0 if self._stopping else 1
                self._on_ready()
                while not self._stopping:
                    due = self._next_start()
                    self._wait(LOOK_SECONDS if due is None else min(due, LOOK_SECONDS))
                    self._release_stuck()
                    self._restart_due()
                return 0
            finally:
                self._drain()
                self._selector.close()

    # -- starting --------------------------------------------------------------

    def _start_all(self) -> bool:
        """Stage after stage; False when a process ended or a signal came first."""
        deadline = time.monotonic() + START_SECONDS_MAX
        for stage in sorted({child.role.stage for child in self._children}):
            members = [child for child in self._children if child.role.stage == stage]
            for child in members:
                self._start(child)
            if not self._await(partial(all_up, members), deadline):
                return False
        return self._await(self._doors_answer, deadline)

    def _await(self, condition: Callable[[], bool], deadline: float) -> bool:
        while not condition():
            ended = [child for child in self._children if child.started and child.process is None]
            if self._stopping or ended:
                for child in ended:
                    logger.error("%s ended before the server was ready", child.role.name)
                return False
            if time.monotonic() > deadline:
                waiting = [child.role.name for child in self._children if not child.ready]
                logger.error("not ready after %.0f s: %s", START_SECONDS_MAX, ", ".join(waiting) or "the doors")
                return False
            self._wait(PROBE_SECONDS)
        return True

    def _start(self, child: Child) -> None:
        self._prepare(child)
        supervisor = os.getpid()

        def die_with_supervisor() -> None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(1)

        child.process = subprocess.Popen(
            child.role.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,
            env=_CHILD_ENVIRONMENT | os.environ,
            preexec_fn=die_with_supervisor,
        )
        assert child.process.stdout is not None
        os.set_blocking(child.process.stdout.fileno(), False)
        child.pidfd = os.pidfd_open(child.process.pid)
        child.ready, child.started = False, time.monotonic()
        child.output.clear()
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        self._selector.register(child.process.stdout, selectors.EVENT_READ, child)

    def _prepare(self, child: Child) -> None:
        if child.role.before is not None:
            try:
                child.role.before()
            except StoreError as error:
                logger.error("%s: %s", child.role.name, error)

    # -- watching --------------------------------------------------------------

    def _wait(self, seconds: float | None) -> None:
        """Handle what happens within `seconds`; returns after the first event."""
        for key, _ in self._selector.select(seconds):
            child = key.data
            if child is None:
                os.read(key.fd, 4096)  # the signal's handler did the work
            elif key.fd == child.pidfd:
                self._ended(child)
            elif child.process is not None:
                self._heard(child)

    def _heard(self, child: Child) -> None:
        """A child's output: the line `ready`; anything else belongs in the log."""
        assert child.process is not None and child.process.stdout is not None
        heard = os.read(child.process.stdout.fileno(), 65536)
        if not heard:
            self._selector.unregister(child.process.stdout)
        child.output += heard
        while b"\n" in child.output:
            line, _, rest = bytes(child.output).partition(b"\n")
            child.output[:] = rest
            if line.strip() == b"ready":
                child.ready = True
            else:
                sys.stderr.buffer.write(line + b"\n")
                sys.stderr.flush()

    def _release_stuck(self) -> None:
        for child in self._children:
            if child.process is not None and child.role.release is not None and _main_thread_ended(child.process.pid):
                child.role.release()

    def _ended(self, child: Child) -> None:
        assert child.process is not None and child.process.stdout is not None
        code = child.process.wait()
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.pidfd = -1
        if child.process.stdout in self._selector.get_map():
            self._selector.unregister(child.process.stdout)
        child.process.stdout.close()
        child.process, child.ready = None, False
        if self._stopping:
            return
        if time.monotonic() - child.started > STEADY_SECONDS:
            child.backoff = BACKOFF_SECONDS_FIRST
        child.start_again = time.monotonic() + child.backoff
        logger.warning("%s ended (%s); starting it again in %.1f s", child.role.name, _reason(code), child.backoff)
        child.backoff = min(child.backoff * 2, BACKOFF_SECONDS_MAX)

    def _next_start(self) -> float | None:
        due = [child.start_again for child in self._startable()]
        return max(min(due) - time.monotonic(), 0.0) if due else None

    def _restart_due(self) -> None:
        for child in self._startable():
            if not self._stopping and time.monotonic() >= child.start_again:
                self._start(child)

    def _startable(self) -> list[Child]:
        """Who does not run, and may. While the index is down nobody else starts: a process
        that found no index would open the store itself, in the index's place."""
        foundation = min(child.role.stage for child in self._children)
        stands = all_up([child for child in self._children if child.role.stage == foundation])
        return [
            child for child in self._children if child.process is None and (stands or child.role.stage == foundation)
        ]

    # -- draining --------------------------------------------------------------

    def _drain(self) -> None:
        """Highest stage first; within a stage together. Who does not end is killed."""
        self._stopping = True
        for stage in sorted({child.role.stage for child in self._children}, reverse=True):
            members = [child for child in self._children if child.role.stage == stage]
            self._signal(members, signal.SIGTERM)
            deadline = time.monotonic() + DRAIN_SECONDS_MAX
            while any(child.process for child in members) and (left := deadline - time.monotonic()) > 0:
                self._wait(left)
            for child in members:
                if child.process is not None:
                    logger.error("%s did not end within %.0f s; killing it", child.role.name, DRAIN_SECONDS_MAX)
            self._signal(members, signal.SIGKILL)
            while any(child.process for child in members):
                self._wait(None)
            for child in members:
                self._prepare(child)  # leaves no dead mount behind

    def _signal(self, members: Sequence[Child], number: signal.Signals) -> None:
        for child in members:
            if child.process is not None:
                signal.pidfd_send_signal(child.pidfd, number)

    def _signals(self) -> _SignalPipe:
        return _SignalPipe(self._selector, self._stop)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True


class _SignalPipe:
    """SIGTERM and SIGINT call `handler` and wake `selector`; undone on exit."""

    def __init__(self, selector: selectors.BaseSelector, handler: Callable[[int, object], None]) -> None:
        self._selector, self._handler = selector, handler

    def __enter__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._selector.register(self._reading, selectors.EVENT_READ, None)
        self._wakeup = signal.set_wakeup_fd(self._writing.fileno())
        self._previous = {
            number: signal.signal(number, self._handler) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._reading.close()
        self._writing.close()


def all_up(children: Sequence[Child]) -> bool:
    return all(child.ready for child in children)


def _main_thread_ended(pid: int) -> bool:
    """The process was killed; if it is still there, a thread of it is held by the kernel."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state == "Z"


def _reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
