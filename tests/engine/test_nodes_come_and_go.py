"""Nodes that vanish, come back and are replaced, under an open store."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from engine.changes import CreateBucket, Origin, PutVersion
from engine.errors import NodeUnavailable, StoreError
from engine.store import Store, init_store, open_store

ORIGIN = Origin(requester="test")
pytestmark = pytest.mark.anyio


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_store(tmp_path / "data")
    return tmp_path / "data"


async def put(store: Store, key: str, content: bytes) -> None:
    with store.pins.hold():
        writer = store.open_writer()
        await writer.write(content)
        await store.commit(PutVersion("bucket", key, await writer.finish(), etag="e"), ORIGIN)


async def check(store: Store, contents: dict[str, bytes]) -> None:
    for key, content in contents.items():
        head = store.keymap.head("bucket", key)
        assert head is not None
        assert b"".join([bytes(piece) async for piece in store.read(head.manifest)]) == content


def states(store: Store) -> dict[str, str]:
    return {place.node_id: str(place.state) for place in store.keymap.nodes()}


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():  # noqa: ASYNC110 - node states are looked at, nobody announces them
            await anyio.sleep(0.05)


async def test_two_nodes_leave_and_one_comes_back_empty(data: Path) -> None:
    rng = random.Random(11)
    contents = {f"before{size}": rng.randbytes(size) for size in (10, 70_000, 3_000_000)}
    two, five = data / "nodes" / "2", data / "nodes" / "5"
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        for key, content in contents.items():
            await put(store, key, content)
        os.rename(two, data / "two")
        os.rename(five, data / "five")
        during = {f"during{size}": rng.randbytes(size) for size in (11, 70_001, 3_000_001)}
        for key, content in during.items():
            await put(store, key, content)
        contents |= during
        await check(store, contents)
        await until(lambda: states(store)["node2"] == states(store)["node5"] == "lost")
        assert (await store.status())["health"] == "degraded"
        narrow = [segment for segment in store.keymap.segments() if len(segment.node_ids) == 4]
        assert [(segment.k, segment.m) for segment in narrow] == [(2, 2)] * len(narrow) and narrow

        os.rename(data / "two", two)
        five.mkdir()
        await until(lambda: states(store)["node2"] == "healthy")
        await anyio.sleep(1.5)
        assert states(store)["node5"] == "lost"
        assert list(five.iterdir()) == [], "nothing is created in a node that is lost"

        await store.replace_node("node5")
        await put(store, "after", b"after" * 50_000)
        contents["after"] = b"after" * 50_000
        await until(lambda: states(store)["node5"] == "healthy")
        status = await store.status()
        assert (status["health"], status["under_redundancy"]) == ("healthy", 0)
        await check(store, contents)
        for number in (1, 3):  # any two others may go now
            os.rename(data / "nodes" / str(number), data / f"gone{number}")
        await check(store, contents)
    async with open_store(data) as store:
        await check(store, contents)


async def test_more_than_m_missing_nodes_are_named_and_the_store_does_not_open(data: Path) -> None:
    for number in (1, 2, 3):
        os.rename(data / "nodes" / str(number), data / f"gone{number}")
    with pytest.raises(StoreError) as raised:
        async with open_store(data):
            pass
    assert isinstance(raised.value, NodeUnavailable)
    assert all(f"nodes/{number}" in str(raised.value) for number in (1, 2, 3))


async def test_a_node_directory_of_another_store_is_refused(data: Path, tmp_path: Path) -> None:
    init_store(tmp_path / "other")
    os.rename(data / "nodes" / "4", data / "mine")
    os.rename(tmp_path / "other" / "nodes" / "4", data / "nodes" / "4")
    before = sorted(path.name for path in (data / "nodes" / "4").rglob("*"))
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await put(store, "key", bytes(200_000))
        assert states(store)["node4"] == "lost"
    assert sorted(path.name for path in (data / "nodes" / "4").rglob("*")) == before
