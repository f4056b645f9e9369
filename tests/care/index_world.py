"""A store with everything in it, and its keymap as rows, for the tests of checkpoints and
of rebuilding."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from engine.changes import (
    CreateBucket,
    CreateUpload,
    DeleteKey,
    Door,
    Link,
    Origin,
    PutPart,
    PutVersion,
    SetAttributes,
    SetBucketVersioning,
    SetTags,
)
from engine.store import Store
from engine.types import Access, Attributes, Content, Versioning

ORIGIN = Origin(requester="test", door=Door.MOUNT)
DERIVED = ("answered", "meta", "sqlite_sequence")


async def content_of(store: Store, data: bytes) -> Content:
    writer = store.open_writer()
    for start in range(0, len(data), 300_000):
        await writer.write(data[start : start + 300_000])
    return await writer.finish()


async def put(store: Store, key: str, data: bytes, bucket: str = "bucket", **fields: Any) -> None:
    with store.pins.hold():
        content = await content_of(store, data)
        await store.commit(PutVersion(bucket, key, content, etag=str(len(data)), **fields), ORIGIN)


async def get(store: Store, key: str, bucket: str = "bucket") -> bytes:
    head = store.keymap.head(bucket, key)
    assert head is not None, key
    return b"".join([bytes(piece) async for piece in store.read(head.manifest)])


async def fill(store: Store, seed: int, *, small: int = 40) -> dict[str, bytes]:
    """Small content that rides in the journal and some that does not; what there is then."""
    if not store.keymap.buckets():
        await store.commit(CreateBucket("bucket"), ORIGIN)
    rng = random.Random(seed)
    contents = {f"s{seed}/{number:04}": rng.randbytes(rng.randrange(1, 20_000)) for number in range(small)}
    contents[f"s{seed}/big"] = rng.randbytes(1_300_000)
    contents[f"s{seed}/empty"] = b""
    for key, data in contents.items():
        await put(store, key, data)
    return contents


async def fill_with_everything(store: Store) -> dict[str, bytes]:
    contents = await fill(store, 1, small=15)
    await store.commit(CreateBucket("versioned", owner="ann"), ORIGIN)
    await store.commit(SetBucketVersioning("versioned", Versioning.ENABLED), ORIGIN)
    for number in range(4):
        await put(store, "many", b"version %d" % number, "versioned", user_metadata={"number": str(number)})
    await store.commit(DeleteKey("versioned", "many"), ORIGIN)
    await put(store, "gone", b"gone", "versioned")
    await store.commit(DeleteKey("versioned", "gone"), ORIGIN)
    await store.commit(SetTags("bucket", "s1/0001", {"colour": "blue", "ümlaut": "ß"}), ORIGIN)
    attributes = Attributes(mode=0o100640, uid=12, gid=34, mtime_ns=5, xattrs={"user.a": b"\x00\xff"})
    await store.commit(SetAttributes("bucket", "s1/0002", attributes, replace_xattrs=True), ORIGIN)
    await store.commit(Link("bucket", "s1/0003", "bucket", "linked"), ORIGIN)
    contents["linked"] = contents["s1/0003"]
    await store.users.add("ann", access=Access.READ)
    made = await store.commit(CreateUpload("bucket", "upload", tags={"a": "b"}), ORIGIN)
    assert made.upload_id is not None
    for number in (1, 2):
        with store.pins.hold():
            part = await content_of(store, random.Random(number).randbytes(6_000))
            await store.commit(PutPart("bucket", "upload", made.upload_id, number, part, bytes(16)), ORIGIN)
    return contents


async def check(store: Store, contents: dict[str, bytes]) -> None:
    for key, data in contents.items():
        assert await get(store, key) == data, key
    assert await store.fsck() == []


def dump(data: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the keymap's tables, but for what only this process's past explains."""
    db = sqlite3.connect(data / "index" / "keymap.sqlite")
    try:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        found = {}
        for table in sorted(set(tables).difference(DERIVED)):
            found[table] = sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
        return found
    finally:
        db.close()


def forget_index(data: Path) -> None:
    shutil.rmtree(data / "index")


def node_files(data: Path, pattern: str) -> list[Path]:
    """Files on the nodes, such as "index/*.snapshot"."""
    return sorted(path for node in (data / "nodes").iterdir() for path in node.glob(pattern))
