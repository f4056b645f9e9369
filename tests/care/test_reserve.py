"""Full disks: content is refused when it is written, reads and deletes go on, and the
reserve lets collection and compaction make room. On real filesystems of a few MiB."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from engine.care.collect import collect
from engine.care.reserve import LEND_BYTES, Reserve, automatic_bytes
from engine.changes import CreateBucket, DeleteKey, Origin, PutVersion
from engine.errors import NodeFull
from engine.interfaces import NodeSpace
from engine.nodes.memory import MemoryNode
from engine.store import Store, init_store, open_store
from engine.types import Version

ORIGIN = Origin(requester="test")
MIB = 1024 * 1024
SEED = int(os.environ.get("OBJFS_TEST_SEED", "31"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 160 MiB for a whole store."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(directory)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no filesystem can be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


async def put(store: Store, key: str, content: bytes) -> Version:
    with store.pins.hold():
        writer = store.open_writer()
        for start in range(0, len(content), 300_000):
            await writer.write(content[start : start + 300_000])
        result = await store.commit(PutVersion("bucket", key, await writer.finish(), etag="e"), ORIGIN)
    assert result.version is not None
    return result.version


async def get(store: Store, key: str) -> bytes:
    version = store.keymap.head("bucket", key)
    assert version is not None
    return b"".join([bytes(piece) async for piece in store.read(version.manifest)])


async def fill(store: Store, size: int) -> dict[str, bytes]:
    """Write until it is refused; what was accepted."""
    dice, held = random.Random(SEED), dict[str, bytes]()
    for number in range(10_000):
        content = dice.randbytes(size)
        try:
            await put(store, f"{size}-{number}", content)
        except NodeFull:
            return held
        held[f"{size}-{number}"] = content
    raise AssertionError("the disk never filled up")


@pytest.mark.anyio
async def test_a_full_disk_refuses_writes_and_is_emptied_again(disk: Path) -> None:
    init_store(disk / "data", k=2, m=1, reserve_bytes=12 * MIB)
    async with open_store(disk / "data") as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        held = await fill(store, 3 * MIB)
        held |= await fill(store, 50_000)
        status = await store.status()
        assert status["space"]["content_free"] == 0 and status["reserved"] > 0
        for _ in range(3):  # refused for content that is stored in segments, and that rides
            with pytest.raises(NodeFull):
                await put(store, "big", random.Random(1).randbytes(2 * MIB))
            with pytest.raises(NodeFull):
                await put(store, "small", random.Random(2).randbytes(60_000))
        assert len(held) > 15
        for key, content in held.items():
            assert await get(store, key) == content
        kept = {key: content for number, (key, content) in enumerate(held.items()) if number % 4 == 0}
        for key in held.keys() - kept.keys():
            await store.commit(DeleteKey("bucket", key), ORIGIN)
        result = await collect(store.parts, compact=True)
        assert result.freed_bytes > 60 * MIB and result.reasons == []
        for key, content in kept.items():
            assert await get(store, key) == content
        await put(store, "again", random.Random(3).randbytes(5 * MIB))
        assert await store.fsck() == []
        store.parts.nodes.reserve.refill()
        assert (await store.status())["reserved"] == 3 * 12 * MIB


def take_all(disk: Path) -> None:
    """Somebody else fills the disk to its last byte."""
    ballast = os.open(disk / "ballast", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(ballast, 0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize)
    os.close(ballast)


@pytest.mark.anyio
async def test_a_store_on_a_disk_without_a_byte_left_opens_and_takes_deletes(disk: Path) -> None:
    init_store(disk / "data", k=2, m=1, reserve_bytes=6 * MIB)
    async with open_store(disk / "data") as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        content = random.Random(SEED).randbytes(3 * MIB)
        await put(store, "kept", content)
        await put(store, "gone", random.Random(1).randbytes(20 * MIB))
    take_all(disk)
    assert os.statvfs(disk).f_bavail == 0
    async with open_store(disk / "data") as store:
        assert await get(store, "kept") == content
        with pytest.raises(NodeFull):
            await put(store, "new", b"x" * 100)
        await store.commit(DeleteKey("bucket", "gone"), ORIGIN)
        result = await collect(store.parts, compact=True)
        assert result.freed_bytes > 20 * MIB
        assert await get(store, "kept") == content
        await put(store, "new", b"x" * 100)
        assert await store.fsck() == []


def nodes(count: int, capacity: int, device: int) -> dict[str, MemoryNode]:
    made = {f"n{number}": MemoryNode(f"n{number}", capacity=capacity) for number in range(count)}
    for node in made.values():
        node.device = device
    return made


def test_a_reserve_is_one_percent_of_a_nodes_share_and_at_most_its_limit() -> None:
    assert automatic_bytes(NodeSpace(100 * MIB, 0, 1), 2) == MIB // 2
    assert automatic_bytes(NodeSpace(1 << 50, 0, 1), 6) == MIB  # as tests/conftest.py limits it


def test_what_is_lent_is_no_room_and_comes_back() -> None:
    held = nodes(1, 100 * MIB, 7)
    reserve = Reserve(held, 20 * MIB)
    reserve.refill()
    assert held["n0"].reserved() == 20 * MIB and reserve.look().room == {"n0": 80 * MIB}
    held["n0"].write_whole("x", bytes(78 * MIB))
    reserve.lend(LEND_BYTES)
    assert held["n0"].space().free == LEND_BYTES and held["n0"].reserved() == 14 * MIB
    assert reserve.look().room == {"n0": 2 * MIB}
    held["n0"].delete("x")
    reserve.refill()
    assert held["n0"].reserved() == 20 * MIB


def test_nodes_of_one_device_count_each_others_reserve_as_taken() -> None:
    held = nodes(2, 100 * MIB, 7)
    reserve = Reserve(held, 10 * MIB)
    held["n0"].set_reserve(10 * MIB)
    assert reserve.look().room == {"n0": 80 * MIB, "n1": 90 * MIB}  # n1's is still missing


@pytest.mark.anyio
async def test_one_full_node_is_written_around(tmp_path: Path, disk: Path) -> None:
    nodes = [(str(disk / "1"), "")] + [(str(tmp_path / f"node{number}"), "") for number in (2, 3, 4)]
    init_store(tmp_path / "data", k=2, m=1, nodes=nodes, reserve_bytes=MIB)
    async with open_store(tmp_path / "data") as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        take_all(disk)
        contents = {f"k{number}": random.Random(number).randbytes(900_000) for number in range(6)}
        contents |= {f"s{number}": random.Random(number).randbytes(9_000) for number in range(80)}
        for key, content in contents.items():
            await put(store, key, content)
        for key, content in contents.items():
            assert await get(store, key) == content
        assert all("node1" not in segment.node_ids for segment in store.keymap.segments())
        with anyio.fail_after(30):  # the journal may have been on it, and moves away
            while (await store.status())["health"] != "healthy":  # noqa: ASYNC110  # maintenance works
                await anyio.sleep(0.1)
