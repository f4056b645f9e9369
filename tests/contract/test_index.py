"""The Index contract, over the local index and over a client that joined it by socket."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from engine import limits
from engine.changes import Condition, CreateBucket, DeleteKey, Door, Origin, PutVersion
from engine.errors import BucketExists, NoSuchKey, PreconditionFailed, WritesStopped
from engine.frames import decode_frame, encode_frame
from engine.index.client import open_index_client
from engine.index.local import LocalIndex
from engine.index.opening import open_local_index
from engine.index.server import serve_index
from engine.interfaces import FeedBatch, Index
from engine.nodes.memory import MemoryNode
from engine.types import ChunkEntry, Content, JournalLocation, Manifest, NewChunk

pytestmark = pytest.mark.anyio
STORE_ID = "0123456789abcdef" * 2
M = 2
CHUNK = b"\x07" * 32


class World:
    """Four nodes and an index directory that outlive the index."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.nodes = {name: MemoryNode(name) for name in ("a", "b", "c", "d")}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Index, LocalIndex]]:
        """The index under test, and the local one behind it."""
        async with open_local_index(self.directory, self.nodes, store_id=STORE_ID, m=M, missing={}) as local:
            if self.kind == "local":
                yield local, local
                return

            async def owner_gone(owner: str) -> None:
                assert owner == "tester"

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: serve_index(local, self.directory, on_owner_gone=owner_gone))
                async with open_index_client(self.directory, nodes=self.nodes, owner="tester") as client:
                    yield client, local
                tasks.cancel_scope.cancel()


@pytest.fixture(params=["local", "client"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, str(request.param))


def origin(request_id: str = "", mount_id: str = "") -> Origin:
    return Origin("tester", request_id, door=Door.MOUNT if mount_id else Door.S3, mount_id=mount_id)


def put(key: str, condition: Condition | None = None, plain: bytes = b"hello") -> PutVersion:
    chunk = NewChunk(CHUNK, len(plain), frame=encode_frame(CHUNK, plain))
    content = Content(Manifest([ChunkEntry(CHUNK, len(plain))]), [chunk])
    return PutVersion("bucket", key, content, "etag", condition=condition)


async def test_an_answered_commit_is_in_the_keymap_and_durable(world: World) -> None:
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())
        result = await index.commit(put("key"), origin())
        await index.freshen()
        found = index.keymap.head("bucket", "key")
        assert found is not None and found.lsn == result.lsn
        assert index.durable_lsn() >= result.lsn
        await index.wait_durable(result.lsn)


async def test_errors_arrive_as_what_they_are(world: World) -> None:
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())
        with pytest.raises(BucketExists):
            await index.commit(CreateBucket("bucket"), origin())
        with pytest.raises(NoSuchKey):
            await index.commit(DeleteKey("bucket", "absent", must_exist=True), origin())


async def test_a_refusal_waits_until_what_it_tells_of_is_durable(world: World) -> None:
    """Power loss could take back the very bucket somebody was told exists."""
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("first"), origin())
        made = await index.commit(CreateBucket("bucket"), origin(), durable=False)
        with pytest.raises(BucketExists):
            await index.commit(CreateBucket("bucket"), origin())
        assert index.durable_lsn() >= made.lsn


async def test_a_repeated_request_id_gets_the_first_answer(world: World) -> None:
    async with world.opened() as (index, _):
        first = await index.commit(CreateBucket("bucket"), origin("request-1"))
        again = await index.commit(CreateBucket("bucket"), origin("request-1"))
        assert again == first


async def test_of_racing_creations_exactly_one_wins(world: World) -> None:
    outcomes: list[str] = []
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())

        async def race() -> None:
            try:
                await index.commit(put("key", Condition(if_none_match=["*"])), origin())
                outcomes.append("won")
            except PreconditionFailed:
                outcomes.append("lost")

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(race)
    assert sorted(outcomes) == ["lost"] * 19 + ["won"]


async def test_a_frame_that_rode_in_a_commit_is_read_from_any_replica(world: World) -> None:
    async with world.opened() as (index, local):
        await index.commit(CreateBucket("bucket"), origin())
        await index.commit(put("key"), origin())
        location = index.keymap.locations([CHUNK])[CHUNK]
        assert isinstance(location, JournalLocation)
        assert decode_frame(await index.read_frame(location), CHUNK) == b"hello"
        for name, node in world.nodes.items():  # rot in all replicas but the last
            if name != sorted(local._log.members)[-1]:
                for file in node.files:
                    if file.endswith(".journal"):
                        node.fault_corrupt(file, location.offset + location.length - 1)
        assert decode_frame(await index.read_frame(location), CHUNK) == b"hello"


