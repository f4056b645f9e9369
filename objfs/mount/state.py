"""What all operations of one mount share: the store, the inode table, the open files and
the way from an inode to its present version.

Used from one trio loop. Keymap reads are synchronous; between a keymap read and the
reply nothing suspends, so that a reply never carries what a later invalidation has
already overtaken.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, InodeT

from engine import limits
from engine.changes import Change, CommitResult, Condition, Door, Origin, PutVersion
from engine.errors import NoSuchBucket
from engine.index.feed import subscriber_name
from engine.types import Attributes, Bucket, Content, Manifest, Version
from objfs.mount.attributes import Owner, directory_attributes, file_attributes, set_size
from objfs.mount.gate import TreeGate
from objfs.mount.inodes import Directory, File, Inode, InodeTable
from objfs.mount.names import Name, marker_key, prefix, split_name

if TYPE_CHECKING:
    from engine.store import Store

SPACE_SECONDS = 0.25
REPLACED_SECONDS = 2.0  # a name that was just replaced may be again before what was looked up is opened
REPLACED_MAX = 1000  # such names
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"


class MountState:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.keymap = store.keymap
        self.mount_id = subscriber_name(store.pins.name)
        self.table = InodeTable()
        self.gate = TreeGate()
        self.owner = Owner(os.getuid(), os.getgid())
        self.started_ns = time.time_ns()
        self.followed = False  # the change feed is being followed
        self.alive_at = 0.0  # when the follower last ran (monotonic)
        self.behind_since: float | None = None  # when what is not confirmed yet came in
        self.unpublished_bytes = 0
        self._replaced: dict[Name, float] = {}  # names that came to lead elsewhere, and when
        self.doubtful: Counter[tuple[InodeT, str]] = Counter()  # entries the kernel may have wrong
        self._doubted = trio.Event()
        self._room = 0
        self._room_until = 0.0
        self._requests = itertools.count(1)

    # -- commits ---------------------------------------------------------------

    def origin(self, ctx: pyfuse3.RequestContext | None = None) -> Origin:
        requester = f"uid {ctx.uid}" if ctx is not None else ""
        request_id = f"{self.mount_id}-{next(self._requests)}"
        return Origin(requester=requester, request_id=request_id, door=Door.MOUNT, mount_id=self.mount_id)

    async def commit(
        self, change: Change, ctx: pyfuse3.RequestContext | None = None, *, durable: bool = False
    ) -> CommitResult:
        return await self.store.commit(change, self.origin(ctx), durable=durable)

    async def make_durable(self) -> None:
        """Return when everything this mount could have answered so far is durable."""
        await self.store.index.wait_durable(self.keymap.applied_lsn())

    def spill_directory(self) -> Path | None:
        directory = Path(self.store.data) / "index"
        return directory if os.access(directory, os.W_OK) else None

    def check_space(self, content_bytes: int) -> None:
        """Raises NodeFull unless `content_bytes` fit beside what is written and not yet
        published. The nodes are asked at most every SPACE_SECONDS, and for every write
        once half of their room is spoken for."""
        needed = self.unpublished_bytes + content_bytes
        now = time.monotonic()
        if now > self._room_until:
            self._room_until = now + SPACE_SECONDS
            _, self._room = self.store.space()
        if 2 * needed > self._room:
            self.store.check_space(needed)

    # -- from names and inodes to versions -------------------------------------

    def version_of(self, node: File) -> Version | None:
        """The file's present version under any of its names, None once it has none."""
        version = self._head(*node.name)
        if version is not None and version.file_id == node.inode:
            return version
        for name in self.keymap.names(node.inode):
            version = self._head(*name)
            if version is not None and version.file_id == node.inode:
                node.name = name
                return version
        return None

    def holds_new_file(self, name: Name) -> bool:
        """Whether the name leads to a file that was new with the record that put it there,
        as what S3 writes is, and not to one that was renamed to it."""
        version = self._head(*name)
        return version is not None and version.file_id == version.lsn

    def look_again(self, node: File) -> pyfuse3.FUSEError:
        """ESTALE, which makes the kernel look the name up again, but only once."""
        self.replaced(node.name)
        return pyfuse3.FUSEError(errno.ESTALE)

    def replaced(self, name: Name) -> None:
        """What the kernel was told of `name` holds no longer."""
        if len(self._replaced) >= REPLACED_MAX:
            self._replaced.clear()
        self._replaced[name] = time.monotonic()

    def doubt(self, parent: InodeT, component: str) -> None:
        """The kernel may be wrong about a name that the operation under way has locked: the
        follower tells it once that is answered."""
        self.doubtful[parent, component] += 1
        self._doubted.set()

    async def wait_doubtful(self) -> Counter[tuple[InodeT, str]]:
        """What to subtract from `doubtful` once the kernel was told."""
        await self._doubted.wait()
        self._doubted = trio.Event()
        return self.doubtful.copy()

    def just_replaced(self, name: Name) -> bool:
        when = self._replaced.get(name)
        if when is not None and time.monotonic() > when + REPLACED_SECONDS:
            del self._replaced[name]
            return False
        return when is not None

    def told(self, node: File, version: Version, entry: EntryAttributes) -> None:
        """The kernel is told of a name that was just replaced, and may be again before this
        call opens what it is told of. That it may open all the same: it was there after the
        call had begun, since the next call looks the name up for itself. (Should collection
        be just then at the very end of freeing the version's chunks, reading it is an error.)"""
        node.told_of = version
        entry.entry_timeout = 0

    def present_version(self, node: File) -> Version:
        """As version_of(), or what an open file keeps of an unlinked one. FUSEError:
        ESTALE, which makes the kernel look the name up again."""
        version = self.version_of(node)
        if version is not None:
            return version
        if node.open_file is None:
            raise self.look_again(node)
        node.open_file.lose_names()
        return node.open_file.version_unlinked()

    def marker_of(self, name: Name) -> Version | Bucket | None:
        """The directory's marker or bucket; None for a directory without marker. FUSEError:
        ENOENT when there is no such directory."""
        bucket, key = name
        try:
            if not key:
                return self.keymap.bucket(bucket)
            parent, component = split_name(name)
            child = self.keymap.lookup(bucket, prefix(parent), component)
        except NoSuchBucket:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        if child is None or not child.is_directory:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return child.version

    def _head(self, bucket: str, key: str) -> Version | None:
        try:
            version = self.keymap.head(bucket, key)
        except NoSuchBucket:
            return None
        return None if version is None or version.delete_marker else version

    # -- entries ---------------------------------------------------------------

    def entry(self, node: Inode) -> EntryAttributes:
        """The inode's attributes now. FUSEError: ENOENT, ESTALE."""
        if isinstance(node, File):
            if node.open_file is None and node.told_of is not None:
                return self.file_entry(node, self.version_of(node) or node.told_of)
            return self.file_entry(node, self.present_version(node))
        if node is self.table.root:
            return self.directory_entry(node, None)
        if node.gone:
            return self.gone_entry(node)
        return self.directory_entry(node, self.marker_of(node.name))

    def file_entry(self, node: File, version: Version) -> EntryAttributes:
        entry = file_attributes(node.inode, version, self.owner)
        open_file = node.open_file
        if open_file is not None and (open_file.changed or open_file.unlinked):
            set_size(entry, open_file.size)
            if open_file.changed:
                entry.st_mtime_ns = open_file.mtime_ns
                entry.st_ctime_ns = max(entry.st_ctime_ns, open_file.ctime_ns)
        return self._with_timeouts(entry)

    def directory_entry(self, node: Directory, marker: Version | Bucket | None) -> EntryAttributes:
        born_ns = marker.created_ns if isinstance(marker, Bucket) else self.started_ns
        entry = directory_attributes(node.inode, marker, self.owner, born_ns=born_ns, changed_ns=node.changed_ns)
        return self._with_timeouts(entry)

    def gone_entry(self, node: Directory) -> EntryAttributes:
        """A removed directory some process still stands in."""
        entry = self.directory_entry(node, None)
        entry.st_nlink = 0
        return entry

    def _with_timeouts(self, entry: EntryAttributes) -> EntryAttributes:
        entry.entry_timeout = entry.attr_timeout = limits.LEASE_SECONDS if self.may_be_kept() else 0
        return entry

    def may_be_kept(self) -> bool:
        """Whether the kernel may keep what it is told now: changes at other doors wait until
        it was told to drop that, unless we stand still for longer than they wait."""
        now = time.monotonic()
        since = self.alive_at if self.behind_since is None else min(self.alive_at, self.behind_since)
        keeps_up = now - since < limits.LEASE_STALL_SECONDS
        return self.followed and keeps_up and self.store.index.awaits(self.mount_id)

    # -- making things ---------------------------------------------------------

    def new_attributes(self, parent: Directory, mode: int, ctx: pyfuse3.RequestContext) -> Attributes:
        """Attributes of something made in `parent`; a set-group-id directory hands down
        its group (mkdir(2), open(2))."""
        now = time.time_ns()
        above = self.entry(parent)
        gid = ctx.gid
        if above.st_mode & stat.S_ISGID:
            gid = above.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        return Attributes(mode=mode, uid=ctx.uid, gid=gid, atime_ns=now, mtime_ns=now, ctime_ns=now)

    def changed(self, *directories: Directory) -> None:
        now = time.time_ns()
        for directory in directories:
            directory.changed_ns = now


def empty_version(name: Name, attributes: Attributes, *, directory: bool = False) -> PutVersion:
    """The change that makes `name`, unless something is there already (AlreadyExists)."""
    key = marker_key(name) if directory else name[1]
    return PutVersion(
        name[0],
        key,
        Content(manifest=Manifest()),
        EMPTY_MD5,
        attributes=attributes,
        condition=Condition(absent_path=True),
    )
