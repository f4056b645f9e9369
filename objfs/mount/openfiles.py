"""Open files: what was written and not yet published, and how it is published.

All opens of an inode in this mount share one OpenFile, so every descriptor sees every
write at once. What is written in sequence from the start of an empty file streams into
the store as it arrives; everything else waits in DirtyRanges. publish() makes it one new
version under every name the file has by then.

The lock orders writes, truncations and publications of one file. Reads take it only when
they must publish a stream to read it back; otherwise they work on what base and dirty
ranges are at that moment.

An S3 write puts another file in the key's place: who has the old one open goes on reading
the version it has, which is immutable, and can publish nothing any more. What another
mount publishes is a write to this very file, and shows here, as on any filesystem.
"""

from __future__ import annotations

import errno
import hashlib
import time
import uuid
from typing import TYPE_CHECKING

import msgspec
import pyfuse3
import trio

from engine import limits
from engine.changes import CommitResult, PutVersion
from engine.errors import StoreError
from engine.interfaces import Buffer
from engine.types import Attributes, Content, Manifest, Version
from objfs.mount.attributes import mode_of, without_privileges
from objfs.mount.dirty import DirtyRanges

if TYPE_CHECKING:
    from engine.pins import Pin
    from engine.store import ContentWriter
    from objfs.mount.inodes import File
    from objfs.mount.state import MountState

THREAD_BYTES = 64 * 1024  # below this a thread hop costs more than the hash or the copy
STREAM_BYTES = 1024 * 1024


class Stream:
    """A content writer and the MD5 of what went through it."""

    def __init__(self, writer: ContentWriter) -> None:
        self._writer = writer
        self._md5 = hashlib.md5(usedforsecurity=False)

    async def write(self, content: Buffer) -> None:
        if len(content) < THREAD_BYTES:
            self._md5.update(content)
            await self._writer.write(content)
            return
        failure: StoreError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self._md5.update, content)
            try:
                await self._writer.write(content)
            except StoreError as error:  # raised below, outside the nursery's exception group
                failure = error
        if failure is not None:
            raise failure

    async def finish(self) -> tuple[Content, str]:
        """The content and its ETag."""
        return await self._writer.finish(), self._md5.hexdigest()

    async def abort(self) -> None:
        await self._writer.abort()