async def test_all_survives_losing_the_index_directory(world: World) -> None:
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())
        for number in range(50):
            await index.commit(put(f"key-{number:02}"), origin(), durable=False)
        before = index.keymap.list_objects("bucket")
        counted = index.keymap.counters()
    for file in world.directory.iterdir():
        file.unlink()
    async with world.opened() as (index, local):
        assert index.keymap.list_objects("bucket") == before
        assert index.keymap.counters() == counted
        assert await local.recount() == []


def after_power_loss(nodes: dict[str, MemoryNode]) -> dict[str, MemoryNode]:
    """The nodes as a power loss at this moment leaves them: each keeps another piece of
    what it had not synced."""
    survivors: dict[str, MemoryNode] = {}
    for cut, (name, node) in enumerate(nodes.items()):
        survivors[name] = MemoryNode(name)
        survivors[name].files = {file: bytearray(content) for file, content in node.files.items()}
        survivors[name].synced = dict(node.synced)
        survivors[name].fault_power_loss(lambda unsynced, cut=cut: unsynced[: cut * 500])
    return survivors


async def test_power_loss_takes_no_durable_commit_and_leaves_no_hole(world: World) -> None:
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())
        await index.commit(put("kept"), origin())
        for number in range(20):
            await index.commit(put(f"late-{number:02}"), origin(), durable=False)
        survivors = after_power_loss(world.nodes)
        page = (world.directory / "page").read_bytes()
    world.nodes = survivors  # under a keymap that has applied all of it …
    (world.directory / "page").write_bytes(page)  # … and the page as it was, which closing has moved on
    async with world.opened() as (index, local):
        keys = [version.key for version in index.keymap.list_objects("bucket").versions]
        assert keys[0] == "kept"
        assert keys[1:] == [f"late-{number:02}" for number in range(len(keys) - 1)]
        assert await local.recount() == []
        await index.commit(put("next"), origin())
        for location in index.keymap.locations([CHUNK]).values():
            assert isinstance(location, JournalLocation)
            assert decode_frame(await index.read_frame(location), CHUNK) == b"hello"


async def test_a_replica_whose_sync_fails_is_replaced_and_nothing_is_lost(world: World) -> None:
    async with world.opened() as (index, local):
        await index.commit(CreateBucket("bucket"), origin())
        failing = local._log.members[0]
        world.nodes[failing].fault_next_sync()
        result = await index.commit(put("key"), origin())
        assert index.durable_lsn() >= result.lsn
        assert failing not in local._log.members
        location = index.keymap.locations([CHUNK])[CHUNK]
        assert isinstance(location, JournalLocation)
        assert decode_frame(await index.read_frame(location), CHUNK) == b"hello"
    world.nodes[failing].fault_none()
    async with world.opened() as (index, _):
        assert index.keymap.head("bucket", "key") is not None


