"""The index process is killed with -9 while writers of another process go on."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from engine.changes import CreateBucket, Origin, PutVersion
from engine.store import Opening, Store, init_store, open_store

ORIGIN = Origin(requester="test")
KILLS = 3
pytestmark = pytest.mark.anyio


def start_index(data: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "engine.process", str(data)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


async def write(store: Store, number: int, rng: random.Random, until: float, acknowledged: dict[str, str]) -> None:
    count = 0
    while time.monotonic() < until:
        content = rng.randbytes(rng.choice([0, 10, 5_000, 100_000, 2_000_000]))
        key = f"{number}/{count}"
        count += 1
        with store.pins.hold():
            writer = store.open_writer()
            await writer.write(content)
            await store.commit(PutVersion("bucket", key, await writer.finish(), etag="e"), ORIGIN)
        acknowledged[key] = hashlib.sha256(content).hexdigest()


async def test_acknowledged_writes_survive_and_writers_go_on(tmp_path: Path) -> None:
    seed = int(os.environ.get("OBJFS_TEST_SEED", "5"))
    data = tmp_path / "data"
    init_store(data)
    acknowledged: dict[str, str] = {}
    index = await anyio.to_thread.run_sync(start_index, data)
    try:
        async with open_store(data, Opening.JOIN) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            until = time.monotonic() + KILLS * 1.5 + 1
            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(write, store, number, random.Random(seed + number), until, acknowledged)
                for _ in range(KILLS):
                    await anyio.sleep(1.2)
                    index.kill()
                    index.wait()
                    before = len(acknowledged)
                    index = await anyio.to_thread.run_sync(start_index, data)
            assert len(acknowledged) > before, "no write was acknowledged after the last kill"
        index.kill()
        index.wait()
        async with open_store(data) as store:
            for key, digest in acknowledged.items():
                head = store.keymap.head("bucket", key)
                assert head is not None, f"{key} was acknowledged and is gone (seed {seed})"
                found = hashlib.sha256(b"".join([bytes(piece) async for piece in store.read(head.manifest)]))
                assert found.hexdigest() == digest, f"{key} was acknowledged and differs (seed {seed})"
            assert await store.fsck() == []
            assert (await store.status())["under_redundancy"] == 0
    finally:
        index.kill()
        index.wait()
