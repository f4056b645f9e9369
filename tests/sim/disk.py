"""A disk that forgets, tears, rots and refuses, and the storage node on it.

A SimulatedDisk outlives processes. What was written but not synced is at the mercy of a
power cut: any subset of its sectors survives, and a name that was never synced, or was
deleted a moment ago, may be there or not. A SimulatedNode is one process's handle on a
disk and keeps the contract of engine.interfaces.Node; once its process has ended, each
of its calls raises ProcessEnded. All dice are the machine's, so a seed replays a disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.errors import FragmentCorrupt, FragmentMissing, NodeFull, NodeUnavailable, StoreError
from engine.interfaces import Buffer, NodeSpace

SECTOR_BYTES = 512


class ProcessEnded(BaseException):
    """The process was killed, or the power went: no code of it runs any more."""


@dataclass
class File:
    """`content` is what the running machine sees, `durable` what the platter holds; they
    agree up to `clean`. `named`: the name itself would survive. `doomed` sectors were in
    a sync that failed: the kernel dropped them, and no later sync will write them. `pending`
    sectors cannot be read any more."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    clean: int = 0
    named: bool = False
    doomed: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)

    def sync(self) -> None:
        if self.doomed:
            settled = bytearray(self.content)
            for sector in self.doomed:
                settled[_span(sector)] = _sector(self.durable, sector, len(_sector(self.content, sector)))
            self.durable = settled[: len(self.content)]
            self.clean = min(self.doomed) * SECTOR_BYTES
        else:
            self.durable[self.clean :] = self.content[self.clean :]
            self.clean = len(self.content)
        self.named = True

    def truncate(self, size: int) -> None:
        self.content[size:] = bytes(max(size - len(self.content), 0))
        self.clean = min(self.clean, size)
        self.doomed = {sector for sector in self.doomed if sector * SECTOR_BYTES < size}
        self.pending = {sector for sector in self.pending if sector * SECTOR_BYTES < size}

    def unsynced(self) -> range:
        """The sectors a power cut may take."""
        return range(self.clean // SECTOR_BYTES, -(-max(len(self.content), len(self.durable)) // SECTOR_BYTES))

    def after_power_cut(self, survives: set[int]) -> File:
        """The file when of its unsynced sectors just these reached the platter."""
        survives = survives - self.doomed
        end = len(self.durable)
        for sector in survives:
            if sector * SECTOR_BYTES < len(self.content):
                end = max(end, min((sector + 1) * SECTOR_BYTES, len(self.content)))
        if survives and survives == set(self.unsynced()):
            end = len(self.content)  # a truncation got through as well
        content = bytearray(end)
        content[: self.clean] = self.content[: self.clean]
        for sector in self.unsynced():
            source = self.content if sector in survives else self.durable
            start = max(sector * SECTOR_BYTES, self.clean)
            piece = bytes(source[start : (sector + 1) * SECTOR_BYTES])[: max(end - start, 0)]
            content[start : start + len(piece)] = piece
        return File(content, bytearray(content), len(content), True, pending=self.pending)


def _span(sector: int) -> slice:
    return slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)


def _sector(content: bytes | bytearray, sector: int, length: int = SECTOR_BYTES) -> bytes:
    return bytes(content[_span(sector)][:length]).ljust(length, b"\0")[: min(length, SECTOR_BYTES)]


def _directory(name: str) -> str:
    return name.rpartition("/")[0]


