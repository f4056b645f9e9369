"""What a version, a marker or a bucket looks like to stat(2). Pure but for the caller's
defaults: the mounting user, 0644/0755 and LastModified, where nothing was set."""

from __future__ import annotations

import stat
from dataclasses import dataclass

import pyfuse3
from pyfuse3 import EntryAttributes, InodeT

from engine.types import Attributes, Bucket, Version

FILE_MODE = stat.S_IFREG | 0o644
DIRECTORY_MODE = stat.S_IFDIR | 0o755
BLOCK_BYTES = 4096
_UNSET = Attributes()


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns what nobody owns: the user that mounts."""

    uid: int
    gid: int


def file_attributes(inode: InodeT, version: Version, owner: Owner) -> EntryAttributes:
    attributes = version.attributes or _UNSET
    entry = _entry(inode, attributes, owner, FILE_MODE, version.last_modified_ns)
    entry.st_nlink = version.link_count
    entry.st_rdev = attributes.rdev
    size = version.size if attributes.link_target is None else len(attributes.link_target)
    set_size(entry, size)
    return entry


def directory_attributes(
    inode: InodeT, marker: Version | Bucket | None, owner: Owner, *, born_ns: int, changed_ns: int
) -> EntryAttributes:
    """`marker` may be missing; times are then `born_ns`. `changed_ns` is when this mount
    last saw an entry come or go."""
    attributes = (marker.attributes if marker is not None else None) or _UNSET
    if isinstance(marker, Version):
        born_ns = marker.last_modified_ns
    entry = _entry(inode, attributes, owner, DIRECTORY_MODE, born_ns)
    entry.st_mtime_ns = max(entry.st_mtime_ns, changed_ns)
    entry.st_ctime_ns = max(entry.st_ctime_ns, changed_ns)
    entry.st_nlink = 2
    set_size(entry, 0)
    return entry


def set_size(entry: EntryAttributes, size: int) -> None:
    entry.st_size = size
    entry.st_blocks = -(-size // 512)


def mode_of(version: Version) -> int:
    mode = version.attributes.mode if version.attributes is not None else None
    return pyfuse3.ModeT(FILE_MODE if mode is None else mode)


def without_privileges(mode: int) -> int:
    """`mode` after a write, truncate or chown by someone who may not keep suid and sgid:
    sgid goes only where it means "run as" (see inode(7))."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def _entry(inode: InodeT, attributes: Attributes, owner: Owner, mode: int, born_ns: int) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = pyfuse3.ModeT(mode if attributes.mode is None else attributes.mode)
    entry.st_uid = owner.uid if attributes.uid is None else attributes.uid
    entry.st_gid = owner.gid if attributes.gid is None else attributes.gid
    mtime_ns = born_ns if attributes.mtime_ns is None else attributes.mtime_ns
    entry.st_mtime_ns = mtime_ns
    entry.st_atime_ns = mtime_ns if attributes.atime_ns is None else attributes.atime_ns
    entry.st_ctime_ns = born_ns if attributes.ctime_ns is None else attributes.ctime_ns
    entry.st_blksize = BLOCK_BYTES
    return entry
