"""The inode table: what the kernel knows, by number and by name.

A file's inode number is its file id, so it survives renames, remounts and rebuilds; a
directory's is a hash of its name with a high bit set, so that it too is the same in most
mounts. The table holds no attributes: those are read from the keymap each time. It is
used from one event loop and never suspends, so it needs no lock.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyfuse3
from pyfuse3 import InodeT

from objfs.mount.names import ROOT, Name, is_below

if TYPE_CHECKING:
    from engine.types import Version
    from objfs.mount.openfiles import OpenFile

DIRECTORY_BIT = 1 << 60  # file ids are LSNs: they stay far below


@dataclass(slots=True, eq=False)
class Directory:
    """`gone` once it was removed: a process may still stand in it. `changed_ns` is when
    this mount last saw a name in it come or go."""

    inode: InodeT
    name: Name
    lookups: int = 0
    gone: bool = False
    changed_ns: int = 0


@dataclass(slots=True, eq=False)
class File:
    """`name` is the last one known to lead here. `cached_lsn` is the version whose pages
    the kernel may hold. `told_of` is the version the kernel was told of, where it looks the
    name up each time because it may be replaced before it is opened (MountState.told)."""

    inode: InodeT
    name: Name
    lookups: int = 0
    open_file: OpenFile | None = None
    cached_lsn: int = 0
    told_of: Version | None = None
    told: list[Name] = field(default_factory=list)


Inode = Directory | File


class InodeTable:
    def __init__(self) -> None:
        self.root = Directory(pyfuse3.ROOT_INODE, ROOT, lookups=1)
        self._nodes: dict[int, Inode] = {pyfuse3.ROOT_INODE: self.root}
        self._directories: dict[Name, Directory] = {ROOT: self.root}
        self._told: dict[Name, Inode] = {ROOT: self.root}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._nodes.values()))

    def find(self, inode: int) -> Inode | None:
        return self._nodes.get(inode)

    def node(self, inode: InodeT) -> Inode:
        """FUSEError: ESTALE for a number the kernel was never given."""
        node = self._nodes.get(inode)
        if node is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return node

    def directory(self, inode: InodeT) -> Directory:
        """FUSEError: ENOTDIR, ENOENT (removed)."""
        node = self.node(inode)
        if not isinstance(node, Directory):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        if node.gone:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return node

    def file(self, inode: InodeT) -> File:
        """FUSEError: EISDIR."""
        node = self.node(inode)
        if not isinstance(node, File):
            raise pyfuse3.FUSEError(errno.EISDIR)
        return node

    def known_name(self, name: Name) -> Inode | None:
        """What the kernel was last told this name leads to."""
        return self._told.get(name)

    def known_below(self, directory: Name) -> list[Name]:
        return [name for name in self._told if is_below(name, directory)]

    def ensure_directory(self, name: Name) -> Directory:
        node = self._directories.get(name)
        if node is None:
            node = Directory(self._free_number(name), name)
            self._nodes[node.inode] = node
            self._directories[name] = node
        return node

    def ensure_file(self, name: Name, file_id: int) -> File:
        assert 1 < file_id < DIRECTORY_BIT, f"file id {file_id} of {name} cannot be an inode number"
        node = self._nodes.get(file_id)
        if node is None:
            node = self._nodes[file_id] = File(InodeT(file_id), name)
        assert isinstance(node, File), "file ids and directory numbers are apart"
        node.name = name
        return node

    def tell(self, name: Name, node: Inode) -> None:
        """The kernel is about to learn that `name` leads to `node`: one lookup more."""
        node.lookups += 1
        if isinstance(node, File):
            node.told_of = None
        before = self._told.get(name)
        if before is not node:
            self.untell(name)
            self._told[name] = node
            if isinstance(node, File):
                node.told.append(name)

    def untell(self, name: Name) -> Inode | None:
        """The name no longer leads to what the kernel was told; returns that."""
        node = self._told.pop(name, None)
        if isinstance(node, File):
            node.told.remove(name)
        return node

    def forget(self, inode: InodeT, lookups: int) -> None:
        node = self._nodes.get(inode)
        if node is None or node is self.root:
            return
        node.lookups -= lookups
        assert node.lookups >= 0, f"the kernel forgot inode {inode} more often than it looked it up"
        self.drop_unused(node)

    def drop_unused(self, node: Inode) -> None:
        """Drop a node that neither the kernel nor an open file holds."""
        if node.lookups > 0 or node is self.root:
            return
        if isinstance(node, File):
            if node.open_file is not None:
                return
            for name in list(node.told):
                self.untell(name)
        else:
            if self._told.get(node.name) is node:
                del self._told[node.name]
            if self._directories.get(node.name) is node:
                del self._directories[node.name]
        self._nodes.pop(node.inode, None)

    def removed(self, name: Name) -> None:
        """`name` was removed (unlink, rmdir, or replaced by a rename)."""
        self.untell(name)
        directory = self._directories.pop(name, None)
        if directory is not None:
            directory.gone = True
            self.drop_unused(directory)

    def renamed(self, source: Name, target: Name) -> None:
        """What was `source` is `target` now, with everything below; what was `target` is
        gone."""
        self.removed(target)
        self._insert(self._take(source), source, target)

    def exchanged(self, one: Name, other: Name) -> None:
        first, second = self._take(one), self._take(other)
        self._insert(first, one, other)
        self._insert(second, other, one)

    def _take(self, top: Name) -> tuple[list[tuple[Name, Inode]], list[Directory]]:
        """Take out every name and directory at or below `top`."""
        told = [(name, node) for name, node in self._told.items() if name == top or is_below(name, top)]
        directories = [node for name, node in self._directories.items() if name == top or is_below(name, top)]
        for name, _ in told:
            self.untell(name)
        for directory in directories:
            del self._directories[directory.name]
        return told, directories

    def _insert(self, taken: tuple[list[tuple[Name, Inode]], list[Directory]], source: Name, target: Name) -> None:
        told, directories = taken
        for directory in directories:
            directory.name = _moved(directory.name, source, target)
            self._directories[directory.name] = directory
        for name, node in told:
            moved = _moved(name, source, target)
            self._told[moved] = node
            if isinstance(node, File):
                node.told.append(moved)
                node.name = moved
                node.told_of = None  # what was moved may be another file by then

    def _free_number(self, name: Name) -> InodeT:
        digest = hashlib.blake2b("/".join(name).encode(), digest_size=7).digest()
        number = DIRECTORY_BIT | int.from_bytes(digest, "big")
        while number in self._nodes:
            number += 1
        return InodeT(number)


def _moved(name: Name, source: Name, target: Name) -> Name:
    return target[0], target[1] + name[1][len(source[1]) :]
