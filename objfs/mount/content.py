"""The operations on what a name leads to: attributes, extended attributes, content. Every
method answers one FUSE request and may run beside any other."""

from __future__ import annotations

import errno
import os
import stat
import time

import msgspec
import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from engine import limits
from engine.changes import SetAttributes
from engine.errors import AlreadyExists, StoreError
from engine.interfaces import Buffer
from engine.types import Attributes, Bucket, Version
from objfs.mount.attributes import BLOCK_BYTES, without_privileges
from objfs.mount.errors import answered
from objfs.mount.inodes import Directory, File, Inode
from objfs.mount.names import marker_key
from objfs.mount.openfiles import OpenFile
from objfs.mount.state import MountState, empty_version
from objfs.mount.tree import TreeOperations

XATTRS_BYTES_MAX = 256 * 1024  # all of one file's: they ride in every record of its attributes
XATTR_NAMESPACES = ("user.", "trusted.", "security.")


class ContentOperations(TreeOperations):
    state: MountState
    _open: dict[int, OpenFile]

    # -- attributes ------------------------------------------------------------

    @answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        node = self.state.table.node(inode)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            return self.state.entry(node)

    @answered
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self.state.table.node(inode)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            if fields.update_size:
                await self._truncate(node, attr.st_size, by_name=fh is None)
            attributes = self._changed_attributes(self.state.entry(node), attr, fields, ctx)
            if attributes is not None:
                await self._set_attributes(node, attributes, ctx)
            return self.state.entry(node)

    @answered
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        version = self.state.present_version(self.state.table.file(inode))
        if version.attributes is None or version.attributes.link_target is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return FileNameT(version.attributes.link_target)

    def _changed_attributes(
        self, present: EntryAttributes, wanted: EntryAttributes, fields: SetattrFields, ctx: RequestContext
    ) -> Attributes | None:
        """The attributes to merge, None when only the size was set and no privilege bit
        must go."""
        mode = stat.S_IFMT(present.st_mode) | stat.S_IMODE(wanted.st_mode) if fields.update_mode else None
        chown = fields.update_uid or fields.update_gid
        loses = chown or (fields.update_size and ctx.uid != 0)
        if loses and mode is None and stat.S_ISREG(present.st_mode):
            without = without_privileges(present.st_mode)
            mode = without if without != present.st_mode else None
        times = fields.update_atime or fields.update_mtime
        if mode is None and not chown and not times and not fields.update_ctime:
            return None
        return Attributes(
            mode=mode,
            uid=wanted.st_uid if fields.update_uid else None,
            gid=wanted.st_gid if fields.update_gid else None,
            atime_ns=wanted.st_atime_ns if fields.update_atime else None,
            mtime_ns=wanted.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=wanted.st_ctime_ns if fields.update_ctime else time.time_ns(),
        )

    async def _set_attributes(
        self, node: Inode, attributes: Attributes, ctx: RequestContext, *, replace_xattrs: bool = False
    ) -> None:
        if isinstance(node, Directory):
            if node is self.state.table.root:
                raise pyfuse3.FUSEError(errno.EPERM)
            self.state.marker_of(node.name)  # ENOENT when it is gone
            key = marker_key(node.name)
            change = SetAttributes(node.name[0], key, attributes, replace_xattrs=replace_xattrs)
            await self.state.commit(change, ctx)
            if attributes.mtime_ns is not None:
                node.changed_ns = 0
            return
        version = self.state.present_version(node)
        open_file = node.open_file
        if open_file is not None:
            open_file.set_times(attributes)
            if open_file.unlinked:
                open_file.set_unlinked_attributes(_merged(version.attributes, attributes, replace_xattrs))
                return
        bucket, key = node.name
        change = SetAttributes(bucket, key, attributes, replace_xattrs=replace_xattrs, file_id=node.inode)
        await self.state.commit(change, ctx)

    async def _truncate(self, node: Inode, size: int, *, by_name: bool) -> None:
        """truncate(2) is seen at every door when it returns; ftruncate(2) is a write."""
        if not isinstance(node, File):
            raise pyfuse3.FUSEError(errno.EISDIR)
        if size > limits.OBJECT_BYTES_MAX:
            raise pyfuse3.FUSEError(errno.EFBIG)
        if by_name:
            self._check_name(node)
        open_file = self._opened(node)
        try:
            await open_file.truncate(size)
            if by_name:
                await open_file.publish(durable=False)
        finally:
            await self._closed(open_file)

    # -- extended attributes ---------------------------------------------------

    @answered
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        node = self.state.table.node(inode)
        await self.state.store.freshen()
        value = self._xattrs(node).get(_xattr_name(name))
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @answered
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[XAttrNameT]:
        node = self.state.table.node(inode)
        await self.state.store.freshen()
        return [XAttrNameT(name.encode()) for name in sorted(self._xattrs(node))]

    @answered
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        node = self.state.table.node(inode)
        key = _xattr_name(name)
        if not key.startswith(XATTR_NAMESPACES):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            xattrs = {**self._xattrs(node), key: value}
            if sum(len(name) + len(value) for name, value in xattrs.items()) > XATTRS_BYTES_MAX:
                raise pyfuse3.FUSEError(errno.ENOSPC)
            await self._replace_xattrs(node, xattrs, ctx)

    @answered
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        node = self.state.table.node(inode)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            xattrs = dict(self._xattrs(node))
            if xattrs.pop(_xattr_name(name), None) is None:
                raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
            await self._replace_xattrs(node, xattrs, ctx)

    async def _replace_xattrs(self, node: Inode, xattrs: dict[str, bytes], ctx: RequestContext) -> None:
        attributes = Attributes(xattrs=xattrs, ctime_ns=time.time_ns())
        await self._set_attributes(node, attributes, ctx, replace_xattrs=True)

    def _xattrs(self, node: Inode) -> dict[str, bytes]:
        described: Version | Bucket | None
        if isinstance(node, File):
            described = self.state.present_version(node)
        elif node is self.state.table.root or node.gone:
            return {}
        else:
            described = self.state.marker_of(node.name)
        if described is None or described.attributes is None:
            return {}
        return described.attributes.xattrs

    # -- opening and closing ---------------------------------------------------

    @answered
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Commits an empty version at once; this open's first publication replaces it."""
        parent = self.state.table.directory(parent_inode)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            new = self._new_name(parent, name)
            attributes = self.state.new_attributes(parent, stat.S_IFREG | stat.S_IMODE(mode), ctx)
            try:
                result = await self.state.commit(empty_version(new, attributes), ctx)
            except AlreadyExists:
                if flags & os.O_EXCL:
                    raise
                # Made by another door since the kernel looked: it looks again and opens it.
                raise pyfuse3.FUSEError(errno.ESTALE) from None
            assert result.version is not None, "a create publishes"
            self.state.changed(parent)
            node = self.state.table.ensure_file(new, result.version.file_id)
            open_file = self._opened(node, made=result.version)
            entry = self._told(new, node, self.state.file_entry(node, open_file.version))
            if open_file.version.lsn == result.version.lsn:
                open_file.created(result.version.lsn)
            if open_file.unlinked:
                # Another door was quick to remove it. It was made and is open; its name is nobody's.
                self.state.table.untell(new)
                entry.entry_timeout = entry.attr_timeout = 0
            return FileInfo(fh=FileHandleT(node.inode), keep_cache=False), entry

    @answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        await self.state.store.freshen()
        node = self.state.table.file(inode)
        self._check_name(node)
        shared = node.open_file is not None
        cached_lsn = node.cached_lsn
        open_file = self._opened(node)
        if flags & os.O_TRUNC:
            try:
                await open_file.truncate(0)
            except BaseException:
                await self._closed(open_file)
                raise
        return FileInfo(fh=FileHandleT(node.inode), keep_cache=shared or cached_lsn == open_file.version.lsn)

    def _check_name(self, node: File) -> None:
        """FUSEError: ESTALE, if the kernel was told of a name that leads to another file by
        now: its own news of that is under way. A file without a name that is open may be
        opened again (/proc/self/fd)."""
        if node.open_file is None:
            return  # _opened() looks
        node.open_file.refresh()
        wrong = node.told or self.state.doubtful
        if node.open_file.unlinked and wrong and node.told_of is None:
            raise self.state.look_again(node)

    def _opened(self, node: File, made: Version | None = None) -> OpenFile:
        """One more open of the file; of one just `made` even if it is removed already."""
        open_file = node.open_file
        if open_file is None:
            pin = self.state.store.pins.take()
            present = self.state.version_of(node)
            version = present or made or node.told_of
            if version is None:
                pin.end()
                raise self.state.look_again(node)
            open_file = node.open_file = self._open[node.inode] = OpenFile(self.state, node, version, pin)
            if present is None:
                open_file.lose_names()
            node.cached_lsn = version.lsn
        open_file.opens += 1
        return open_file

    async def _closed(self, open_file: OpenFile) -> None:
        """One open less; the last one takes what could not be published with it."""
        open_file.opens -= 1
        if open_file.opens:
            return
        node = open_file.node
        node.open_file = None
        del self._open[node.inode]
        self.state.table.drop_unused(node)
        await open_file.close()

    @answered
    async def flush(self, fh: FileHandleT) -> None:
        await self._open[fh].publish(durable=False)

    @answered
    async def release(self, fh: FileHandleT) -> None:
        """Pages of a shared mapping are written after close, so there may be more to
        publish."""
        open_file = self._open[fh]
        try:
            await open_file.publish(durable=False)
        finally:
            await self._closed(open_file)

    @answered
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._open[fh].publish(durable=True)
        await self.state.make_durable()

    # -- content ---------------------------------------------------------------

    @answered
    async def read(self, fh: FileHandleT, off: int, size: int) -> Buffer:  # type: ignore[override]
        return await self._open[fh].read(off, size)

    @answered
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        if off + len(buf) > limits.OBJECT_BYTES_MAX:
            raise pyfuse3.FUSEError(errno.EFBIG)
        await self._open[fh].write(off, buf)
        return len(buf)

    async def publish_all(self) -> None:
        """Publish every open file and make it durable; for a clean end of the mount. The
        first error is raised after all were tried."""
        failures: list[Exception] = []
        for open_file in list(self._open.values()):
            try:
                await open_file.publish(durable=False)
            except (StoreError, OSError, pyfuse3.FUSEError) as error:
                failures.append(error)
        await self.state.make_durable()
        if failures:
            raise failures[0]

    # -- the filesystem --------------------------------------------------------

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Space for content under the store's code; a file needs no room of its own."""
        total, free = await trio.to_thread.run_sync(self.state.store.space)
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = total // BLOCK_BYTES
        answer.f_bfree = answer.f_bavail = max(free - self.state.unpublished_bytes, 0) // BLOCK_BYTES
        answer.f_files = answer.f_blocks
        answer.f_ffree = answer.f_favail = answer.f_bfree
        answer.f_namemax = limits.NAME_BYTES_MAX
        return answer


def _xattr_name(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise pyfuse3.FUSEError(errno.EILSEQ) from None


def _merged(present: Attributes | None, changed: Attributes, replace_xattrs: bool) -> Attributes:
    """As SetAttributes merges; for a file no commit can name any more."""
    fields = {name: value for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns")
              if (value := getattr(changed, name)) is not None}  # fmt: skip
    if replace_xattrs:
        fields["xattrs"] = changed.xattrs
    return msgspec.structs.replace(present or Attributes(), **fields)
