"""The tree's operations: looking up, making, removing, renaming, linking and listing
names. Every method answers one FUSE request and may run beside any other; those that
build keys from a parent's path pass the tree gate."""

from __future__ import annotations

import errno
import stat
from collections import OrderedDict
from collections.abc import Sequence

import msgspec
import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileNameT, FlagT, InodeT, ModeT, ReaddirToken, RequestContext

from engine.changes import CreateBucket, DeleteBucket, DeleteKey, Link, Rename
from engine.errors import NoSuchBucket
from engine.interfaces import Child
from engine.types import Version
from objfs.mount.errors import answered
from objfs.mount.inodes import Directory, File, Inode
from objfs.mount.names import Name, child_name, decode_component, marker_key, prefix, split_name
from objfs.mount.state import MountState, empty_version

POSITIONS_MAX = 10_000  # names a directory handle remembers by position
LISTING_PAGE = 64  # about what one kernel buffer takes


class Listing:
    """An open directory. Positions name the last entry given out there, so that removals
    and additions never skip or repeat another; only the newest are remembered."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._names: OrderedDict[int, str] = OrderedDict()

    def name_at(self, position: int) -> str | None:
        return self._names.get(position)

    def passed(self, position: int, name: str) -> None:
        self._names[position] = name
        if len(self._names) > POSITIONS_MAX:
            self._names.popitem(last=False)


class TreeOperations(pyfuse3.Operations):
    state: MountState
    _listings: dict[int, Listing]
    _next_listing: int

    # -- looking up ------------------------------------------------------------

    @answered
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        parent = self.state.table.directory(parent_inode)
        try:
            component = decode_component(name)
        except pyfuse3.FUSEError as error:
            # What no key can be called does not exist; making it is what is refused.
            raise pyfuse3.FUSEError(errno.ENOENT if error.errno == errno.EILSEQ else error.errno) from None
        async with self.state.gate.shared():
            await self.state.store.freshen()
            return self._tell(child_name(parent.name, component))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, lookups in inode_list:
            self.state.table.forget(inode, lookups)

    def _child(self, name: Name) -> Child | None:
        """What stands at a name below a bucket."""
        parent, component = split_name(name)
        try:
            return self.state.keymap.lookup(name[0], prefix(parent), component)
        except NoSuchBucket:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    def _existing(self, name: Name) -> Child:
        child = self._child(name)
        if child is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return child

    def _tell(self, name: Name) -> EntryAttributes:
        """The entry of `name`, counted as looked up."""
        if not name[1]:
            directory = self.state.table.ensure_directory(name)
            return self._told(name, directory, self._bucket_entry(directory))
        child = self._child(name)
        while child is not None:
            node, entry = self._child_entry(name, child)
            if isinstance(node, Directory) or not self.state.just_replaced(name):
                return self._told(name, node, entry)
            version = self.state.version_of(node)
            if version is not None:
                self._told(name, node, entry)
                self.state.told(node, version, entry)
                return entry
            self.state.table.drop_unused(node)
            child = self._child(name)  # the index went on between the two reads
        self.state.table.untell(name)
        raise pyfuse3.FUSEError(errno.ENOENT)

    def _tell_made(self, name: Name, made: Version) -> EntryAttributes:
        """The entry of what was made at `name` a moment ago. Another door may have been quick
        to remove or replace it: it was made all the same, but its name is not its own."""
        parent, component = split_name(name)
        try:
            child = self.state.keymap.lookup(name[0], prefix(parent), component)
        except NoSuchBucket:
            child = None
        is_directory = made.key.endswith("/")
        if child is not None and child.is_directory == is_directory:
            file_id = made.file_id if is_directory or child.version is None else child.version.file_id
            if file_id == made.file_id:
                return self._tell_found(name, child)  # not looked for again: it may be gone by then
        if is_directory:
            return self._tell_gone(name)
        node = self.state.table.ensure_file(name, made.file_id)
        entry = self._told(name, node, self.state.file_entry(node, self.state.version_of(node) or made))
        self.state.table.untell(name)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _tell_found(self, name: Name, child: Child) -> EntryAttributes:
        node, entry = self._child_entry(name, child)
        self._told(name, node, entry)
        if isinstance(node, File) and child.version is not None and self.state.just_replaced(name):
            self.state.told(node, child.version, entry)
        return entry

    def _tell_made_bucket(self, bucket: str) -> EntryAttributes:
        """As _tell_made()."""
        name = (bucket, "")
        try:
            found = self.state.keymap.bucket(bucket)
        except NoSuchBucket:
            return self._tell_gone(name)
        directory = self.state.table.ensure_directory(name)
        return self._told(name, directory, self.state.directory_entry(directory, found))

    def _tell_gone(self, name: Name) -> EntryAttributes:
        """The entry of a directory that was made and is no longer there."""
        directory = self.state.table.ensure_directory(name)
        entry = self._told(name, directory, self.state.gone_entry(directory))
        self.state.table.removed(name)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _bucket_entry(self, directory: Directory) -> EntryAttributes:
        try:
            return self.state.directory_entry(directory, self.state.keymap.bucket(directory.name[0]))
        except NoSuchBucket:
            self.state.table.drop_unused(directory)
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    def _child_entry(self, name: Name, child: Child) -> tuple[Inode, EntryAttributes]:
        if child.is_directory:
            directory = self.state.table.ensure_directory(name)
            return directory, self.state.directory_entry(directory, child.version)
        assert child.version is not None, "a file has a version"
        node = self.state.table.ensure_file(name, child.version.file_id)
        return node, self.state.file_entry(node, child.version)

    def _told(self, name: Name, node: Inode, entry: EntryAttributes) -> EntryAttributes:
        self.state.table.tell(name, node)
        return entry

    # -- making ----------------------------------------------------------------

    def _new_name(self, parent: Directory, name: FileNameT) -> Name:
        """A name for a new file; the top holds only buckets. FUSEError: EPERM."""
        if parent is self.state.table.root:
            raise pyfuse3.FUSEError(errno.EPERM)
        return child_name(parent.name, decode_component(name))

    async def _make(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: int,
        ctx: RequestContext,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> EntryAttributes:
        parent = self.state.table.directory(parent_inode)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            new = self._new_name(parent, name)
            attributes = self.state.new_attributes(parent, mode, ctx)
            attributes = msgspec.structs.replace(attributes, rdev=rdev, link_target=target)
            change = empty_version(new, attributes, directory=stat.S_ISDIR(mode))
            result = await self.state.commit(change, ctx)
            assert result.version is not None, "what is made is a version"
            self.state.changed(parent)
            return self._tell_made(new, result.version)

    @answered
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._make(parent_inode, name, mode, ctx, rdev=rdev)

    @answered
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target)

    @answered
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        parent = self.state.table.directory(parent_inode)
        if parent is not self.state.table.root:
            return await self._make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx)
        await self.state.store.freshen()
        bucket = decode_component(name)
        attributes = self.state.new_attributes(parent, stat.S_IFDIR | stat.S_IMODE(mode), ctx)
        await self.state.commit(CreateBucket(bucket, attributes=attributes), ctx)
        self.state.changed(parent)
        return self._tell_made_bucket(bucket)

    @answered
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self.state.table.directory(new_parent_inode)
        node = self.state.table.node(inode)
        if isinstance(node, Directory):
            raise pyfuse3.FUSEError(errno.EPERM)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            target = self._new_name(parent, new_name)
            version = self.state.version_of(node)
            if version is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            bucket, key = node.name
            await self.state.commit(Link(bucket, key, target[0], target[1]), ctx)
            self.state.changed(parent)
            return self._tell_made(target, version)

    # -- removing --------------------------------------------------------------

    @answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self.state.table.directory(parent_inode)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            if parent is self.state.table.root:
                raise pyfuse3.FUSEError(errno.EISDIR)
            gone = child_name(parent.name, decode_component(name))
            child = self._existing(gone)
            if child.is_directory:
                raise pyfuse3.FUSEError(errno.EISDIR)
            node = await self._settle(child)
            await self.state.commit(DeleteKey(gone[0], gone[1], must_exist=True, keep_parent=True), ctx)
            self._removed(gone, node)
            self.state.changed(parent)

    @answered
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self.state.table.directory(parent_inode)
        async with self.state.gate.shared():
            await self.state.store.freshen()
            gone = child_name(parent.name, decode_component(name))
            if parent is self.state.table.root:
                await self.state.commit(DeleteBucket(gone[0]), ctx)
            else:
                if not self._existing(gone).is_directory:
                    raise pyfuse3.FUSEError(errno.ENOTDIR)
                key = marker_key(gone)
                change = DeleteKey(gone[0], key, must_exist=True, empty_directory=True, keep_parent=True)
                await self.state.commit(change, ctx)
            self._removed(gone, None)
            self.state.changed(parent)

    async def _settle(self, child: Child | None) -> File | None:
        """The file about to lose a name, with nothing left in a stream, whose bytes could
        not be read once no commit can name them."""
        if child is None or child.is_directory or child.version is None:
            return None
        node = self.state.table.find(child.version.file_id)
        if not isinstance(node, File):
            return None
        if node.open_file is not None:
            await node.open_file.settle()
        return node

    def _removed(self, name: Name, node: File | None) -> None:
        self.state.table.removed(name)
        if node is not None and node.open_file is not None and self.state.version_of(node) is None:
            node.open_file.unlinked = True

    # -- renaming --------------------------------------------------------------

    @answered
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise pyfuse3.FUSEError(errno.EINVAL)
        old_parent = self.state.table.directory(parent_inode_old)
        new_parent = self.state.table.directory(parent_inode_new)
        if self.state.table.root in (old_parent, new_parent):
            # Not EXDEV, which would make mv copy a whole bucket.
            raise pyfuse3.FUSEError(errno.EPERM)
        await self.state.store.freshen()
        old = child_name(old_parent.name, decode_component(name_old))
        involved = (self._child(old), self._child(child_name(new_parent.name, decode_component(name_new))))
        moves_directory = any(child is not None and child.is_directory for child in involved)
        async with self.state.gate.alone() if moves_directory else self.state.gate.shared():
            await self._rename(old_parent, name_old, new_parent, name_new, flags, ctx)

    async def _rename(
        self,
        old_parent: Directory,
        name_old: FileNameT,
        new_parent: Directory,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        source = child_name(old_parent.name, decode_component(name_old))
        target = child_name(new_parent.name, decode_component(name_new))
        exchange = bool(flags & pyfuse3.RENAME_EXCHANGE)
        child, replaced = self._existing(source), self._child(target)
        self._check_rename(child, replaced, flags)
        node = None if exchange else await self._settle(replaced)
        target_directory = replaced.is_directory if exchange and replaced is not None else child.is_directory
        change = Rename(
            source[0],
            marker_key(source) if child.is_directory else source[1],
            target[0],
            marker_key(target) if target_directory else target[1],
            no_replace=bool(flags & pyfuse3.RENAME_NOREPLACE),
            exchange=exchange,
        )
        await self.state.commit(change, ctx)
        if exchange:
            self.state.table.exchanged(source, target)
        elif self._same_file(child, replaced):
            pass  # rename(2) of one link onto another of the same file does nothing
        else:
            self._removed(target, node)
            self.state.table.renamed(source, target)
        self._check_moved(target, new_parent)
        if exchange:
            self._check_moved(source, old_parent)
        self.state.changed(old_parent, new_parent)

    def _check_moved(self, name: Name, parent: Directory) -> None:
        """The kernel is about to move what it knew. If that is not what the index moved,
        because another door put a file in its place meanwhile, it must look again."""
        known, child = self.state.table.known_name(name), self._child(name)
        if isinstance(known, Directory) or (child is not None and child.is_directory):
            return
        if known is None or child is None or child.version is None or child.version.file_id != known.inode:
            _, component = split_name(name)
            self.state.doubt(parent.inode, component)

    def _check_rename(self, child: Child, replaced: Child | None, flags: FlagT) -> None:
        """rename(2)'s conditions on types; the index decides the rest in commit order."""
        if flags & pyfuse3.RENAME_EXCHANGE:
            if replaced is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
        elif replaced is None:
            return
        elif flags & pyfuse3.RENAME_NOREPLACE:
            raise pyfuse3.FUSEError(errno.EEXIST)
        elif child.is_directory and not replaced.is_directory:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        elif not child.is_directory and replaced.is_directory:
            raise pyfuse3.FUSEError(errno.EISDIR)

    def _same_file(self, child: Child, replaced: Child | None) -> bool:
        return (
            replaced is not None
            and child.version is not None
            and replaced.version is not None
            and not child.is_directory
            and child.version.file_id == replaced.version.file_id
        )

    # -- listing ---------------------------------------------------------------

    @answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        directory = self.state.table.directory(inode)
        self._next_listing += 1
        self._listings[self._next_listing] = Listing(directory)
        return FileHandleT(self._next_listing)

    @answered
    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    @answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Reads the directory anew from the last name given out, so that what is shown is
        what is there now."""
        listing = self._listings[fh]
        if listing.directory.gone:
            return
        async with self.state.gate.shared():
            await self.state.store.freshen()
            position = start_id
            if position < 2 and not self._reply_dots(listing, position, token):
                return
            position = max(position, 2)
            after = self._resume(listing, position)
            self._reply_children(listing, position, after, token)

    @answered
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self.state.make_durable()

    def _reply_dots(self, listing: Listing, position: int, token: ReaddirToken) -> bool:
        for index, dot in enumerate((b".", b"..")):
            if index < position:
                continue
            entry = EntryAttributes()
            # An inode number of 0 would hide the entry; ".." is resolved by the kernel itself.
            entry.st_ino = listing.directory.inode
            entry.st_mode = ModeT(stat.S_IFDIR)
            if not pyfuse3.readdir_reply(token, FileNameT(dot), entry, index + 1):
                return False
        return True

    def _resume(self, listing: Listing, position: int) -> str:
        """The name to go on after. A position that is no longer remembered is found again
        by counting from the start."""
        if position == 2:
            return ""
        name = listing.name_at(position)
        if name is not None:
            return name
        after = ""
        left = position - 2
        while left > 0:
            page = self._page(listing.directory, after, min(left, 1000))
            if not page:
                break
            left -= len(page)
            after = page[-1].name
        return after

    def _page(self, directory: Directory, after: str, limit: int) -> list[Child]:
        if directory is self.state.table.root:
            buckets = sorted(self.state.keymap.buckets(), key=lambda bucket: bucket.name)
            following = [bucket.name for bucket in buckets if bucket.name > after]
            return [Child(name, True, None) for name in following[:limit]]
        try:
            return self.state.keymap.children(directory.name[0], prefix(directory.name), after, limit)
        except NoSuchBucket:
            return []

    def _reply_children(self, listing: Listing, position: int, after: str, token: ReaddirToken) -> None:
        directory = listing.directory
        while True:
            page = self._page(directory, after, LISTING_PAGE)
            for child in page:
                name = child_name(directory.name, child.name)
                if name[1]:
                    node, entry = self._child_entry(name, child)
                else:
                    node = bucket = self.state.table.ensure_directory(name)
                    entry = self._bucket_entry(bucket)
                position += 1
                if not pyfuse3.readdir_reply(token, FileNameT(child.name.encode()), entry, position):
                    self.state.table.drop_unused(node)
                    return
                self._told(name, node, entry)
                listing.passed(position, child.name)
                after = child.name
            if len(page) < LISTING_PAGE:
                return