class SimulatedDisk:
    """`capacity` bytes in all files together. The public fields below are the faults; set
    and cleared by whoever plays the world."""

    _devices = 0

    def __init__(self, dice: random.Random, *, capacity: int = 1 << 40) -> None:
        SimulatedDisk._devices += 1
        self.device = SimulatedDisk._devices
        self.dice = dice
        self.capacity = capacity
        self.reserve = 0
        self.files: dict[str, File] = {}
        self.vanished = False
        self.failing: dict[str, float] = {}  # "read", "write", "sync" → how often it is an I/O error
        self._deleted: dict[str, File] = {}  # names whose deletion was never synced

    # -- what happens to disks -----------------------------------------------------

    def power_cut(self) -> None:
        """Lose, tear and reorder what was not synced."""
        after: dict[str, File] = {}
        for name, file in sorted({**self._deleted, **self.files}.items()):
            if name not in self.files and self.dice.random() < 0.5:
                continue  # the deletion got through
            if not file.named and self.dice.random() < 0.5:
                continue  # the name never did
            after[name] = file.after_power_cut(self._survivors(file.unsynced()))
        self.files, self._deleted = after, {}

    def _survivors(self, unsynced: range) -> set[int]:
        match self.dice.randrange(5):
            case 0:
                return set()
            case 1:
                return set(unsynced)
            case 2:  # in order, up to some point
                return set(unsynced[: self.dice.randint(0, len(unsynced))])
            case 3:  # all but one
                return set(unsynced) - ({self.dice.choice(unsynced)} if unsynced else set())
            case _:
                return {sector for sector in unsynced if self.dice.random() < 0.5}

    def image(self) -> dict[str, bytes]:
        """What the platter holds now, to come back to as a stale disk."""
        return {name: bytes(file.durable) for name, file in self.files.items() if file.named}

    def restore(self, image: dict[str, bytes]) -> None:
        self._deleted.clear()
        self.files = {name: File(bytearray(held), bytearray(held), len(held), True) for name, held in image.items()}

    def rot(self, name: str, offset: int, flip: int) -> None:
        """Bits of one byte turn, on the platter and so in every later read."""
        file = self.files[name]
        file.content[offset] ^= flip
        if offset < len(file.durable):
            file.durable[offset] ^= flip

    def used(self) -> int:
        return sum(len(file.content) for file in self.files.values()) + self.reserve

    def whole(self) -> bool:
        """Whether everything it shows is on the platter too."""
        return not any(file.doomed or file.content != file.durable for file in self.files.values())

    # -- what handles do -------------------------------------------------------------

    def fails(self, kind: str) -> bool:
        rate = self.failing.get(kind, 0.0)
        return rate > 0 and self.dice.random() < rate

    def sync_fails(self, file: File) -> None:
        """What becomes of pages whose write-back failed."""
        unsynced = file.unsynced()
        match self.dice.randrange(3):
            case 0:  # still dirty: the next sync may write them
                pass
            case 1:  # dropped, and clean as far as the kernel is concerned
                file.doomed.update(sector for sector in unsynced if sector * SECTOR_BYTES < len(file.content))
            case _:  # dropped and evicted: reads show the platter already
                lost = file.after_power_cut({sector for sector in unsynced if self.dice.random() < 0.5})
                file.content, file.clean = lost.content, file.clean

    def remove(self, name: str) -> File:
        file = self.files.pop(name)
        if file.named:
            self._deleted[name] = file
        return file

    def directory_synced(self, name: str) -> None:
        for deleted in [other for other in self._deleted if _directory(other) == _directory(name)]:
            del self._deleted[deleted]


Step = Callable[[str], float | None]  # an operation begins; how much of it happens if the process ends in it


def _always(operation: str) -> float | None:
    return None


