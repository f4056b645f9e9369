"""MemoryNode: a storage node in memory, with faults to order. See engine.interfaces.Node.

For tests and for stores that need not outlive the process. Keeps the same contract as
DirectoryNode. Safe from any thread (one lock around everything)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from engine.errors import FragmentCorrupt, FragmentMissing, NodeFull, NodeUnavailable, StoreError
from engine.interfaces import Buffer, NodeSpace

UNKNOWN_DEVICE = 0


class MemoryNode:
    """`capacity` bytes in all files together. The fault_ methods and `vanished` belong to
    tests: they make the node fail as a disk would."""

    def __init__(self, node_id: str, *, capacity: int = 1 << 40) -> None:
        self.node_id = node_id
        self.path = f"memory:{node_id}"
        self.capacity = capacity
        self.device = UNKNOWN_DEVICE
        self.vanished = False
        self.files: dict[str, bytearray] = {}
        self.synced: dict[str, bytes] = {}  # what would survive a power loss
        self._reserve_bytes = 0
        self._failed: set[str] = set()
        self._fail_next_sync: str | None = None
        self._lock = threading.RLock()

    # -- faults ----------------------------------------------------------------

    def fault_next_sync(self, reason: str = "Input/output error") -> None:
        self._fail_next_sync = reason

    def fault_none(self) -> None:
        """Here again, and no fault is waiting to happen."""
        self.vanished = False
        self._fail_next_sync = None

    def fault_corrupt(self, name: str, offset: int, flip: int = 0xFF) -> None:
        with self._lock:
            self.files[name][offset] ^= flip

    def fault_power_loss(self, survives: Callable[[bytes], bytes] = lambda unsynced: b"") -> None:
        """What was not synced is lost, or what `survives` makes of the end of each file."""
        with self._lock:
            after: dict[str, bytearray] = {}
            for name, file in self.files.items():
                synced = self.synced.get(name)
                tail = survives(bytes(file[len(synced or b"") :]))
                if synced is not None or tail:  # a name that was never synced may be lost too
                    after[name] = bytearray(synced or b"") + tail
            self.files = after
            self._fail_next_sync = None
            self._failed.clear()

    # -- the contract ----------------------------------------------------------

    def check(self) -> None:
        if self.vanished:
            raise NodeUnavailable(f"node {self.path} is missing")

    def create(self, name: str) -> None:
        with self._lock:
            self.check()
            if name in self.files:
                raise StoreError(f"{self.path}/{name} exists already")
            self.files[name] = bytearray()
            self._failed.discard(name)

    def append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._lock:
            file = self._file(name)
            self._refuse_failed(name)
            if len(file) != offset:
                raise FragmentCorrupt(f"{self.path}/{name} is {len(file)} bytes long, not {offset}: not ours any more")
            self._reserve(sum(map(len, buffers)))
            for buffer in buffers:
                file += buffer

    def sync(self, name: str) -> None:
        with self._lock:
            file = self._file(name)
            self._refuse_failed(name)
            if self._fail_next_sync is not None:
                reason, self._fail_next_sync = self._fail_next_sync, None
                self._failed.add(name)
                raise NodeUnavailable(f"node {self.path} fails at {name}: {reason}")
            self.synced[name] = bytes(file)

    def truncate(self, name: str, size: int) -> None:
        with self._lock:
            file = self._file(name)
            self._refuse_failed(name)
            self._reserve(size - len(file))
            file[size:] = bytes(max(size - len(file), 0))

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._lock:
            return bytes(memoryview(self._file(name))[offset : offset + length])

    def read_warm(self, name: str, offset: int, length: int) -> bytes | None:
        return self.read(name, offset, length)

    def size(self, name: str) -> int:
        with self._lock:
            return len(self._file(name))

    def list(self, prefix: str) -> Iterator[str]:
        with self._lock:
            self.check()
            names = sorted(name for name in self.files if name.startswith(prefix))
        yield from names

    def delete(self, name: str) -> None:
        with self._lock:
            self._file(name)
            del self.files[name]
            self.synced.pop(name, None)
            self._failed.discard(name)

    def rename(self, name: str, target: str) -> None:
        with self._lock:
            file = self._file(name)
            del self.files[name]
            self.synced.pop(name, None)
            self.files[target] = file
            self.synced[target] = bytes(file)
            self._failed.discard(target)

    def quarantine(self, name: str, reason: str) -> None:
        with self._lock:
            self._file(name)
            aside = f"quarantine/{name.replace('/', '_')}.{len(self.files)}"
            self.write_whole(f"{aside}.reason", f"{name} of node {self.node_id}\n{reason}\n".encode())
            self.rename(name, aside)

    def write_whole(self, name: str, content: bytes) -> None:
        with self._lock:
            self.check()
            self._reserve(len(content) - len(self.files.get(name, b"")))
            self.files[name] = bytearray(content)
            self.synced[name] = bytes(content)
            self._failed.discard(name)

    def space(self) -> NodeSpace:
        with self._lock:
            self.check()
            return NodeSpace(self.capacity, self.capacity - self._used(), self.device)

    def reserved(self) -> int:
        with self._lock:
            self.check()
            return self._reserve_bytes

    def set_reserve(self, count: int) -> None:
        with self._lock:
            self.check()
            self._reserve(count - self._reserve_bytes)
            self._reserve_bytes = count

    def close(self) -> None:
        """Nothing is held open."""

    def _file(self, name: str) -> bytearray:
        self.check()
        try:
            return self.files[name]
        except KeyError as error:
            raise FragmentMissing(f"{self.path}/{name} is missing") from error

    def _refuse_failed(self, name: str) -> None:
        if name in self._failed:
            raise NodeUnavailable(f"{self.path}/{name} failed to sync")

    def _used(self) -> int:
        return sum(map(len, self.files.values())) + self._reserve_bytes

    def _reserve(self, length: int) -> None:
        if length > 0 and self._used() + length > self.capacity:
            raise NodeFull(f"node {self.path} is full")
