"""LossyDisk: a disk with a page cache before it, as far as a power cut can tell.

Everything written is visible at once; only what was synced is sure to be there after
cut(). Of the rest a random part survives: whole writes or single sectors of 512 bytes, in
any order, with or without the file having grown; names that were made, renamed or removed
since their directory was last synced may be as they were before. A rename survives whole
or not at all.

Contents lie in `backing/data/<inode>` as they are visible; what was overwritten since the
last sync is kept beside, so that cut() can go back. The tree is in memory and written to
`backing/tree.json` when the disk is put away. Knows nothing of FUSE. One thread.
"""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR_BYTES = 512
ROOT = 1

Event = dict[str, Any]


@dataclass
class Write:
    """One write not yet synced. `old` is what stood there, `old_size` how long the file was."""

    sequence: int
    offset: int
    content: bytes
    old: bytes
    old_size: int


@dataclass
class Resize:
    """A truncation or extension not yet synced; `old` is what it cut off."""

    sequence: int
    size: int
    old: bytes
    old_size: int


@dataclass
class File:
    descriptor: int
    size: int
    mode: int
    pending: list[Write | Resize] = field(default_factory=list)
    sync_failed: bool = False  # the cache dropped its pages: later syncs succeed and sync nothing


@dataclass
class Binding:
    """One change of names, whole or not at all: (directory, name) → (inode before, after)."""

    names: dict[tuple[int, str], tuple[int | None, int | None]]