class SimulatedNode:
    """See the module. `step` is called at the start of every operation; it may raise
    ProcessEnded, or return how much of a change (0 to 1) still happens before it ends.
    `mounted` says whether the disk still is what stands at the node's path."""

    def __init__(
        self,
        node_id: str,
        path: str,
        disk: SimulatedDisk,
        *,
        step: Step = _always,
        mounted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.node_id = node_id
        self.path = path
        self.disk = disk
        self._step = step
        self._mounted = mounted
        self._failed: set[str] = set()

    # -- the contract ----------------------------------------------------------------

    def check(self) -> None:
        self._begin("check")

    def create(self, name: str) -> None:
        part = self._begin("create")
        if name in self.disk.files:
            raise StoreError(f"{self.path}/{name} exists already")
        self._refuse_write("create", name)
        if part is None or part > 0.5:
            self.disk.files[name] = File()
            self._failed.discard(name)
        self._end(part)

    def append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        part = self._begin("append")
        file = self._file(name)
        self._refuse_failed(name)
        if len(file.content) != offset:
            raise FragmentCorrupt(
                f"{self.path}/{name} is {len(file.content)} bytes long, not {offset}: not ours any more"
            )
        data = b"".join(buffers)
        room = self.disk.capacity - self.disk.used()
        if len(data) > room:
            file.content += data[: max(room, 0)]  # as pwritev does: what fits is written
            raise NodeFull(f"node {self.path} is full")
        if self.disk.fails("write"):
            file.content += data[: self.disk.dice.randint(0, len(data))]
            raise NodeUnavailable(f"node {self.path} fails at {name}: Input/output error")
        file.content += data if part is None else data[: int(part * len(data))]
        self._end(part)

    def sync(self, name: str) -> None:
        part = self._begin("sync")
        file = self._file(name)
        self._refuse_failed(name)
        if self.disk.fails("sync"):
            self._failed.add(name)
            self.disk.sync_fails(file)
            raise NodeUnavailable(f"node {self.path} fails at {name}: Input/output error")
        if part is None or part > 0.5:
            if not file.named:
                self.disk.directory_synced(name)
            file.sync()
        self._end(part)

    def truncate(self, name: str, size: int) -> None:
        part = self._begin("truncate")
        file = self._file(name)
        self._refuse_failed(name)
        self._refuse_write("truncate", name)
        if size > len(file.content) + self.disk.capacity - self.disk.used():
            raise NodeFull(f"node {self.path} is full")
        if part is None or part > 0.5:
            file.truncate(size)
        self._end(part)

    def read(self, name: str, offset: int, length: int) -> bytes:
        self._begin("read")
        file = self._file(name)
        found = bytes(file.content[offset : offset + length])
        touched = range(offset // SECTOR_BYTES, -(-(offset + len(found)) // SECTOR_BYTES))
        if any(sector in touched for sector in file.pending) or self.disk.fails("read"):
            raise NodeUnavailable(f"node {self.path} fails at {name}: Input/output error")
        return found

    def read_warm(self, name: str, offset: int, length: int) -> bytes | None:
        if self.disk.dice.random() < 0.5:
            self._begin("read")
            return None
        found = self.read(name, offset, length)
        return found if len(found) == length else None

    def size(self, name: str) -> int:
        self._begin("size")
        return len(self._file(name).content)

    def list(self, prefix: str) -> Iterator[str]:
        self._begin("list")
        if self.disk.fails("read"):
            raise NodeUnavailable(f"node {self.path} cannot be listed: Input/output error")
        yield from sorted(name for name in self.disk.files if name.startswith(prefix))

    def delete(self, name: str) -> None:
        part = self._begin("delete")
        self._file(name)
        self._refuse_write("delete", name)
        if part is None or part > 0.5:
            self.disk.remove(name)
            self._failed.discard(name)
        self._end(part)

    def rename(self, name: str, target: str) -> None:
        part = self._begin("rename")
        self._file(name)
        self._refuse_write("rename", name)
        if part is None or part > 0.5:
            file = self.disk.files.pop(name)
            file.named = True
            self.disk.files[target] = file
            self.disk.directory_synced(target)
            self.disk.directory_synced(name)
            self._failed.difference_update((name, target))
        self._end(part)

    def quarantine(self, name: str, reason: str) -> None:
        self._begin("quarantine")
        self._file(name)
        number = sum(1 for other in self.disk.files if other.startswith("quarantine/"))
        aside = f"quarantine/{name.replace('/', '_')}.{number}"
        self.write_whole(f"{aside}.reason", f"{name} of node {self.node_id}\n{reason}\n".encode())
        self.rename(name, aside)

    def write_whole(self, name: str, content: bytes) -> None:
        part = self._begin("write_whole")
        if len(content) > self.disk.capacity - self.disk.used():
            raise NodeFull(f"node {self.path} is full")
        self._refuse_write("write_whole", name)
        if self.disk.fails("sync"):
            raise NodeUnavailable(f"node {self.path} fails at {name}: Input/output error")
        if part is None or part > 0.5:
            self.disk.files[name] = File(bytearray(content), bytearray(content), len(content), True)
            self.disk.directory_synced(name)
            self._failed.discard(name)
        self._end(part)

    def space(self) -> NodeSpace:
        self._begin("space")
        return NodeSpace(self.disk.capacity, max(self.disk.capacity - self.disk.used(), 0), self.disk.device)

    def reserved(self) -> int:
        self._begin("reserved")
        return self.disk.reserve

    def set_reserve(self, count: int) -> None:
        part = self._begin("set_reserve")
        if count > self.disk.reserve + max(self.disk.capacity - self.disk.used(), 0):
            raise NodeFull(f"node {self.path} is full")
        if part is None or part > 0.5:
            self.disk.reserve = count
        self._end(part)

    def close(self) -> None:
        """Nothing is held open."""

    # -- faults ------------------------------------------------------------------------

    def _begin(self, operation: str) -> float | None:
        part = self._step(operation)
        if self.disk.vanished or not self._mounted():
            raise NodeUnavailable(f"node {self.path} is missing")
        return part

    @staticmethod
    def _end(part: float | None) -> None:
        if part is not None:
            raise ProcessEnded

    def _file(self, name: str) -> File:
        try:
            return self.disk.files[name]
        except KeyError as error:
            raise FragmentMissing(f"{self.path}/{name} is missing") from error

    def _refuse_failed(self, name: str) -> None:
        if name in self._failed:
            raise NodeUnavailable(f"{self.path}/{name} failed to sync")

    def _refuse_write(self, operation: str, name: str) -> None:
        if self.disk.fails("write"):
            raise NodeUnavailable(f"node {self.path} fails at {name}: Input/output error ({operation})")
