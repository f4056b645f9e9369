"""The machine a simulated store runs on: its disks, its clock, its dice, its processes.

A process is one trio run under a virtual clock that jumps when nothing can run, with a
seeded scheduler. What the engine would do in threads it does in line, with seeded pauses
around it. A process ends in the middle of anything: at a crash site, or at a node
operation part of which still happens. From then on everything it touches raises
ProcessEnded, so that no finally-block writes a byte more. The next one opens what is left.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import shutil
import sqlite3
import sys
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio.from_thread
import anyio.to_thread
import outcome
import trio
import trio.testing

from engine import crash_sites, limits
from engine.crash_sites import CrashSite
from engine.journal import log as journal_log
from sim.disk import ProcessEnded, SimulatedDisk, SimulatedNode

UNWINDING_TURNS_MAX = 20  # of a process in which nothing can run
EPOCH_NS = 1_700_000_000 * 10**9
MUTATIONS = frozenset({"create", "append", "sync", "truncate", "delete", "rename", "write_whole", "quarantine"})

# Everything a sixteenth to a thousandth of its size: boundaries are met with kilobytes. By
# name, in whichever modules of the engine have it.
SMALL = {
    "CHUNK_BYTES_MIN": 1024,
    "CHUNK_BYTES_AVERAGE": 2048,
    "CHUNK_BYTES_MAX": 8192,
    "STRIPE_BYTES_MAX": 8192 + limits.FRAME_HEADER_BYTES,
    "SEGMENT_BYTES_MAX": 96 * 1024,
    "INLINE_BYTES_MAX": 1024,
    "MANIFEST_ENTRIES_MAX": 8,
    "JOURNAL_FILE_BYTES_MAX": 24 * 1024,
    "JOURNAL_BATCH_RECORDS_MAX": 4,
    "WORK_BYTES": 2 * 8192,
    "BLOCK_BYTES": 8192,
    "WINDOW_BYTES": 16 * 1024,
    "ON_LOOP_BYTES": 1024,
    "UNSYNCED_BYTES_MAX": 32 * 1024,
    "ROOM_BYTES_MIN": 32 * 1024,
    "SEARCH_BYTES": 2048,
    "TRANSACTION_RECORDS": 7,
    "REPLAY_RECORDS": 3,
}


class Process:
    """One life of the store. `crash_in`: it ends at this many changes of a node from now;
    `crash_at`: at the so-many-th time it reaches the site."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.ended = False
        self.crash_in: int | None = None
        self.crash_at: tuple[CrashSite, int] | None = None

    def end(self) -> None:
        self.ended = True
        raise ProcessEnded

    def go_on(self) -> None:
        """Nothing happens after the end."""
        if self.ended:
            raise ProcessEnded

    def step(self, operation: str) -> float | None:
        self.go_on()
        if self.crash_in is None or operation not in MUTATIONS:
            return None
        self.crash_in -= 1
        if self.crash_in > 0:
            return None
        self.ended = True
        return self.dice.random()

    def reached(self, site: CrashSite) -> None:
        self.go_on()
        if self.crash_at is None or site is not self.crash_at[0]:
            return
        self.crash_at = (site, self.crash_at[1] - 1)
        if self.crash_at[1] <= 0:
            self.end()

    def spare(self) -> None:
        """No crash is planned any more."""
        self.crash_in = self.crash_at = None


