"""Collections without pause under many writers, readers, copiers and deleters of the same
few contents: the same chunk dies and comes back all the time. OBJFS_TEST_SEED and
OBJFS_CHURN_SECONDS set the seed and how long it runs."""

from __future__ import annotations

import os
import random
from pathlib import Path

import anyio
import pytest

from engine.care.checkpoint import checkpoint
from engine.care.collect import collect
from engine.changes import (
    CompleteUpload,
    CreateBucket,
    CreateUpload,
    DeleteKey,
    Origin,
    PartChoice,
    PutPart,
    PutVersion,
)
from engine.errors import NoSuchKey
from engine.store import Store, init_store, open_store
from engine.types import Content, ObjectPart

ORIGIN = Origin(requester="test")
SEED = int(os.environ.get("OBJFS_TEST_SEED", "11"))
SECONDS = float(os.environ.get("OBJFS_CHURN_SECONDS", "6"))
SIZES = (300, 20_000, 64_000, 90_000, 700_000, 2_500_000)
CLIENTS, KEYS = 5, 3


def content_of(number: int) -> bytes:
    return random.Random(number).randbytes(SIZES[number % len(SIZES)])


class Client:
    """Changes keys of its own, on contents it shares with all others."""

    def __init__(self, store: Store, number: int) -> None:
        self.store = store
        self.dice = random.Random(SEED * 100 + number)
        self.keys = [f"client{number}-{key}" for key in range(KEYS)]
        self.expected: dict[str, bytes] = {}
        self.done = 0

    async def run(self) -> None:
        steps = (self.put, self.put, self.delete, self.copy, self.read, self.read_slowly, self.upload)
        while True:
            await self.dice.choice(steps)(self.dice.choice(self.keys))
            self.done += 1

    async def write(self, content: bytes) -> Content:
        writer = self.store.open_writer()
        for start in range(0, len(content), 200_000):
            await writer.write(content[start : start + 200_000])
            await anyio.lowlevel.checkpoint()
        return await writer.finish()

    async def put(self, key: str) -> None:
        content = content_of(self.dice.randrange(12))
        with self.store.pins.hold():
            change = PutVersion("bucket", key, await self.write(content), etag="e")
            with anyio.CancelScope(shield=True):  # so that it is known whether it happened
                await self.store.commit(change, ORIGIN)
                self.expected[key] = content

    async def upload(self, key: str) -> None:
        first, last = content_of(self.dice.randrange(12)), content_of(self.dice.randrange(12))
        upload_id = (await self.store.commit(CreateUpload("bucket", key), ORIGIN)).upload_id
        assert upload_id is not None
        for number, content in ((1, first), (2, last)):
            with self.store.pins.hold():
                part = PutPart("bucket", key, upload_id, number, await self.write(content), md5=b"m" * 16)
                await self.store.commit(part, ORIGIN)
        with self.store.pins.hold():
            parts = self.store.keymap.parts(upload_id)
            whole = await self.store.concatenate([part.manifest for part in parts])
            choices = [PartChoice(part.number, part.lsn) for part in parts]
            sizes = [ObjectPart(part.number, part.size) for part in parts]
            with anyio.CancelScope(shield=True):
                await self.store.commit(
                    CompleteUpload("bucket", key, upload_id, choices, whole, etag="e-2", parts=sizes), ORIGIN
                )
                self.expected[key] = first + last

    async def delete(self, key: str) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self.store.commit(DeleteKey("bucket", key, must_exist=True), ORIGIN)
            except NoSuchKey:
                assert key not in self.expected
            self.expected.pop(key, None)

    async def copy(self, key: str) -> None:
        source = self.dice.choice(self.keys)
        with self.store.pins.hold():
            version = self.store.keymap.head("bucket", source)
            if version is None:
                return
            content = self.expected[source]
            await anyio.sleep(self.dice.random() * 0.1)
            with anyio.CancelScope(shield=True):
                await self.store.commit(PutVersion("bucket", key, Content(version.manifest), etag="e"), ORIGIN)
                self.expected[key] = content

    async def read(self, key: str, pause: float = 0.0) -> None:
        with self.store.pins.hold():
            version = self.store.keymap.head("bucket", key)
            assert (version is None) == (key not in self.expected)
            if version is None:
                return
            content = self.expected[key]
            found = b""
            async for piece in self.store.read(version.manifest):
                found += piece
                await anyio.sleep(pause)
            assert found == content, f"{key} reads wrong; seed {SEED}"

    async def read_slowly(self, key: str) -> None:
        await self.read(key, 0.02)


@pytest.mark.anyio
async def test_churn(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init_store(data, k=2, m=1)
    dice = random.Random(SEED)
    async with open_store(data) as store, open_store(data) as beside:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        clients = [Client(store if number % 2 else beside, number) for number in range(CLIENTS)]
        with anyio.CancelScope() as end:
            async with anyio.create_task_group() as tasks:
                for client in clients:
                    tasks.start_soon(client.run)
                end.deadline = anyio.current_time() + SECONDS
                while True:
                    parts = dice.choice((store, beside)).parts
                    if dice.random() < 0.1:
                        await checkpoint(parts, force=True)
                    result = await collect(parts, compact=dice.random() < 0.7, wait_seconds=10)
                    assert result.reasons == result.unsealed == []
        assert all(client.done > 3 for client in clients)
        for client in clients:
            client.store = store
            for key in client.keys:
                await client.read(key)
        assert await store.fsck() == [], f"seed {SEED}"
        for client in clients:
            for key in client.keys:
                await client.delete(key)
        await collect(store.parts, abandoned_after=0)
        assert store.keymap.counters()["chunks"] == 0
        assert not list(data.glob("nodes/*/segments/*/*")) and not list(data.glob("nodes/*/quarantine/*"))
