"""The index process is killed with -9 while writers of another process go on."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from engine.changes import CreateBucket, Origin, PutVersion
from engine.store import Opening, Store, init_store, open_store

ORIGIN = Origin(requester="test")
KILLS = 3
WRITERS = 4
HANGS_AFTER_SECONDS = 120  # decides nothing: a test that hangs must end
pytestmark = pytest.mark.anyio


def start_index(data: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "engine.process", str(data)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


class Acknowledged:
    """Digests by key of what was acknowledged, in order."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self._more = anyio.Event()

    def add(self, key: str, digest: str) -> None:
        self.digests[key] = digest
        self._more.set()
        self._more = anyio.Event()

    async def grow_by(self, count: int) -> None:
        """Return when so many more are acknowledged."""
        wanted = len(self.digests) + count
        while len(self.digests) < wanted:
            await self._more.wait()


async def write(store: Store, number: int, rng: random.Random, enough: anyio.Event, acknowledged: Acknowledged) -> None:
    count = 0
    while not enough.is_set():
        content = rng.randbytes(rng.choice([0, 10, 5_000, 100_000, 2_000_000]))
        key = f"{number}/{count}"
        count += 1
        with store.pins.hold():
            writer = store.open_writer()
            await writer.write(content)
            await store.commit(PutVersion("bucket", key, await writer.finish(), etag="e"), ORIGIN)
        acknowledged.add(key, hashlib.sha256(content).hexdigest())


async def test_acknowledged_writes_survive_and_writers_go_on(tmp_path: Path) -> None:
    seed = int(os.environ.get("OBJFS_TEST_SEED", "5"))
    data = tmp_path / "data"
    init_store(data)
    acknowledged, enough = Acknowledged(), anyio.Event()
    dice = random.Random(seed)
    index = await anyio.to_thread.run_sync(start_index, data)
    try:
        async with open_store(data, Opening.JOIN) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            with anyio.fail_after(HANGS_AFTER_SECONDS):
                async with anyio.create_task_group() as tasks:
                    for number in range(WRITERS):
                        tasks.start_soon(write, store, number, random.Random(seed + number), enough, acknowledged)
                    for _ in range(KILLS):
                        await acknowledged.grow_by(dice.randint(WRITERS, 8 * WRITERS))  # … and more are on their way
                        index.kill()
                        index.wait()
                        index = await anyio.to_thread.run_sync(start_index, data)
                    await acknowledged.grow_by(2 * WRITERS)  # the writers go on after the last one too
                    enough.set()
        index.kill()
        index.wait()
        async with open_store(data) as store:
            for key, digest in acknowledged.digests.items():
                head = store.keymap.head("bucket", key)
                assert head is not None, f"{key} was acknowledged and is gone (seed {seed})"
                found = hashlib.sha256(b"".join([bytes(piece) async for piece in store.read(head.manifest)]))
                assert found.hexdigest() == digest, f"{key} was acknowledged and differs (seed {seed})"
            assert await store.fsck() == []
            assert (await store.status())["under_redundancy"] == 0
    finally:
        index.kill()
        index.wait()