async def test_with_too_few_nodes_writes_stop_and_reads_go_on(world: World) -> None:
    async with world.opened() as (index, local):
        await index.commit(CreateBucket("bucket"), origin())
        await index.commit(put("key"), origin())
        for name in ("a", "b"):
            world.nodes[name].vanished = True
        with pytest.raises(WritesStopped):
            await index.commit(put("other"), origin())
        assert index.keymap.head("bucket", "key") is not None
        for node in world.nodes.values():
            node.fault_none()
        for name in list(local.failed_replicas):
            local.forgive(name)
        await index.commit(put("after"), origin())
        assert index.keymap.head("bucket", "after") is not None


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what another task or process does in its own time."""
    with anyio.fail_after(5):
        while True:
            if holds():
                return
            await anyio.sleep(0.01)


async def _first(index: Index, into: list[FeedBatch], ready: anyio.Event, confirm_it: bool, seen: anyio.Event) -> None:
    ready.set()
    async for batch, confirm in index.subscribe(subscriber_id="mount-1", confirms=True):
        into.append(batch)
        seen.set()
        if confirm_it:
            await confirm()


async def test_a_commit_waits_for_confirming_subscribers_but_not_for_its_own_mount(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LEASE_WAIT_SECONDS", 0.5)
    batches: list[FeedBatch] = []
    async with world.opened() as (index, local):
        await index.commit(CreateBucket("bucket"), origin())
        async with anyio.create_task_group() as tasks:
            ready, seen = anyio.Event(), anyio.Event()
            tasks.start_soon(_first, index, batches, ready, False, seen)
            await ready.wait()
            await eventually(lambda: local._feed.must_confirm())
            started = anyio.current_time()
            await index.commit(put("own"), origin(mount_id="mount-1"))
            assert anyio.current_time() - started < 0.4
            await index.commit(put("other"), origin())
            assert anyio.current_time() - started >= 0.5  # the lease ran out
            await index.commit(put("third"), origin())
            await eventually(lambda: any(batch.dropped for batch in batches))
            started = anyio.current_time()
            for number in range(3):  # one that never confirms again holds nobody up again
                await index.commit(put(f"late-{number}"), origin())
            assert anyio.current_time() - started < 0.4
            tasks.cancel_scope.cancel()
    told = [(name.bucket, name.key) for batch in batches for name in batch.touched]
    assert ("bucket", "other") in told and ("bucket", "own") not in told


async def test_who_is_awaited_is_told_so_and_who_is_dropped_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASE_WAIT_SECONDS", 0.5)
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())
        assert not index.awaits("mount-1")
        ended = anyio.Event()

        async def follow() -> None:
            async for _ in index.subscribe(subscriber_id="mount-1", confirms=True):
                pass  # and confirms nothing
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await eventually(lambda: index.awaits("mount-1"))
            assert not index.awaits("mount-2")
            await index.commit(put("one"), origin())
            with anyio.fail_after(5):
                await ended.wait()
        assert not index.awaits("mount-1")


async def test_time_in_which_the_index_stood_still_is_no_time_to_confirm(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount would go on telling the kernel what to keep, while nobody waits for it."""
    monkeypatch.setattr(limits, "LEASE_WAIT_SECONDS", 2.0)
    batches: list[FeedBatch] = []
    confirming = anyio.Event()

    async def follow(index: Index) -> None:
        async for batch, confirm in index.subscribe(subscriber_id="mount-1", confirms=True):
            batches.append(batch)
            await confirming.wait()
            await confirm()

    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, index)
            await eventually(lambda: index.awaits("mount-1"))
            tasks.start_soon(index.commit, put("one"), origin())
            await anyio.sleep(0.1)
            time.sleep(3)  # noqa: ASYNC251 - as SIGSTOP does
            await anyio.sleep(0.1)
            assert index.awaits("mount-1")
            confirming.set()
            await index.commit(put("two"), origin())
            assert index.awaits("mount-1") and not any(batch.dropped for batch in batches)
            tasks.cancel_scope.cancel()


async def test_a_subscriber_from_the_start_gets_every_record_in_order_once(world: World) -> None:
    async with world.opened() as (index, _):
        await index.commit(CreateBucket("bucket"), origin())
        for number in range(5):
            await index.commit(put(f"key-{number}"), origin())
    async with world.opened() as (index, _):
        await index.commit(put("later"), origin())
        lsns: list[int] = []
        with anyio.fail_after(5):
            async for batch, _confirm in index.subscribe(subscriber_id="tables", confirms=False, from_lsn=1):
                lsns += [record.lsn for record in batch.records]
                if lsns and lsns[-1] == 7:
                    break
        assert lsns == [1, 2, 3, 4, 5, 6, 7]


async def test_a_client_follows_its_index_over_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, "local")
    batches: list[FeedBatch] = []
    first_over, client_done = anyio.Event(), anyio.Event()

    async def owner_gone(owner: str) -> None:
        assert owner == "tester"

    async def serve(until: anyio.Event) -> None:
        async with open_local_index(tmp_path, world.nodes, store_id=STORE_ID, m=M, missing={}) as local:
            async with anyio.create_task_group() as serving:
                serving.start_soon(lambda: serve_index(local, tmp_path, on_owner_gone=owner_gone))
                await until.wait()
                serving.cancel_scope.cancel()

    async def serve_twice() -> None:
        await serve(first_over)
        await serve(client_done)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_twice)
        async with open_index_client(tmp_path, nodes=world.nodes, owner="tester") as client:
            async with anyio.create_task_group() as following:
                following.start_soon(_first, client, batches, anyio.Event(), True, anyio.Event())
                await client.commit(CreateBucket("bucket"), origin("request-1"))
                first_over.set()
                with anyio.fail_after(9):
                    for number in range(20):
                        await client.commit(put(f"key-{number:02}"), origin(f"put-{number}"))
                        await anyio.sleep(0.01)
                    assert len(client.keymap.list_objects("bucket").versions) == 20
                    assert (await client.commit(CreateBucket("bucket"), origin("request-1"))).lsn == 1
                    await eventually(lambda: any(batch.dropped for batch in batches))
                following.cancel_scope.cancel()
        client_done.set()
