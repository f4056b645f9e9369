"""An index over memory nodes with the tables at its heels, and what tests say to it."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from engine.changes import (
    Change,
    CommitResult,
    DeleteKey,
    Door,
    Link,
    Origin,
    PutVersion,
    Rename,
    SetAttributes,
    SetBucketVersioning,
    SetTags,
)
from engine.frames import encode_frame
from engine.index.local import LocalIndex
from engine.index.opening import open_local_index
from engine.nodes.memory import MemoryNode
from engine.tables.service import LoadTree, TablesService
from engine.types import Attributes, ChunkEntry, Content, Manifest, NewChunk, TreeEntry, Versioning

STORE_ID = "5a" * 16
ORIGIN = Origin(requester="ann", request_id="", source_ip="10.0.0.7", door=Door.S3)


def content_of(text: bytes) -> Content:
    chunk_id = hashlib.sha256(text).digest()
    if not text:
        return Content(Manifest())
    new = NewChunk(chunk_id, len(text), frame=encode_frame(chunk_id, text))
    return Content(Manifest([ChunkEntry(chunk_id, len(text))]), [new])


def etag_of(text: bytes) -> str:
    return hashlib.md5(text).hexdigest()


def put(bucket: str, key: str, text: bytes = b"hello", **more: Any) -> PutVersion:
    return PutVersion(bucket, key, content_of(text), etag_of(text), **more)


async def no_trees(entry: TreeEntry) -> Manifest:
    raise AssertionError("these manifests are flat")


class Lab:
    """An index over memory nodes, with the tables at its heels."""

    def __init__(self, index: LocalIndex, service: TablesService) -> None:
        self.index = index
        self.service = service

    async def commit(self, change: Change, origin: Origin = ORIGIN) -> CommitResult:
        origin = Origin(origin.requester, os.urandom(8).hex(), origin.source_ip, origin.door)
        return await self.index.commit(change, origin)

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await self.service.query(sql)).to_pylist(maps_as_pydicts="strict")
        return rows


def memory_nodes(count: int = 4) -> dict[str, MemoryNode]:
    return {f"node{number}": MemoryNode(f"node{number}") for number in range(1, count + 1)}


@asynccontextmanager
async def opened(
    tmp_path: Path, nodes: dict[str, MemoryNode], *, m: int = 1, load_tree: LoadTree = no_trees, **options: Any
) -> AsyncIterator[Lab]:
    path = tmp_path / "index" / "tables.duckdb"
    async with open_local_index(tmp_path / "index", nodes, store_id=STORE_ID, m=m, missing={}) as index:
        service = TablesService(index, load_tree, path, store_id=STORE_ID, m=m, **options)
        async with anyio.create_task_group() as tasks:
            await tasks.start(service.run)
            yield Lab(index, service)
            tasks.cancel_scope.cancel()


def some_change(rng: random.Random, index: LocalIndex) -> Change:
    bucket = rng.choice(["red", "blue"])
    target_bucket = rng.choice(["red", "blue"])
    keys = ["a", "b", "dir/a", "dir/b", "dir/sub/c", "dir/", "other/", "other/d", "dir/sub/"]
    key = rng.choice(keys)
    files = [key for key in keys if not key.endswith("/")]
    head = index.keymap.head(bucket, key)
    file_id = head.file_id if head is not None and not head.delete_marker else None
    text = rng.choice([b"", b"x", b"yy" * 50, rng.randbytes(20)])
    match rng.randrange(13):
        case 0 | 1 | 2:
            return put(
                bucket,
                key,
                text,
                tags={"n": str(rng.randrange(3))},
                user_metadata={"u": "1"},
                new_file=rng.random() < 0.5,
            )
        case 3:
            return put(bucket, key, text, file_id=file_id, keep_metadata=True)
        case 4:
            replaces = head.lsn if head is not None and rng.random() < 0.7 else None
            return put(bucket, key, text, file_id=file_id, replaces_lsn=replaces)
        case 5:
            return DeleteKey(bucket, key)
        case 6:
            return DeleteKey(bucket, key, must_exist=True, keep_parent=True, empty_directory=key.endswith("/"))
        case 7:
            page = index.keymap.list_versions(bucket)
            chosen = rng.choice(page.versions) if page.versions else None
            version_id = chosen.version_id if chosen else "null"
            return DeleteKey(bucket, chosen.key if chosen else key, version_id=version_id, new_file=rng.random() < 0.5)
        case 8:
            return Rename(bucket, rng.choice(files), target_bucket, rng.choice(files), exchange=rng.random() < 0.2)
        case 9:
            return Rename(
                bucket, rng.choice(["dir/", "dir/sub/", "other/"]), target_bucket, rng.choice(["dir/", "new/"])
            )
        case 10:
            return Link(bucket, rng.choice(files), bucket, rng.choice(files))
        case 11:
            return SetAttributes(
                bucket, key, Attributes(mode=0o100600), file_id=file_id if rng.random() < 0.5 else None
            )
        case _:
            versioning = rng.choice([Versioning.ENABLED, Versioning.SUSPENDED])
            changes = [SetTags(bucket, key, {"x": "1"}), SetTags(bucket, key, {})]
            if rng.random() < 0.1:
                return SetBucketVersioning(bucket, versioning)
            return rng.choice(changes)
