"""An index that starts again waits for the mounts that confirmed to its predecessor: what
they cached may be stale, and they are on their way back."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from engine import limits
from engine.changes import CreateBucket, Origin, SetBucketTags
from engine.index.feed import subscriber_name
from engine.index.local import LocalIndex
from engine.index.opening import open_local_index
from engine.nodes.memory import MemoryNode
from engine.pins import Pins

pytestmark = pytest.mark.anyio
STORE_ID = "0123456789abcdef" * 2
ORIGIN = Origin("test")


class World:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes = {name: MemoryNode(name) for name in "abc"}

    def opened(self):  # type: ignore[no-untyped-def]
        return open_local_index(self.directory, self.nodes, store_id=STORE_ID, m=2, missing={})


async def subscribe_for_a_moment(index: LocalIndex, name: str) -> None:
    """As a connection does that ends with the index."""
    async with anyio.create_task_group() as tasks:

        async def follow() -> None:
            async for _, confirm in index.subscribe(subscriber_id=name, confirms=True):
                await confirm()

        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        index.keep_subscribers()
        tasks.cancel_scope.cancel()


async def test_a_change_waits_until_who_cached_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASE_WAIT_SECONDS", 30.0)
    world = World(tmp_path)
    pins = Pins(tmp_path, lambda: 0)
    name = subscriber_name(pins.name)
    async with world.opened() as index:
        await index.commit(CreateBucket("bucket"), ORIGIN)
        await subscribe_for_a_moment(index, name)
    order: list[str] = []
    answered = anyio.Event()
    async with world.opened() as index, anyio.create_task_group() as tasks:

        async def change() -> None:
            await index.commit(SetBucketTags("bucket", {"a": "1"}), ORIGIN)
            order.append("answered")
            answered.set()

        tasks.start_soon(change)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.1)
        lsn = index.keymap.applied_lsn()
        assert index.keymap.bucket("bucket").tags == {"a": "1"} and order == []
        async for batch, confirm in index.subscribe(subscriber_id=name, confirms=True, from_lsn=lsn):
            if batch.awaited:
                continue
            order.append("confirmed")
            await confirm()
            if batch.last_lsn >= lsn:
                break
        with anyio.fail_after(10):
            await answered.wait()
    assert order == ["confirmed", "answered"]
    pins.close()


async def test_who_does_not_come_back_is_waited_for_until_its_lease_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LEASE_WAIT_SECONDS", 0.5)
    world = World(tmp_path)
    pins = Pins(tmp_path, lambda: 0)
    async with world.opened() as index:
        await index.commit(CreateBucket("bucket"), ORIGIN)
        await subscribe_for_a_moment(index, subscriber_name(pins.name))
    started = anyio.current_time()
    async with world.opened() as index:
        await index.commit(SetBucketTags("bucket", {"a": "1"}), ORIGIN)
        assert anyio.current_time() - started >= 0.5
    pins.close()


async def test_who_has_ended_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASE_WAIT_SECONDS", 1000.0)
    world = World(tmp_path)
    pins = Pins(tmp_path, lambda: 0)
    async with world.opened() as index:
        await index.commit(CreateBucket("bucket"), ORIGIN)
        await subscribe_for_a_moment(index, subscriber_name(pins.name))
    pins.close()  # its process, and with it the mount
    async with world.opened() as index:
        with anyio.fail_after(100):
            await index.commit(SetBucketTags("bucket", {"a": "1"}), ORIGIN)