class LossyDisk:
    def __init__(self, backing: Path, observe: Callable[[Event], None] | None = None) -> None:
        """Takes up what put_away() or cut() left in `backing`. `observe` is told of all that
        becomes safe, in the order in which it does."""
        self._backing = backing
        self._observe = observe
        (backing / "data").mkdir(parents=True, exist_ok=True)
        self.files: dict[int, File] = {}
        self.directories: dict[int, dict[str, int]] = {ROOT: {}}
        self._safe_names: dict[tuple[int, str], int] = {}
        self._bindings: list[Binding] = []
        self._sequence = 0
        self._next_inode = ROOT + 1
        if (backing / "tree.json").exists():
            self._load()

    # -- names -----------------------------------------------------------------

    def lookup(self, directory: int, name: str) -> int:
        try:
            return self.directories[directory][name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, name) from None

    def make_directory(self, directory: int, name: str) -> int:
        inode = self._new_inode()
        self._bind({(directory, name): inode}, exclusive=True)
        self.directories[inode] = {}
        return inode

    def create(self, directory: int, name: str, mode: int) -> int:
        inode = self._new_inode()
        self._bind({(directory, name): inode}, exclusive=True)
        descriptor = os.open(self._path(inode), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.files[inode] = File(descriptor, 0, mode)
        return inode

    def remove(self, directory: int, name: str) -> int:
        """Of a file or an empty directory; the inode."""
        inode = self.lookup(directory, name)
        if self.directories.get(inode):
            raise OSError(errno.ENOTEMPTY, name)
        self._bind({(directory, name): None})
        return inode

    def rename(self, directory: int, name: str, target_directory: int, target: str) -> None:
        inode = self.lookup(directory, name)
        if (directory, name) == (target_directory, target):
            return
        self._bind({(directory, name): None, (target_directory, target): inode})

    def links(self, inode: int) -> int:
        return sum(inode in names.values() for names in self.directories.values())

    def _bind(self, names: dict[tuple[int, str], int | None], *, exclusive: bool = False) -> None:
        before = {key: self.directories[key[0]].get(key[1]) for key in names}
        if exclusive and any(inode is not None for inode in before.values()):
            raise FileExistsError(errno.EEXIST, str(names))
        self._bindings.append(Binding({key: (before[key], after) for key, after in names.items()}))
        self._assign(names)

    def _assign(self, names: dict[tuple[int, str], int | None]) -> None:
        for (directory, name), inode in names.items():
            if inode is None:
                self.directories[directory].pop(name, None)
            else:
                self.directories[directory][name] = inode

    # -- contents --------------------------------------------------------------

    def read(self, inode: int, offset: int, length: int) -> bytes:
        return os.pread(self.files[inode].descriptor, length, offset)

    def write(self, inode: int, offset: int, content: bytes) -> int:
        file = self.files[inode]
        old = os.pread(file.descriptor, len(content), offset) if offset < file.size else b""
        file.pending.append(Write(self._next(), offset, content, old, file.size))
        self._write_all(file, offset, content)
        return len(content)

    def resize(self, inode: int, size: int) -> None:
        file = self.files[inode]
        if size == file.size:
            return
        old = os.pread(file.descriptor, file.size - size, size) if size < file.size else b""
        file.pending.append(Resize(self._next(), size, old, file.size))
        self._truncate(file, size)

    # -- syncing ---------------------------------------------------------------

    def mark(self) -> int:
        """What a sync that begins now covers: to be passed to sync() when it completes."""
        return self._sequence

    def sync(self, inode: int, mark: int) -> None:
        """The writes up to `mark` are on the disk now; the file's names need not be."""
        file = self.files[inode]
        if file.sync_failed:
            return
        done = [change for change in file.pending if change.sequence <= mark]
        file.pending = [change for change in file.pending if change.sequence > mark]
        self._tell(synced=inode, changes=[_describe(change) for change in done])

    def fail_sync(self, inode: int) -> None:
        """The sync fails with EIO. What was to be written is in no cache any more, so the
        next sync has nothing to do and succeeds."""
        self.files[inode].sync_failed = True

    def sync_directory(self, directory: int) -> None:
        """Every name of the directory is on the disk as it is now. What a name was renamed
        from or to elsewhere comes along, and what came before it there."""
        wanted: set[tuple[int, str]] = set()
        done: list[Binding] = []
        for binding in reversed(self._bindings):
            if any(key[0] == directory or key in wanted for key in binding.names):
                wanted.update(binding.names)
                done.append(binding)
        for binding in reversed(done):
            for key, (_, after) in binding.names.items():
                self._bind_safely(key, after)
        self._bindings = [binding for binding in self._bindings if not any(binding is other for other in done)]

    def _bind_safely(self, key: tuple[int, str], inode: int | None) -> None:
        if inode is None:
            self._safe_names.pop(key, None)
        else:
            self._safe_names[key] = inode
        self._tell(bound=[*key, inode])

    # -- power -----------------------------------------------------------------

    def cut(self, rng: random.Random) -> dict[str, int]:
        """The power goes. The disk is put away as the next start finds it; how much was
        lost of what, for the curious."""
        harsh = rng.random() < 0.3
        lost = {"writes": 0, "names": 0}
        for file in self.files.values():
            lost["writes"] += len(file.pending)
            survivors = [] if harsh else _surviving(file.pending, rng)
            grown = file.size if rng.random() < 0.3 and not harsh else 0
            self._go_back(file)
            for change in survivors:
                if isinstance(change, Resize):
                    self._truncate(file, change.size)
                else:
                    self._write_all(file, change.offset, change.content)
            if grown > file.size:
                self._truncate(file, grown)  # the size reached the disk, the bytes did not
        for directory in self.directories.values():
            directory.clear()
        for (directory_inode, name), inode in self._safe_names.items():
            self.directories[directory_inode][name] = inode
        keep = 0.0 if harsh else rng.random()
        for binding in self._bindings:
            possible = all(self.directories[key[0]].get(key[1]) == before for key, (before, _) in binding.names.items())
            if possible and rng.random() < keep:
                self._assign({key: after for key, (_, after) in binding.names.items()})
            else:
                lost["names"] += 1
        self._store()
        return lost

    def put_away(self) -> None:
        """An orderly unmount: everything is kept."""
        self._store()

    def _go_back(self, file: File) -> None:
        size = file.size
        for change in reversed(file.pending):
            start = change.size if isinstance(change, Resize) else change.offset
            if change.old:
                self._write_all(file, start, change.old)
            size = change.old_size
        if file.pending:
            self._truncate(file, size)
        file.pending = []

    def _store(self) -> None:
        reachable = set(self._walk(ROOT))
        for inode, file in self.files.items():
            os.close(file.descriptor)
            if inode not in reachable:
                self._path(inode).unlink()
        tree = {
            "directories": {inode: names for inode, names in self.directories.items() if inode in reachable},
            "files": {inode: [file.size, file.mode] for inode, file in self.files.items() if inode in reachable},
            "next_inode": self._next_inode,
        }
        (self._backing / "tree.json").write_text(json.dumps(tree))
        self.files = {}

    def _load(self) -> None:
        tree = json.loads((self._backing / "tree.json").read_text())
        self._next_inode = tree["next_inode"]
        self.directories = {int(inode): dict(names) for inode, names in tree["directories"].items()}
        for inode, (size, mode) in tree["files"].items():
            self.files[int(inode)] = File(os.open(self._path(int(inode)), os.O_RDWR), size, mode)
            self._tell(synced=int(inode), changes=[["write", 0, size]])
        for directory, names in self.directories.items():
            for name, inode in names.items():
                self._bind_safely((directory, name), inode)

    def _walk(self, inode: int) -> Iterator[int]:
        yield inode
        for child in self.directories.get(inode, {}).values():
            yield from self._walk(child)

    # -- small things ----------------------------------------------------------

    def _tell(self, **event: Any) -> None:
        if self._observe is not None:
            self._observe({"time_ns": time.monotonic_ns(), **event})

    def _path(self, inode: int) -> Path:
        return self._backing / "data" / str(inode)

    def _new_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode - 1

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _write_all(self, file: File, offset: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            count = os.pwrite(file.descriptor, view, offset)
            view, offset = view[count:], offset + count
            file.size = max(file.size, offset)

    def _truncate(self, file: File, size: int) -> None:
        os.ftruncate(file.descriptor, size)
        file.size = size


def _describe(change: Write | Resize) -> list[Any]:
    if isinstance(change, Resize):
        return ["resize", change.size]
    return ["write", change.offset, len(change.content)]


def _surviving(pending: list[Write | Resize], rng: random.Random) -> list[Write | Resize]:
    """A part of the changes, as a disk may have got to it before the power went."""
    match rng.choice(("none", "all", "beginning", "writes", "sectors")):
        case "none":
            return []
        case "all":
            return list(pending)
        case "beginning":
            kept = pending[: rng.randint(0, len(pending))]
            if kept and isinstance(kept[-1], Write):
                torn = rng.random()
                kept[-1:] = _sectors(kept[-1], lambda number, count: number < torn * count)
            return kept
        case "writes":
            return [change for change in pending if rng.random() < 0.5]
        case _:
            chance = rng.random()
            pieces: list[Write | Resize] = []
            for change in pending:
                if isinstance(change, Resize):
                    pieces += [change] if rng.random() < chance else []
                else:
                    pieces += _sectors(change, lambda number, count: rng.random() < chance)
            return pieces


def _sectors(write: Write, survives: Callable[[int, int], bool]) -> list[Write | Resize]:
    """The write cut where sectors of the file meet, and of that what survives."""
    first = write.offset // SECTOR_BYTES
    end = -(-(write.offset + len(write.content)) // SECTOR_BYTES)
    pieces: list[Write | Resize] = []
    for sector in range(first, end):
        if survives(sector - first, end - first):
            start = max(sector * SECTOR_BYTES, write.offset)
            stop = min((sector + 1) * SECTOR_BYTES, write.offset + len(write.content))
            content = write.content[start - write.offset : stop - write.offset]
            pieces.append(Write(write.sequence, start, content, b"", 0))
    return pieces