class OpenFile:
    """`base` up to `base_bytes`, zeros up to `size`, and the dirty ranges over both."""

    def __init__(self, state: MountState, node: File, version: Version, pin: Pin) -> None:
        self.node = node
        self._pin = pin  # taken before `version` was read
        self.opens = 0
        self.unlinked = False  # no name leads here any more, so nothing can be published
        self.replaced = False  # and that because another door put another file in its place
        self.changed = False
        self.size = self.base_bytes = version.size
        self.mtime_ns = self.ctime_ns = 0
        self.version = version
        self._state = state
        self._base: Manifest = version.manifest
        self._dirty = DirtyRanges(state.spill_directory())
        self._stream: Stream | None = None
        self._finished: tuple[Content, str] | None = None  # streamed, not yet committed
        self._own_lsn: int | None = None  # this open's own earlier version
        self._failed: Exception | None = None
        self._reserved = 0
        self._lock = trio.Lock()
        self._reading: list[Manifest] = []  # what the reads under way read

    # -- its pin (objfs.mount.pinning) -----------------------------------------

    @property
    def pin_lsn(self) -> int:
        return self._pin.lsn

    @property
    def base(self) -> Manifest:
        return self._base

    @property
    def at_rest(self) -> bool:
        """Nothing under way needs the pin for anything but `base`."""
        streaming = self._stream is not None or self._finished is not None
        return not streaming and not self._lock.locked() and all(base is self._base for base in self._reading)

    def renew_pin(self) -> bool:
        """False if the version this file reads is not the present one any more: its chunks
        may have no other name."""
        pin = self._state.store.pins.take()
        version = self._state.version_of(self.node)
        if version is None or version.lsn != self.version.lsn:
            pin.end()
            return False
        self._pin.end()
        self._pin = pin
        return True

    def take_pin(self) -> None:
        """A new pin for the old one: the base's chunks are held."""
        pin, self._pin = self._pin, self._state.store.pins.take()
        pin.end()

    # -- reading ---------------------------------------------------------------

    async def read(self, offset: int, length: int) -> Buffer:
        """Raises Unreadable, FragmentCorrupt and what publishing raises."""
        if self._stream is not None or self._finished is not None:
            if offset >= self.size:
                return b""
            await self.publish(durable=False)
        self._check_failed()
        return await self._read(offset, min(offset + length, self.size))

    async def _read(self, offset: int, end: int) -> Buffer:
        if offset >= end:
            return b""
        over = self._dirty.read(offset, end)
        if len(over) == 1 and len(over[0][1]) == end - offset:
            return over[0][1]
        base_end = min(end, self.base_bytes)
        under: Buffer = b""
        if base_end > offset:
            under = await self._read_base(offset, base_end - offset)
        if not over and len(under) == end - offset:
            return under
        content = bytearray(end - offset)
        content[: len(under)] = under
        for start, dirty in over:
            content[start - offset : start - offset + len(dirty)] = dirty
        return content

    async def _read_base(self, offset: int, length: int) -> Buffer:
        base = self._base
        self._reading.append(base)
        try:
            return await self._state.store.read_range(base, offset, length)
        finally:
            # By identity: equal manifests may be two versions'.
            del self._reading[next(place for place, one in enumerate(self._reading) if one is base)]

    # -- changing --------------------------------------------------------------

    async def write(self, offset: int, content: bytes) -> None:
        """Raises NodeFull, WritesStopped, OSError."""
        async with self._lock:
            self._check_failed()
            self._check_replaced()
            self._reserve(len(content))
            if self._finished is not None or (self._stream is not None and offset != self.size):
                await self._publish(durable=False)
            if self._may_stream(offset):
                self._stream = Stream(self._state.store.open_writer())
            if self._stream is not None:
                await self._write_stream(self._stream, content)
            elif len(content) <= THREAD_BYTES:
                self._dirty.write(offset, content)
            else:
                await trio.to_thread.run_sync(self._dirty.write, offset, content)
            self.size = max(self.size, offset + len(content))
            self._touch()

    async def truncate(self, size: int) -> None:
        """Raises what publishing raises, when a stream must be published first."""
        async with self._lock:
            self._check_failed()
            self._check_replaced()
            if size == self.size:
                self._touch()
                return
            if self._stream is not None or self._finished is not None:
                if size == 0:
                    await self._drop_stream()
                else:
                    await self._publish(durable=False)
            self._dirty.truncate(size)
            self.base_bytes = min(self.base_bytes, size)
            if size == 0:
                self._base = Manifest()
            self.size = size
            self._touch()

    def created(self, lsn: int) -> None:
        """This open made the file: its first publication replaces the empty version."""
        self._own_lsn = lsn

    def set_times(self, attributes: Attributes) -> None:
        """An explicit utimens holds against the times of earlier writes."""
        if attributes.mtime_ns is not None:
            self.mtime_ns = attributes.mtime_ns
        if attributes.ctime_ns is not None:
            self.ctime_ns = attributes.ctime_ns

    def _touch(self) -> None:
        self.changed = True
        self.mtime_ns = self.ctime_ns = time.time_ns()

    def _may_stream(self, offset: int) -> bool:
        return self._stream is None and offset == 0 and self.size == 0 and not self._dirty and not self.unlinked

    async def _write_stream(self, stream: Stream, content: bytes) -> None:
        try:
            await stream.write(content)
        except Exception as error:
            # What was streamed so far cannot be taken up again: say so until the file is closed.
            self._failed = error
            raise

    async def _drop_stream(self) -> None:
        if self._stream is not None:
            await self._stream.abort()
        self._stream = None
        self._finished = None

    def _reserve(self, content_bytes: int) -> None:
        self._state.check_space(content_bytes)
        self._reserved += content_bytes
        self._state.unpublished_bytes += content_bytes

    def _release_reserve(self) -> None:
        self._state.unpublished_bytes -= self._reserved
        self._reserved = 0

    def _check_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _check_replaced(self) -> None:
        """A write that nobody could ever see is refused. (Into a file that was removed
        one may write as anywhere else.)"""
        if self.replaced:
            raise pyfuse3.FUSEError(errno.ESTALE)

    # -- publishing ------------------------------------------------------------

    async def publish(self, *, durable: bool) -> None:
        """Publish what was written, if anything was. Raises NodeFull, WritesStopped,
        IndexUnavailable; what was written is then still there for the next try, unless
        it was a stream that broke."""
        async with self._lock:
            self._check_failed()
            await self._publish(durable=durable)

    async def settle(self) -> None:
        """Before the file may lose its last name: publish a stream, whose bytes no commit
        could name afterwards, and keep the attributes as they are now."""
        if self._stream is not None or self._finished is not None:
            await self.publish(durable=False)
        version = self._state.version_of(self.node)
        if version is not None and version.lsn == self.version.lsn:
            self.version = version

    def refresh(self) -> None:
        """Something else changed the file: take up its present version, unless writes of
        our own wait to replace it."""
        version = self._state.version_of(self.node)
        if version is None:
            self.lose_names()
        elif version.lsn == self.version.lsn:
            self.version = version  # its attributes may be newer
        elif not self.changed and not self._lock.locked():
            self.version = version
            self._base = version.manifest
            self.size = self.base_bytes = version.size
            self._own_lsn = None

    def lose_names(self) -> None:
        """No name leads here any more."""
        if not self.unlinked:
            self.unlinked = True
            self.replaced = self._state.holds_new_file(self.node.name)

    def version_unlinked(self) -> Version:
        return msgspec.structs.replace(self.version, size=self.size, link_count=0)

    def set_unlinked_attributes(self, attributes: Attributes) -> None:
        self.version = msgspec.structs.replace(self.version, attributes=attributes)

    async def close(self) -> None:
        """The last open is gone; what could not be published goes with it."""
        await self._drop_stream()
        self._dirty.clear()
        self._release_reserve()
        self._pin.end()

    async def _publish(self, *, durable: bool) -> None:
        if not self.changed:
            return
        if self.unlinked:
            await self._cannot_publish()
            return
        content, etag = await self._content()
        result = await self._commit(content, etag, durable=durable)
        if result.version is None:
            self.lose_names()
            await self._cannot_publish()
            return
        self._stream = self._finished = None
        self._adopt(content, result)
        self._dirty.clear()
        self.size = content.size
        self.changed = False
        self._release_reserve()

    async def _content(self) -> tuple[Content, str]:
        if self._finished is not None:
            return self._finished
        if self._stream is not None:
            try:
                self._finished = await self._stream.finish()
            except Exception as error:
                self._failed = error
                raise
            return self._finished
        if self.size <= limits.INLINE_BYTES_MAX or self._dirty.covers(0, self.size):
            return await self._whole()
        base = await self._cut_base()
        content = await self._state.store.rewrite(base, self.size, self._dirty.pieces(self.size))
        return content, f"{uuid.uuid4().hex}-1"

    async def _whole(self) -> tuple[Content, str]:
        """Store the file again from its first byte: small, or all of it is dirty."""
        stream = Stream(self._state.store.open_writer())
        try:
            for offset in range(0, self.size, STREAM_BYTES):
                await stream.write(await self._read(offset, min(offset + STREAM_BYTES, self.size)))
            return await stream.finish()
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.abort()
            raise

    async def _cut_base(self) -> Manifest:
        """The base without what a truncation took, which a later extension must not bring
        back. A cut through a tree makes new nodes, and a manifest that names chunks must
        be committed before it can be read: such a cut is published on its own."""
        if self.base_bytes >= min(self.size, self._base.length):
            return self._base
        sliced = await self._state.store.slice(self._base, 0, self.base_bytes)
        if sliced.new_chunks:
            result = await self._commit(sliced, f"{uuid.uuid4().hex}-1", durable=False)
            if result.version is not None:
                self._adopt(sliced, result)
        return sliced.manifest

    async def _commit(self, content: Content, etag: str, *, durable: bool) -> CommitResult:
        version = self._state.version_of(self.node) or self.version
        mode = mode_of(version)
        attributes = msgspec.structs.replace(
            version.attributes or Attributes(), mtime_ns=self.mtime_ns, ctime_ns=max(self.ctime_ns, self.mtime_ns)
        )
        if without_privileges(mode) != mode:
            attributes = msgspec.structs.replace(attributes, mode=without_privileges(mode))
        bucket, key = self.node.name
        change = PutVersion(
            bucket,
            key,
            content,
            etag,
            attributes=attributes,
            storage_class=version.storage_class,
            owner=version.owner,
            file_id=self.node.inode,
            replaces_lsn=self._own_lsn,
            keep_metadata=True,
        )
        return await self._state.commit(change, durable=durable)

    def _adopt(self, content: Content, result: CommitResult) -> None:
        assert result.version is not None, "only a published version is taken up"
        self.version = result.version
        self._base = content.manifest
        self.base_bytes = content.size
        self._own_lsn = self.node.cached_lsn = result.version.lsn

    async def _cannot_publish(self) -> None:
        """Another door deleted or replaced the file while it was written. Of a deleted one
        nobody expects to see more; of a replaced one whoever wrote it is told."""
        if self._stream is not None or self._finished is not None:
            # The streamed bytes were never committed, so nothing can read them back.
            await self._drop_stream()
            self._failed = pyfuse3.FUSEError(errno.ESTALE)
        self._check_replaced()
