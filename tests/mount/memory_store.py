"""A store in memory with just what the mount uses: the mount's own tests run on it and on
the real store alike."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from engine.changes import (
    Change,
    CommitResult,
    CreateBucket,
    DeleteBucket,
    DeleteKey,
    Link,
    Origin,
    PutVersion,
    Record,
    Rename,
    SetAttributes,
    Touched,
)
from engine.errors import (
    AlreadyExists,
    BucketExists,
    BucketNotEmpty,
    DirectoryNotEmpty,
    InvalidBucketName,
    NoSuchBucket,
    NoSuchKey,
)
from engine.interfaces import Buffer, Child, Confirm, FeedBatch
from engine.types import Attributes, Bucket, Content, InlineEntry, Manifest, Version

Key = tuple[str, str]


class MemoryWriter:
    def __init__(self) -> None:
        self.size = 0
        self._content = bytearray()

    async def write(self, data: Buffer) -> None:
        self.size += len(data)
        self._content += data

    async def finish(self) -> Content:
        return Content(Manifest([InlineEntry(bytes(self._content))]))

    async def abort(self) -> None:
        pass


class MemoryKeymap:
    def __init__(self) -> None:
        self.by_bucket: dict[str, Bucket] = {}
        self.versions: dict[Key, Version] = {}
        self.lsn = 0

    def applied_lsn(self) -> int:
        return self.lsn

    def bucket(self, name: str) -> Bucket:
        if name not in self.by_bucket:
            raise NoSuchBucket(name)
        return self.by_bucket[name]

    def buckets(self) -> list[Bucket]:
        return list(self.by_bucket.values())

    def head(self, bucket: str, key: str) -> Version | None:
        self.bucket(bucket)
        return self.versions.get((bucket, key))

    def names(self, file_id: int) -> list[Key]:
        return [key for key, version in self.versions.items() if version.file_id == file_id]

    def children(self, bucket: str, parent: str, after: str = "", limit: int = 1000) -> list[Child]:
        self.bucket(bucket)
        found: dict[str, Child] = {}
        for (other, key), version in sorted(self.versions.items()):
            if other != bucket or not key.startswith(parent) or key == parent:
                continue
            name, slash, rest = key[len(parent) :].partition("/")
            if slash:
                marker = version if not rest else self.versions.get((bucket, f"{parent}{name}/"))
                found[name] = Child(name, True, marker)
            elif name not in found:
                found[name] = Child(name, False, version)
        return [found[name] for name in sorted(found) if name > after][:limit]

    def lookup(self, bucket: str, parent: str, name: str) -> Child | None:
        return next((child for child in self.children(bucket, parent) if child.name == name), None)


class MemoryIndex:
    def __init__(self) -> None:
        self.keymap = MemoryKeymap()
        self.commits: list[Change] = []
        self._subscribers: dict[str, trio.MemorySendChannel[tuple[FeedBatch, trio.Event]]] = {}

    async def wait_durable(self, lsn: int) -> None:
        await trio.lowlevel.checkpoint()

    async def subscribe(
        self, *, subscriber_id: str, confirms: bool, from_lsn: int | None = None
    ) -> AsyncIterator[tuple[FeedBatch, Confirm]]:
        send, receive = trio.open_memory_channel[tuple[FeedBatch, trio.Event]](100)
        self._subscribers[subscriber_id] = send
        async for batch, event in receive:

            async def confirm(event: trio.Event = event) -> None:
                event.set()

            yield batch, confirm

    async def commit(self, change: Change, origin: Origin, *, durable: bool = True) -> CommitResult:
        keymap = self.keymap
        keymap.lsn += 1
        now = time.time_ns()
        before = dict(keymap.versions)
        result = CommitResult(keymap.lsn, now)
        with self._undone_on_error():
            version = getattr(self, f"_{type(change).__name__}")(change, keymap.lsn, now)
        result = msgspec.structs.replace(result, version=version)
        self.commits.append(change)
        touched = [
            Touched(bucket, key, (before.get((bucket, key)) or keymap.versions[bucket, key]).file_id)
            for bucket, key in before.keys() | keymap.versions.keys()
            if before.get((bucket, key)) != keymap.versions.get((bucket, key))
        ]
        if isinstance(change, CreateBucket | DeleteBucket):
            touched.append(Touched(change.bucket, ""))
        batch = FeedBatch(keymap.lsn, keymap.lsn, [Record(keymap.lsn, now, 1, origin, change)], touched)
        for subscriber, channel in self._subscribers.items():
            event = trio.Event()
            await channel.send((batch, event))
            if subscriber != origin.mount_id:
                with trio.fail_after(5):
                    await event.wait()
        return result

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        versions = dict(self.keymap.versions)
        try:
            yield
        except BaseException:
            self.keymap.versions = versions
            raise

    def _below(self, bucket: str, key: str) -> list[Key]:
        return [name for name in self.keymap.versions if name[0] == bucket and name[1].startswith(key)]

    def _PutVersion(self, change: PutVersion, lsn: int, now: int) -> Version | None:
        keymap = self.keymap
        keymap.bucket(change.bucket)
        bare = change.key.rstrip("/")
        names = [(change.bucket, change.key)]
        absent = change.condition is not None and change.condition.absent_path
        if absent and ((change.bucket, bare) in keymap.versions or self._below(change.bucket, bare + "/")):
            raise AlreadyExists(change.key)
        if change.file_id is not None:
            names = keymap.names(change.file_id)
            if not names:
                return None
        old = keymap.versions.get(names[0])
        version = None
        for bucket, key in names:
            version = keymap.versions[bucket, key] = Version(
                bucket, key, "null", lsn, now, change.content.size, change.etag,
                file_id=old.file_id if old else lsn, manifest=change.content.manifest,
                attributes=change.attributes, link_count=len(names),
            )  # fmt: skip
        return version

    def _DeleteKey(self, change: DeleteKey, lsn: int, now: int) -> None:
        keymap = self.keymap
        version = keymap.versions.get((change.bucket, change.key))
        if change.empty_directory and len(self._below(change.bucket, change.key)) > (version is not None):
            raise DirectoryNotEmpty(change.key)
        if version is None:
            if change.must_exist:
                raise NoSuchKey(change.key)
            return
        del keymap.versions[change.bucket, change.key]
        self._count_links(version.file_id)
        parent = change.key.rstrip("/").rpartition("/")[0]
        if change.keep_parent and parent and not self._below(change.bucket, parent + "/"):
            keymap.versions[change.bucket, parent + "/"] = Version(
                change.bucket, parent + "/", "null", lsn, now, file_id=lsn
            )

    def _count_links(self, file_id: int) -> None:
        names = self.keymap.names(file_id)
        for name in names:
            version = self.keymap.versions[name]
            self.keymap.versions[name] = msgspec.structs.replace(version, link_count=len(names))

    def _Rename(self, change: Rename, lsn: int, now: int) -> None:
        source, target = (change.bucket, change.key), (change.target_bucket, change.target_key)
        moving = self._take(source)
        if not moving:
            raise NoSuchKey(change.key)
        replaced = self._take(target)
        if replaced and change.no_replace:
            raise AlreadyExists(change.target_key)
        if change.exchange:
            self._put_back(replaced, target, source)
        elif len(replaced) > 1 or (replaced and change.target_key.endswith("/") and target not in replaced):
            raise DirectoryNotEmpty(change.target_key)
        self._put_back(moving, source, target)
        for version in replaced.values():
            self._count_links(version.file_id)
        parent = change.key.rstrip("/").rpartition("/")[0]
        if parent and not self._below(change.bucket, parent + "/"):
            marker = Version(change.bucket, parent + "/", "null", lsn, now, file_id=lsn)
            self.keymap.versions[change.bucket, parent + "/"] = marker

    def _take(self, name: Key) -> dict[Key, Version]:
        names = self._below(*name) if name[1].endswith("/") else [name] if name in self.keymap.versions else []
        return {taken: self.keymap.versions.pop(taken) for taken in names}

    def _put_back(self, versions: dict[Key, Version], source: Key, target: Key) -> None:
        for (_, key), version in versions.items():
            moved = target[1] + key[len(source[1]) :]
            self.keymap.versions[target[0], moved] = msgspec.structs.replace(version, bucket=target[0], key=moved)

    def _Link(self, change: Link, lsn: int, now: int) -> None:
        target = (change.target_bucket, change.target_key)
        if target in self.keymap.versions or self._below(change.target_bucket, change.target_key + "/"):
            raise AlreadyExists(change.target_key)
        version = self.keymap.versions[change.bucket, change.key]
        self.keymap.versions[target] = msgspec.structs.replace(version, bucket=target[0], key=target[1])
        self._count_links(version.file_id)

    def _SetAttributes(self, change: SetAttributes, lsn: int, now: int) -> None:
        keymap = self.keymap
        if not change.key:
            bucket = keymap.bucket(change.bucket)
            attributes = _merged(bucket.attributes, change)
            keymap.by_bucket[change.bucket] = msgspec.structs.replace(bucket, attributes=attributes)
            return
        names = keymap.names(change.file_id) if change.file_id is not None else [(change.bucket, change.key)]
        for name in names:
            version = keymap.versions.get(name) or Version(*name, "null", lsn, now, file_id=lsn)
            keymap.versions[name] = msgspec.structs.replace(version, attributes=_merged(version.attributes, change))

    def _CreateBucket(self, change: CreateBucket, lsn: int, now: int) -> None:
        if len(change.bucket) < 3 or change.bucket != change.bucket.lower():
            raise InvalidBucketName(change.bucket)
        if change.bucket in self.keymap.by_bucket:
            raise BucketExists(change.bucket)
        self.keymap.by_bucket[change.bucket] = Bucket(change.bucket, lsn, now, attributes=change.attributes)

    def _DeleteBucket(self, change: DeleteBucket, lsn: int, now: int) -> None:
        self.keymap.bucket(change.bucket)
        if self._below(change.bucket, ""):
            raise BucketNotEmpty(change.bucket)
        del self.keymap.by_bucket[change.bucket]


def _merged(present: Attributes | None, change: SetAttributes) -> Attributes:
    present = present or Attributes()
    fields: dict[str, Any] = {
        name: getattr(change.attributes, name)
        for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns")
        if getattr(change.attributes, name) is not None
    }
    if change.replace_xattrs:
        fields["xattrs"] = change.attributes.xattrs
    return msgspec.structs.replace(present, **fields)


class MemoryStore:
    def __init__(self, directory: Path) -> None:
        self.data = directory
        self.index = MemoryIndex()
        self.keymap = self.index.keymap
        self.free = 1 << 30

    async def freshen(self) -> None:
        pass

    async def commit(self, change: Change, origin: Origin, *, durable: bool = True) -> CommitResult:
        return await self.index.commit(change, origin, durable=durable)

    def open_writer(self) -> MemoryWriter:
        return MemoryWriter()

    async def rewrite(self, base: Manifest, size: int, dirty: Sequence[tuple[int, Buffer]]) -> Content:
        content = bytearray(_bytes(base)[:size].ljust(size, b"\0"))
        for offset, data in dirty:
            assert offset + len(data) <= size
            content[offset : offset + len(data)] = data
        return Content(Manifest([InlineEntry(bytes(content))]))

    async def slice(self, manifest: Manifest, offset: int, length: int) -> Content:
        return Content(Manifest([InlineEntry(_bytes(manifest)[offset : offset + length])]))

    async def read_range(self, manifest: Manifest, offset: int, length: int) -> memoryview:
        return memoryview(_bytes(manifest))[offset : offset + length]

    def space(self) -> tuple[int, int]:
        return 1 << 30, self.free

    def check_space(self, content_bytes: int) -> None:
        from engine.errors import NodeFull

        if content_bytes > self.free:
            raise NodeFull("full")


def _bytes(manifest: Manifest) -> bytes:
    return b"".join(entry.content for entry in manifest.entries if isinstance(entry, InlineEntry))
