"""DirectoryNode: a storage node that is a local directory. See engine.interfaces.Node.

Knows files and errno, nothing of segments or journals. Every method blocks and may be
called from any thread at the same time. A short lock guards the table of open files; no
lock is held during I/O. Several processes may hold a node of the same directory.

What must never happen: writing into a directory that is not the node any more. So
nothing is created unless the descriptor is there, and check(), which sync() includes,
notices a directory that was moved away or replaced under open files.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.durable_files import sync_directory, write_durably
from engine.errors import FragmentCorrupt, FragmentMissing, NodeFull, NodeUnavailable, StoreError, WrongStore
from engine.interfaces import Buffer, NodeSpace
from engine.nodes.allocating import allocate
from engine.nodes.descriptor import NODE_DESCRIPTOR_NAME, read_node_descriptor

RESERVE_NAME = "reserve"  # its size is what it is for
OWN_NAMES = (NODE_DESCRIPTOR_NAME, RESERVE_NAME)  # not files of the store
OPEN_FILES_MAX = 128  # file descriptors kept per node and process
IOV_MAX = 1024  # Linux: buffers per writev
_NOT_WARM = frozenset({errno.EAGAIN, errno.EOPNOTSUPP})  # some filesystems know no RWF_NOWAIT
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_Identity = tuple[int, int, int]


class _OpenFile:
    """A file descriptor with its users, closed when it has left the table and is idle."""

    __slots__ = ("descriptor", "directories_synced", "evicted", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self.evicted = False
        self.directories_synced = False


class DirectoryNode:
    def __init__(self, path: str | Path, node_id: str, store_id: str) -> None:
        """Does not touch the directory; check() does."""
        self.path = str(path)
        self.node_id = node_id
        self._store_id = store_id
        self._root = Path(path)
        self._descriptor_path = str(self._root / NODE_DESCRIPTOR_NAME)
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, bool], _OpenFile] = OrderedDict()
        self._failed: dict[str, str] = {}
        self._checked: _Identity | None = None
        self._root_identity: tuple[int, int] | None = None

    # -- identity --------------------------------------------------------------

    def check(self) -> None:
        """Two stat calls while nothing changes. Raises NodeUnavailable, WrongStore."""
        try:
            found = os.stat(self._descriptor_path)
            root = os.stat(self._root)
        except OSError as error:
            self._checked = None
            raise NodeUnavailable(f"node {self.path} is missing: {error.strerror}") from error
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns)
        if identity == self._checked and (root.st_dev, root.st_ino) == self._root_identity:
            return
        node_id = read_node_descriptor(self._root, self._store_id).node_id
        if node_id != self.node_id:
            raise WrongStore(f"node {self.path} is {node_id}, expected {self.node_id}: are disks swapped?")
        with self._lock:
            if self._root_identity not in (None, (root.st_dev, root.st_ino)):
                # Another directory stands here now: what is open belongs to the old one.
                self._evict_all()
                self._failed.clear()
            self._checked = identity
            self._root_identity = (root.st_dev, root.st_ino)

    # -- appending -------------------------------------------------------------

    def create(self, name: str) -> None:
        self.check()
        path = self._locate(name)
        with self._errors(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except FileExistsError as error:
                raise StoreError(f"{path} exists already") from error
        with self._lock:
            self._keep((name, True), _OpenFile(descriptor))
            self._failed.pop(name, None)

    def append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        self._refuse_failed(name)
        with self._open(name, writable=True) as file:
            size = os.fstat(file.descriptor).st_size
            if size != offset:
                raise FragmentCorrupt(f"{self._locate(name)} is {size} bytes long, not {offset}: not ours any more")
            for start in range(0, len(buffers), IOV_MAX):
                offset = self._write_all(file.descriptor, offset, buffers[start : start + IOV_MAX])

    def sync(self, name: str) -> None:
        self._refuse_failed(name)
        self.check()
        with self._open(name, writable=True) as file:
            try:
                os.fdatasync(file.descriptor)
                if not file.directories_synced:
                    # Another process may have made them and died before its own sync.
                    self._sync_directories(name)
                    file.directories_synced = True
            except OSError as error:
                # The kernel may have dropped the dirty pages and would report success the
                # next time, so this file is never synced again.
                self._failed[name] = f"{self._locate(name)} failed to sync: {error.strerror}"
                raise

    def truncate(self, name: str, size: int) -> None:
        self.check()
        self._refuse_failed(name)
        with self._open(name, writable=True) as file:
            os.ftruncate(file.descriptor, size)

    # -- reading ---------------------------------------------------------------

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._open(name, writable=False) as file:
            found = os.pread(file.descriptor, length, offset)
            while len(found) < length:
                more = os.pread(file.descriptor, length - len(found), offset + len(found))
                if not more:
                    break
                found += more
            return found

    def read_warm(self, name: str, offset: int, length: int) -> bytes | None:
        """For the event loop: only from open files, only from the page cache."""
        if (name, False) not in self._files:
            return None
        content = bytearray(length)
        with self._open(name, writable=False) as file:
            try:
                found = os.preadv(file.descriptor, [content], offset, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno in _NOT_WARM:
                    return None
                raise
        return bytes(content) if found == length else None

    def size(self, name: str) -> int:
        with self._errors(name):
            return os.stat(self._locate(name)).st_size

    def list(self, prefix: str) -> Iterator[str]:
        self.check()
        top = self._locate(prefix.rpartition("/")[0])
        for directory, directories, files in os.walk(top, onerror=self._fail_walk):
            directories.sort()
            relative = os.path.relpath(directory, self._root)
            for file in sorted(files):
                name = file if relative == "." else f"{relative}/{file}"
                # A name that starts with a dot is a write_whole() that never finished.
                if name.startswith(prefix) and not file.startswith(".") and name not in OWN_NAMES:
                    yield name

    # -- whole files -----------------------------------------------------------

    def delete(self, name: str) -> None:
        self.check()
        with self._errors(name):
            os.unlink(self._locate(name))
            self._forget(name)

    def rename(self, name: str, target: str) -> None:
        """Atomic, replaces `target`, durable on return. `name` must be synced already."""
        self.check()
        with self._errors(name):
            self._locate(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._locate(name), self._locate(target))
            self._forget(name)
            self._forget(target)
            self._sync_directories(target)
            self._sync_directories(name)

    def quarantine(self, name: str, reason: str) -> None:
        aside = f"quarantine/{name.replace('/', '_')}.{time.time_ns()}"
        note = f"{name} of node {self.node_id}\n{reason}\n"
        self.write_whole(f"{aside}.reason", note.encode())
        self.rename(name, aside)

    def write_whole(self, name: str, content: bytes) -> None:
        self.check()
        path = self._locate(name)
        with self._errors(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, content)
            self._forget(name)
            self._sync_directories(name)

    def space(self) -> NodeSpace:
        self.check()
        with self._errors(""):
            found = os.statvfs(self._root)
            device = os.stat(self._root).st_dev
        return NodeSpace(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, device)

    def reserved(self) -> int:
        self.check()
        with self._errors(RESERVE_NAME):
            try:
                return os.stat(self._locate(RESERVE_NAME)).st_size
            except FileNotFoundError:
                return 0

    def set_reserve(self, count: int) -> None:
        self.check()
        with self._errors(RESERVE_NAME):
            descriptor = os.open(self._locate(RESERVE_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                held = os.fstat(descriptor).st_size
                if count > held:
                    try:
                        allocate(descriptor, held, count - held)
                    except OSError:
                        os.ftruncate(descriptor, held)  # the part that did fit
                        raise
                else:
                    os.ftruncate(descriptor, count)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        with self._lock:
            self._evict_all()

    # -- open files ------------------------------------------------------------

    @contextmanager
    def _open(self, name: str, *, writable: bool) -> Iterator[_OpenFile]:
        with self._errors(name):
            file = self._acquire(name, writable)
            try:
                yield file
            finally:
                with self._lock:
                    file.users -= 1
                    self._close_if_idle(file)

    def _acquire(self, name: str, writable: bool) -> _OpenFile:
        key = (name, writable)
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                # A file without links was replaced or deleted, perhaps by another process.
                if os.fstat(file.descriptor).st_nlink:
                    self._files.move_to_end(key)
                    file.users += 1
                    return file
                self._evict(key)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        file = _OpenFile(os.open(self._locate(name), flags))
        with self._lock:
            file.users += 1
            self._keep(key, file)
        return file

    def _keep(self, key: tuple[str, bool], file: _OpenFile) -> None:
        if key in self._files:
            self._evict(key)
        self._files[key] = file
        while len(self._files) > OPEN_FILES_MAX:
            self._evict(next(iter(self._files)))

    def _evict(self, key: tuple[str, bool]) -> None:
        file = self._files.pop(key)
        file.evicted = True
        self._close_if_idle(file)

    def _evict_all(self) -> None:
        for key in list(self._files):
            self._evict(key)

    def _close_if_idle(self, file: _OpenFile) -> None:
        if file.evicted and not file.users:
            os.close(file.descriptor)

    def close_deleted(self) -> None:
        """Close files another process deleted or replaced: until then their bytes are not
        free. Cheap enough for once a second."""
        with self._lock:
            for key, file in list(self._files.items()):
                if not os.fstat(file.descriptor).st_nlink:
                    self._evict(key)

    def _forget(self, name: str) -> None:
        with self._lock:
            for key in ((name, True), (name, False)):
                if key in self._files:
                    self._evict(key)
            self._failed.pop(name, None)

    # -- errors ----------------------------------------------------------------

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Say what an OSError means for the node."""
        try:
            yield
        except FileNotFoundError as error:
            self.check()  # the whole node gone says more than one file missing
            raise FragmentMissing(f"{self._locate(name)} is missing") from error
        except OSError as error:
            if error.errno in _FULL:
                raise NodeFull(f"node {self.path} is full: {error.strerror}") from error
            raise NodeUnavailable(f"node {self.path} fails at {name}: {error.strerror}") from error

    def _refuse_failed(self, name: str) -> None:
        if name in self._failed:
            raise NodeUnavailable(self._failed[name])

    def _fail_walk(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise NodeUnavailable(f"node {self.path} cannot be listed: {error.strerror}") from error

    # -- files and directories -------------------------------------------------

    def _locate(self, name: str) -> Path:
        assert not name.startswith("/") and ".." not in name.split("/"), f"{name!r} leaves the node"
        return self._root / name

    def _write_all(self, descriptor: int, offset: int, buffers: Sequence[Buffer]) -> int:
        written = os.pwritev(descriptor, buffers, offset)
        total = sum(map(len, buffers))
        if written < total:
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                count = os.pwrite(descriptor, rest, offset + written)
                written += count
                rest = rest[count:]
        return offset + total

    def _sync_directories(self, name: str) -> None:
        directory = self._locate(name).parent
        while True:
            sync_directory(directory)
            if directory == self._root:
                return
            directory = directory.parent
