"""A LossyDisk as a mounted filesystem, in a process of its own (see lossy.mount).

    python -m lossy.filesystem BACKING DIRECTORY [LOG]

Prints `"ready"` once mounted, then takes commands on its standard input, one JSON list a
line, and answers likewise:

    ["cut", seed]               the power goes: answers what was lost, and ends
    ["sync delay", seconds]     every fsync takes this long before anything is safe
    ["fail", name, kind, count] the next `count` calls of a kind (write, sync) on files below
                                the top directory `name` fail with EIO, or ENOSPC for "full"
    ["flush"]                   the log is written out

The end of its input unmounts and keeps everything. LOG gets one JSON object a line for
all that becomes safe, with the time of CLOCK_MONOTONIC: see LossyDisk._tell.

The kernel may keep what it has read: nothing changes behind its back while mounted.
"""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileNameT, FlagT, InodeT, ModeT, ReaddirToken, RequestContext

from lossy.disk import ROOT, Event, LossyDisk

FOREVER_SECONDS = 86_400
SPACE_BYTES = 1 << 31  # small: a store keeps a share of it aside, written byte by byte where nothing is allocated
ALIKE_BYTES = 4096


class LossyOperations(pyfuse3.Operations):
    """File handles are inodes; nothing is kept per open."""

    enable_writeback_cache = False  # every write(2) reaches the disk's cache, in order

    def __init__(self, disk: LossyDisk) -> None:
        super().__init__()
        self.disk = disk
        self.dead = False
        self.sync_delay = 0.0
        self._failing: dict[tuple[str, str], int] = {}
        self._tops: dict[int, str] = {}

    # -- faults ----------------------------------------------------------------

    def fail(self, top: str, kind: str, count: int) -> None:
        self._failing[top, kind] = count

    def _check(self, inode: int, *kinds: str) -> str | None:
        """The kind of fault that hits this call, if any."""
        if self.dead:
            raise pyfuse3.FUSEError(errno.EIO)
        top = self._tops.get(inode, "")
        for kind in kinds:
            left = self._failing.get((top, kind), 0)
            if left:
                self._failing[top, kind] = left - 1
                return kind
        return None

    def _note(self, parent: int, name: str, inode: int) -> None:
        self._tops[inode] = name if parent == ROOT else self._tops.get(parent, "")

    # -- names -----------------------------------------------------------------

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        self._check(parent_inode)
        inode = self._do(self.disk.lookup, parent_inode, os.fsdecode(name))
        self._note(parent_inode, os.fsdecode(name), inode)
        return self._attributes(inode)

    async def getattr(self, inode: InodeT, ctx: RequestContext | None = None) -> EntryAttributes:
        self._check(inode)
        return self._attributes(inode)

    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        self._check(parent_inode)
        inode = self._do(self.disk.make_directory, parent_inode, os.fsdecode(name))
        self._note(parent_inode, os.fsdecode(name), inode)
        return self._attributes(inode)

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[pyfuse3.FileInfo, EntryAttributes]:
        self._check(parent_inode)
        inode = self._do(self.disk.create, parent_inode, os.fsdecode(name), stat.S_IMODE(mode))
        self._note(parent_inode, os.fsdecode(name), inode)
        return pyfuse3.FileInfo(fh=FileHandleT(inode)), self._attributes(inode)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._check(parent_inode)
        self._do(self.disk.remove, parent_inode, os.fsdecode(name))

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self.unlink(parent_inode, name, ctx)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        self._check(parent_inode_old)
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        names = os.fsdecode(name_old), os.fsdecode(name_new)
        self._do(self.disk.rename, parent_inode_old, names[0], parent_inode_new, names[1])

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self._check(inode)
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        self._check(fh)
        names = sorted(self.disk.directories[fh].items(), key=lambda item: item[1])
        for name, inode in names:
            if inode > start_id:
                self._note(fh, name, inode)
                if not pyfuse3.readdir_reply(token, os.fsencode(name), self._attributes(inode), inode):
                    return

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        if self._check(fh, "sync"):
            raise pyfuse3.FUSEError(errno.EIO)
        await trio.sleep(self.sync_delay)
        self._check(fh)
        self.disk.sync_directory(fh)

    # -- contents --------------------------------------------------------------

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> pyfuse3.FileInfo:
        self._check(inode)
        if flags & os.O_TRUNC:
            self.disk.resize(inode, 0)
        return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self._check(fh)
        return self.disk.read(fh, off, size)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        match self._check(fh, "write", "full"):
            case "write":
                raise pyfuse3.FUSEError(errno.EIO)
            case "full":
                raise pyfuse3.FUSEError(errno.ENOSPC)
        return self.disk.write(fh, off, bytes(buf))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._check(inode)
        if fields.update_size:
            self.disk.resize(inode, attr.st_size)
        if fields.update_mode and inode in self.disk.files:
            self.disk.files[inode].mode = stat.S_IMODE(attr.st_mode)
        return self._attributes(inode)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        mark = self.disk.mark()
        if self._check(fh, "sync"):
            self.disk.fail_sync(fh)
            raise pyfuse3.FUSEError(errno.EIO)
        await trio.sleep(self.sync_delay)
        self._check(fh)
        self.disk.sync(fh, mark)

    async def flush(self, fh: FileHandleT) -> None:
        """Closing syncs nothing."""

    async def release(self, fh: FileHandleT) -> None:
        """Nothing is kept per open."""

    async def releasedir(self, fh: FileHandleT) -> None:
        """Nothing is kept per open."""

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Inodes are kept until the disk is put away."""

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = ALIKE_BYTES
        found.f_blocks = found.f_bfree = found.f_bavail = SPACE_BYTES // ALIKE_BYTES
        found.f_files = found.f_ffree = found.f_favail = 1 << 30
        found.f_namemax = 255
        return found

    def _attributes(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode)
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = FOREVER_SECONDS
        file = self.disk.files.get(inode)
        if file is not None:
            entry.st_mode = ModeT(stat.S_IFREG | file.mode)
            entry.st_size, entry.st_nlink = file.size, self.disk.links(inode)
        elif inode in self.disk.directories:
            entry.st_mode, entry.st_nlink = ModeT(stat.S_IFDIR | 0o755), 2
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_blksize, entry.st_blocks = ALIKE_BYTES, -(-entry.st_size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = inode  # the disk keeps no times
        return entry

    def _do(self, act: Any, *arguments: Any) -> Any:
        try:
            return act(*arguments)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None


# -- the process -------------------------------------------------------------------


class Log:
    def __init__(self, path: Path | None) -> None:
        self._file = open(path, "a") if path is not None else None  # noqa: SIM115 - open until the process ends

    def __call__(self, event: Event) -> None:
        if self._file is not None:
            self._file.write(json.dumps(event) + "\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()


def detach(directory: str) -> None:
    subprocess.run(["umount", "-l", directory], capture_output=True, check=False)


async def take_commands(operations: LossyOperations, directory: str, log: Log) -> None:
    """Until the disk is put away."""
    received = b""
    async for piece in trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())):
        *lines, received = (received + piece).split(b"\n")
        for line in lines:
            answer: Any = True
            match json.loads(line):
                case ["cut", seed]:
                    operations.dead = True
                    answer = operations.disk.cut(random.Random(seed))
                case ["sync delay", seconds]:
                    operations.sync_delay = seconds
                case ["fail", top, kind, count]:
                    operations.fail(top, kind, count)
                case ["flush"]:
                    pass
                case other:
                    raise ValueError(f"no such command: {other}")
            log.flush()
            print(json.dumps(answer), flush=True)
            if operations.dead:
                return
    operations.dead = True
    operations.disk.put_away()


async def serve(backing: Path, directory: str, log: Log) -> None:
    operations = LossyOperations(LossyDisk(backing, log))
    options = set(pyfuse3.default_options) | {"fsname=lossy", "default_permissions"}
    pyfuse3.init(operations, directory, options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            print('"ready"', flush=True)
            await take_commands(operations, directory, log)
            await trio.to_thread.run_sync(detach, directory)
            nursery.cancel_scope.cancel()  # whoever still holds a file here gets nothing more
    finally:
        log.flush()
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]), sys.argv[2], Log(Path(sys.argv[3]) if len(sys.argv) > 3 else None))