def _clock(process: Process) -> trio.testing.MockClock:
    """Jumps when nothing can run. A dead process has a moment to unwind; what still waits
    then, in a shielded scope, for something only the living do is dropped."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    wait, turns = clock.deadline_to_sleep_time, iter(range(UNWINDING_TURNS_MAX))

    def deadline_to_sleep_time(deadline: float) -> float:
        if process.ended and next(turns, None) is None:
            raise ProcessEnded
        return wait(deadline)

    vars(clock)["deadline_to_sleep_time"] = deadline_to_sleep_time
    return clock


class Machine:
    """`folder` holds DATA and the nodes' directories, in which only descriptors are real."""

    def __init__(self, seed: int, folder: Path, *, small: bool = True) -> None:
        self.seed = seed
        self.dice = random.Random(f"machine {seed}")
        self.folder = folder
        self.data = folder / "data"
        self.small = small
        self.disks: dict[str, SimulatedDisk] = {}  # by path
        self.capacity = 1 << 40
        self.clock_ns = EPOCH_NS
        self.process = Process(self.dice)
        self.sites_seen: dict[CrashSite, int] = {}
        self._started = 0.0
        self._connections: list[sqlite3.Connection] = []

    # -- disks -----------------------------------------------------------------------

    def open_node(self, path: str, node_id: str, store_id: str) -> SimulatedNode:
        """What NodeSet opens nodes with."""
        disk = self.disks.get(path)
        if disk is None:
            disk = self.disks[path] = SimulatedDisk(self.dice, capacity=self.capacity)
        process = self.process
        return SimulatedNode(node_id, path, disk, step=process.step, mounted=lambda: self.disks.get(path) is disk)

    def vanish(self, path: str) -> None:
        os.rename(path, f"{path}.away")
        self.disks[path].vanished = True

    def come_back(self, path: str) -> None:
        os.rename(f"{path}.away", path)
        self.disks[path].vanished = False

    def come_back_empty(self, path: str) -> None:
        for old in (path, f"{path}.away"):
            shutil.rmtree(old, ignore_errors=True)
        os.mkdir(path)
        self.disks.pop(path, None)

    def power_cut(self) -> None:
        for _, disk in sorted(self.disks.items()):
            disk.power_cut()

    # -- time --------------------------------------------------------------------------

    def now_ns(self) -> int:
        try:
            return self.clock_ns + int(trio.current_time() * 1e9)
        except RuntimeError:  # between processes
            return self.clock_ns

    # -- processes ---------------------------------------------------------------------

    def run(self, main: Callable[[], Awaitable[None]], *, crash_at: tuple[CrashSite, int] | None = None) -> bool:
        """One process from start to end; False if it was killed. Errors that are not its
        own end come out."""
        self.process = Process(self.dice)
        self.process.crash_at = crash_at
        clock = _clock(self.process)
        try:
            with self._patched():
                trio.run(main, clock=clock)
        except BaseException as error:
            if not self.process.ended or not _only_its_end(error):
                raise
        finally:
            killed = self.process.ended
            self.process.ended = True
            self.clock_ns += int(clock.current_time() * 1e9) + 1
            self._close_connections()
        return not killed

    def _close_connections(self) -> None:
        """What the kernel does for a dead process."""
        for connection in self._connections:
            with suppress(sqlite3.Error):
                connection.close()
        self._connections.clear()
        gc.collect()

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """The process's surroundings: clock, dice, scheduler, threads, crash sites."""
        before: list[tuple[Any, str, Any]] = []

        def put(place: Any, name: str, value: Any) -> None:
            before.append((place, name, getattr(place, name)))
            setattr(place, name, value)

        surroundings = {time: self._clock_module(), sys.modules["secrets"]: self._secrets_module()}
        for name, module in list(sys.modules.items()):
            if name.startswith("engine.") and name != "engine.pins":
                for attribute in ("time", "secrets"):
                    if getattr(module, attribute, None) in surroundings:
                        put(module, attribute, surroundings[getattr(module, attribute)])
        put(anyio.to_thread, "run_sync", self._run_in_line)
        put(anyio.from_thread, "run", self._run_back)
        put(journal_log, "ThreadPoolExecutor", InLine)
        put(sqlite3, "connect", self._connecting(sqlite3.connect))
        put(sys.modules["engine.opening"], "_owner_name", lambda: f"simulated-{self.dice.getrandbits(32):08x}")
        put(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        if self.small:
            for module in [found for name, found in sorted(sys.modules.items()) if name.startswith("engine.")]:
                for name in SMALL.keys() & vars(module).keys():
                    put(module, name, SMALL[name])
        trio._core._run._r.seed(self.dice.getrandbits(64))
        try:
            with crash_sites.watch(self._reached):
                yield
        finally:
            for place, name, value in reversed(before):
                setattr(place, name, value)

    def _reached(self, site: CrashSite) -> None:
        self.sites_seen[site] = self.sites_seen.get(site, 0) + 1
        self.process.reached(site)

    async def _run_in_line(self, func: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._pause()
        result = func(*args)
        await self._pause()
        return result

    def _run_back(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        """What a thread asks the event loop to do; here it can yield, but not sleep."""
        self.process.go_on()
        work = func(*args)
        answer: Any = None
        while True:
            try:
                work.send(answer)
            except StopIteration as end:
                return end.value
            answer = outcome.Value(None)

    async def _pause(self) -> None:
        """Others may run; as with a thread, cancelling does not end the wait."""
        for _ in range(self.dice.choice((0, 0, 1, 2, 6))):
            await trio.lowlevel.cancel_shielded_checkpoint()
        self.process.go_on()

    def _connecting(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def connecting(*args: Any, **named: Any) -> sqlite3.Connection:
            self.process.go_on()
            connection = connect(*args, **named)
            self._connections.append(connection)
            return connection

        return connecting

    def _clock_module(self) -> Any:
        return types.SimpleNamespace(
            time_ns=self.now_ns, monotonic=trio.current_time, time=lambda: self.now_ns() / 1e9, sleep=None
        )

    def _secrets_module(self) -> Any:
        dice = self.dice
        return types.SimpleNamespace(
            randbits=dice.getrandbits,
            randbelow=dice.randrange,
            choice=dice.choice,
            token_bytes=dice.randbytes,
            token_hex=lambda size=16: dice.randbytes(size).hex(),
            token_urlsafe=lambda size=16: hashlib.sha256(dice.randbytes(size)).hexdigest()[:size],
        )


def _only_its_end(error: BaseException) -> bool:
    """Whether the run ended because its process did: whatever else went wrong in the
    unwinding of a dead process happened to nobody."""
    if isinstance(error, BaseExceptionGroup):
        return any(_only_its_end(inner) for inner in error.exceptions)
    return isinstance(error, ProcessEnded) or (error.__cause__ is not None and _only_its_end(error.__cause__))


class InLine:
    """An executor of no threads."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # whoever asks the future gets it
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None:
        pass
