"""What making something answers when another door is quick to undo it. The operations are called as
the kernel would call them: the moment in question is too short to be hit from outside."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from engine.changes import CreateBucket, DeleteBucket, DeleteKey, Door, Link, Origin, PutVersion
from engine.store import Store, init_store, open_store
from engine.types import Content, Manifest
from objfs.mount.operations import Operations

OTHER_DOOR = Origin(requester="other", door=Door.S3)
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@asynccontextmanager
async def operations_undone_at_once(data: Path) -> AsyncIterator[tuple[Operations, Store]]:
    """Whatever they make in `bucket`, or beside it, another door removes before they have answered."""
    init_store(data)
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), OTHER_DOOR)
        operations = Operations(store)
        true_commit = operations.state.commit

        async def commit_and_lose(change: Any, *arguments: Any, **named: Any) -> Any:
            result = await true_commit(change, *arguments, **named)
            if isinstance(change, PutVersion | Link):
                key = change.target_key if isinstance(change, Link) else change.key
                await store.commit(DeleteKey("bucket", key), OTHER_DOOR)
            if isinstance(change, CreateBucket):
                await store.commit(DeleteBucket(change.bucket), OTHER_DOOR)
            return result

        operations.state.commit = commit_and_lose  # type: ignore[method-assign]
        yield operations, store


CONTEXT: Any = SimpleNamespace(uid=os.getuid(), gid=os.getgid(), pid=1, umask=0o022)


async def look_up_bucket(operations: Operations) -> Any:
    return (await operations.lookup(operations.state.table.root.inode, b"bucket", CONTEXT)).st_ino


async def test_a_file_removed_as_soon_as_it_was_made_is_open_all_the_same(tmp_path: Path) -> None:
    async with operations_undone_at_once(tmp_path / "data") as (operations, store):
        bucket = await look_up_bucket(operations)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        info, entry = await operations.create(bucket, b"key", 0o644, flags, CONTEXT)
        assert entry.entry_timeout == 0, "the name leads nowhere"
        assert await operations.write(info.fh, 0, b"content") == 7
        assert bytes(await operations.read(info.fh, 0, 10)) == b"content"
        await operations.release(info.fh)
        assert store.keymap.head("bucket", "key") is None, "what was removed stays so"


async def test_whatever_was_removed_as_soon_as_it_was_made_was_made(tmp_path: Path) -> None:
    async with operations_undone_at_once(tmp_path / "data") as (operations, _store):
        bucket = await look_up_bucket(operations)
        made = {
            stat.S_IFLNK: await operations.symlink(bucket, b"symlink", b"target", CONTEXT),
            stat.S_IFIFO: await operations.mknod(bucket, b"pipe", stat.S_IFIFO | 0o644, 0, CONTEXT),
            stat.S_IFDIR: await operations.mkdir(bucket, b"directory", 0o755, CONTEXT),
        }
        for kind, entry in made.items():
            assert stat.S_IFMT(entry.st_mode) == kind, "the kernel refuses what it did not ask for"
            assert entry.entry_timeout == 0, "the name leads nowhere"
        for name in (b"symlink", b"pipe", b"directory"):
            with pytest.raises(pyfuse3.FUSEError):
                await operations.lookup(bucket, name, CONTEXT)
        for entry in made.values():
            await operations.forget([(entry.st_ino, 1)])
        assert len(operations.state.table) == 2, "the top and the bucket"


async def test_a_bucket_deleted_as_soon_as_it_was_made_was_made(tmp_path: Path) -> None:
    async with operations_undone_at_once(tmp_path / "data") as (operations, store):
        top = operations.state.table.root.inode
        entry = await operations.mkdir(top, b"quick", 0o755, CONTEXT)
        assert stat.S_ISDIR(entry.st_mode) and entry.entry_timeout == 0, "the name leads nowhere"
        with pytest.raises(pyfuse3.FUSEError):
            await operations.lookup(top, b"quick", CONTEXT)
        with pytest.raises(pyfuse3.FUSEError):
            await operations.mkdir(entry.st_ino, b"below", 0o755, CONTEXT)
        await store.commit(CreateBucket("quick"), OTHER_DOOR)
        again = await operations.lookup(top, b"quick", CONTEXT)
        assert again.st_ino != entry.st_ino, "who stands in the first one does not stand in the second"
        for told in (entry, again):
            await operations.forget([(told.st_ino, 1)])
        assert len(operations.state.table) == 1, "the top"


async def test_a_link_removed_as_soon_as_it_was_made_leaves_its_file(tmp_path: Path) -> None:
    async with operations_undone_at_once(tmp_path / "data") as (operations, store):
        await store.commit(PutVersion("bucket", "file", Content(Manifest()), etag="e"), OTHER_DOOR)
        bucket = await look_up_bucket(operations)
        file = await operations.lookup(bucket, b"file", CONTEXT)
        linked = await operations.link(file.st_ino, bucket, b"link", CONTEXT)
        assert linked.st_ino == file.st_ino and linked.entry_timeout == 0
        assert (await operations.lookup(bucket, b"file", CONTEXT)).st_ino == file.st_ino
        with pytest.raises(pyfuse3.FUSEError):
            await operations.lookup(bucket, b"link", CONTEXT)


async def test_what_is_removed_while_it_is_told_of_was_made(tmp_path: Path) -> None:
    init_store(tmp_path / "data")
    async with open_store(tmp_path / "data") as store:
        await store.commit(CreateBucket("bucket"), OTHER_DOOR)
        operations = Operations(store)
        bucket = await look_up_bucket(operations)
        keymap: Any = operations.state.keymap
        true_lookup = keymap.lookup

        async def make(name: bytes, kind: int) -> Any:
            seen: list[str] = []

            def only_once(bucket: str, parent: str, component: str) -> Any:
                seen.append(component)
                return true_lookup(bucket, parent, component) if len(seen) == 1 else None

            keymap.lookup = only_once
            try:
                match kind:
                    case stat.S_IFLNK:
                        return await operations.symlink(bucket, name, b"nowhere", CONTEXT)
                    case stat.S_IFDIR:
                        return await operations.mkdir(bucket, name, 0o755, CONTEXT)
                    case _:
                        return await operations.mknod(bucket, name, kind | 0o644, 0, CONTEXT)
            finally:
                keymap.lookup = true_lookup

        for kind in (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO):
            entry = await make(b"made %d" % kind, kind)
            assert stat.S_IFMT(entry.st_mode) == kind and operations.state.table.node(entry.st_ino).lookups == 1
