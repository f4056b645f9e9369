"""Segments over nodes that fail: nothing acknowledged is lost, everything read is verified."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from engine import limits
from engine.errors import NodeFull, Unreadable, WritesStopped
from engine.interfaces import Node
from engine.nodes.memory import MemoryNode
from engine.segments import plane as plane_module
from engine.segments.format import FILE_HEADER_BYTES, FOOTER_BYTES, decode_footer, fragment_name
from engine.segments.plane import pack
from engine.segments.recovery import missing_fragments, rebuild_fragments, recover_segment
from engine.types import SegmentLocation, SegmentState
from tests.unit.segments_world import (
    FRAMES,
    World,
    directory_nodes,
    fresh_world,
    make_frame,
    memory_world,
    node_of,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "directory"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with fresh_world(request.param, tmp_path) as made:
        yield made


# -- writing and reading -------------------------------------------------------


async def test_round_trip_and_seal(world: World) -> None:
    locations = await world.write(FRAMES)
    assert await world.plane.read(locations) == FRAMES
    assert await world.plane.read([locations[4], locations[0], locations[4]]) == [FRAMES[4], FRAMES[0], FRAMES[4]]
    await world.plane.aclose()
    segment = world.the_segment()
    assert segment.state is SegmentState.SEALED and segment.fragments_lost == []
    for index, node_id in enumerate(segment.node_ids):
        node, name = world.nodes[node_id], fragment_name(segment.segment_id, index)
        assert node.size(name) == segment.size
        footer = decode_footer(node.read(name, segment.size - FOOTER_BYTES, FOOTER_BYTES), segment.segment_id, index)
        assert (footer.chunks, footer.stripes) == (len(FRAMES), segment.stripes)
    assert await world.open_plane().read(locations) == FRAMES
    with pytest.raises(WritesStopped):
        await world.plane.append(FRAMES[:1])


async def test_small_frames_share_a_stripe() -> None:
    frames = [make_frame(seed, 10_000) for seed in range(300)]
    assert all(sum(map(len, group)) <= limits.STRIPE_BYTES_MAX for group in pack(frames))
    world = memory_world()
    locations = await world.write(frames)
    assert len({location.stripe_offset for location in locations}) == 3
    assert await world.plane.read(locations[::-7]) == frames[::-7]


async def test_nothing_to_do_is_done() -> None:
    world = memory_world()
    assert await world.plane.append([]) == [] and await world.plane.read([]) == []
    await world.plane.sync()
    await world.plane.aclose()
    assert not world.segments


async def test_concurrent_writers_share_syncs(world: World) -> None:
    syncs = 0
    original = type(next(iter(world.nodes.values()))).sync

    async def write_one(seed: int) -> None:
        frame = make_frame(seed, 3000)
        assert await world.plane.read(await world.write([frame])) == [frame]

    class Counting:
        def __init__(self, node: Node) -> None:
            self.node = node

        def __getattr__(self, name: str) -> object:
            nonlocal syncs
            syncs += name == "sync"
            return getattr(self.node, name)

    assert original is not None
    for name, node in list(world.nodes.items()):
        world.nodes[name] = Counting(node)  # type: ignore[assignment]
    async with anyio.create_task_group() as tasks:
        for seed in range(50):
            tasks.start_soon(write_one, seed)
    assert syncs < 50 * 6


async def test_segments_roll_when_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_BYTES_MAX", 3_000_000)
    world = memory_world()
    frames = [make_frame(seed, 900_000) for seed in range(8)]
    locations: list[SegmentLocation] = []

    async def write_one(frame: bytes) -> None:
        locations.extend(await world.write([frame]))

    async with anyio.create_task_group() as tasks:
        for frame in frames:
            tasks.start_soon(write_one, frame)
    await world.plane.aclose()
    assert len(world.segments) >= 2
    assert all(segment.state is SegmentState.SEALED for segment in world.segments.values())
    assert sorted(await world.plane.read(locations)) == sorted(frames)


async def test_what_is_not_synced_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane_module, "UNSYNCED_BYTES_MAX", 500_000)
    world = memory_world()
    for seed in range(20):
        await world.plane.append([make_frame(seed, 100_000)])
        assert world.plane._unsynced_bytes() <= 500_000


# -- degraded reads ------------------------------------------------------------


async def test_any_two_nodes_may_be_missing_for_reads() -> None:
    world = memory_world()
    locations = await world.write(FRAMES)
    for first in range(6):
        for second in range(first):
            for name in (f"n{first}", f"n{second}"):
                world.nodes[name].vanished = True  # type: ignore[attr-defined]
            assert await world.plane.read(locations) == FRAMES
            for name in (f"n{first}", f"n{second}"):
                world.nodes[name].vanished = False  # type: ignore[attr-defined]
    assert world.rot == []
    for number in range(3):
        del world.nodes[f"n{number}"]
    with pytest.raises(Unreadable, match="3 good fragments of the 4 needed"):
        await world.plane.read(locations)


async def test_rot_is_read_around_and_reported() -> None:
    world = memory_world()
    frame = make_frame(1, 500_000)
    locations = await world.write([frame])
    segment = world.the_segment()
    for index in (1, 3):
        node_of(world, index).fault_corrupt(fragment_name(segment.segment_id, index), FILE_HEADER_BYTES + 5000)
    assert await world.plane.read(locations) == [frame]
    assert {(rot[0], rot[1], rot[2]) for rot in world.rot} == {
        (segment.segment_id, 1, FILE_HEADER_BYTES),
        (segment.segment_id, 3, FILE_HEADER_BYTES),
    }
    node_of(world, 5).fault_corrupt(fragment_name(segment.segment_id, 5), FILE_HEADER_BYTES + 5000)
    with pytest.raises(Unreadable):
        await world.plane.read(locations)


async def test_an_unknown_segment_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="not known"):
        await memory_world().plane.read([SegmentLocation(1, 128, 10, 0, 10)])


# -- nodes that fail while writing ---------------------------------------------


async def test_a_failed_sync_writes_again_elsewhere() -> None:
    world = memory_world()
    safe = await world.write(FRAMES[:3])
    segment = world.the_segment()
    appended = await world.plane.append(FRAMES[3:])
    node_of(world, 2).fault_next_sync()
    await world.plane.sync()
    moved = [world.plane.relocated(location) for location in appended]
    assert list(world.lost) == [segment.node_ids[2]]
    assert [world.plane.relocated(location) for location in safe] == safe
    assert all(location.segment_id != segment.segment_id for location in moved)
    old, new = world.segments[segment.segment_id], world.segments[moved[0].segment_id]
    assert (old.state, old.fragments_lost, old.stripes) == (SegmentState.SEALED, [2], 1)
    assert (new.k, new.m) == (3, 2) and segment.node_ids[2] not in new.node_ids
    for number in range(2):
        world.nodes[new.node_ids[number]].vanished = True  # type: ignore[attr-defined]
    assert await world.plane.read([*safe, *moved]) == FRAMES


async def test_a_failed_append_writes_again_elsewhere() -> None:
    world = memory_world()
    first = await world.plane.append(FRAMES[:3])
    node_of(world, 0).vanished = True
    second = await world.plane.append(FRAMES[3:])
    await world.plane.sync()
    locations = [world.plane.relocated(location) for location in [*first, *second]]
    assert await world.plane.read(locations) == FRAMES
    assert len(world.segments) == 2 and len(world.lost) == 1


async def test_nodes_fail_one_after_the_other_until_writes_stop() -> None:
    world = memory_world()
    written: list[SegmentLocation] = []
    for turn, width in enumerate([4, 3, 2, 1]):
        written += await world.write([FRAMES[turn]])
        newest = world.segments[written[-1].segment_id]
        assert (newest.k, newest.m) == (width, 2)
        world.nodes[newest.node_ids[0]].vanished = True  # type: ignore[attr-defined]
    with pytest.raises(WritesStopped):
        await world.write([FRAMES[4]])
    with pytest.raises(WritesStopped):
        await world.plane.sync()
        await world.plane.append([FRAMES[4]])
    for node in world.nodes.values():
        node.vanished = False  # type: ignore[attr-defined]
    world.lost.clear()
    world.plane._distrusted.clear()
    written += await world.write([FRAMES[4]])
    assert await world.plane.read(written) == FRAMES[:5]


async def test_full_nodes_stop_writes_and_only_writes() -> None:
    world = memory_world(capacity=8_000_000)
    locations: list[SegmentLocation] = []
    frames = [make_frame(seed, 900_000) for seed in range(100)]
    with pytest.raises(NodeFull):
        for frame in frames:
            locations += await world.write([frame])
    assert len(locations) > 10 and not world.lost
    assert await world.plane.read(locations) == frames[: len(locations)]
    await world.plane.aclose()


async def test_a_moved_away_directory_is_noticed_at_the_next_sync(tmp_path: Path) -> None:
    world = World(directory_nodes(tmp_path))
    locations = await world.write(FRAMES[:4])
    (tmp_path / "n3").rename(tmp_path / "gone")
    locations += await world.write(FRAMES[4:])
    assert list(world.lost) == ["n3"] and not (tmp_path / "n3").exists()
    assert await world.plane.read(locations) == FRAMES
    for node in world.nodes.values():
        node.close()


async def test_a_cancelled_append_leaves_the_plane_whole() -> None:
    world = memory_world()
    with anyio.move_on_after(0):
        await world.plane.append(FRAMES)
    with anyio.move_on_after(0.001):
        await world.write(FRAMES)
    locations = await world.write(FRAMES)
    assert await world.plane.read(locations) == FRAMES


# -- whatever happens ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_no_acknowledged_frame_is_lost_whatever_happens(seed: int) -> None:
    """Random appends, syncs, failing nodes, then power loss that tears and garbles what was
    not synced, with up to m nodes missing: what sync() covered is read back after recovery."""
    chance = random.Random(seed)
    world = memory_world(count=chance.choice([5, 6, 8]))
    acknowledged: dict[SegmentLocation, bytes] = {}
    waiting: list[tuple[SegmentLocation, bytes]] = []
    failures = 0
    for step in range(chance.randrange(5, 40)):
        action = chance.random()
        if action < 0.6:
            frames = [
                make_frame(seed * 1000 + step * 10 + n, chance.randrange(20_000)) for n in range(chance.randrange(4))
            ]
            waiting += zip(await world.plane.append(frames), frames, strict=True)
        elif action < 0.9:
            await world.plane.sync()
            acknowledged |= {world.plane.relocated(location): frame for location, frame in waiting}
            waiting.clear()
        elif failures < 2:
            failures += 1
            node = world.nodes[chance.choice(sorted(set(world.nodes) - set(world.lost)))]
            assert isinstance(node, MemoryNode)
            if chance.random() < 0.5:
                node.fault_next_sync()
            else:
                node.vanished = True
    back = chance.sample(sorted(world.nodes), k=len(world.nodes) - 2 + len(world.lost))[: len(world.nodes)]
    _power_fails(world, chance, back)
    for segment in list(world.segments.values()):
        if segment.state is SegmentState.OPEN:
            await world.announce(recover_segment(segment, world.nodes, "s"))
    assert await world.open_plane().read(list(acknowledged)) == list(acknowledged.values())
    for node in world.nodes.values():
        node.vanished = False  # type: ignore[attr-defined]
    for segment in list(world.segments.values()):
        missing = missing_fragments(segment, world.nodes)
        rebuild_fragments(segment, missing, world.nodes)
        assert missing_fragments(segment, world.nodes) == []
    for name in chance.sample(sorted(world.nodes), k=2):
        world.nodes[name].vanished = True  # type: ignore[attr-defined]
    assert await world.open_plane().read(list(acknowledged)) == list(acknowledged.values())


def _power_fails(world: World, chance: random.Random, back: list[str]) -> None:
    """All nodes lose power; those in `back` return, unless that would leave over m away."""

    def torn(unsynced: bytes) -> bytes:
        kept = bytearray(unsynced[: chance.randrange(len(unsynced) + 1)])
        if kept and chance.random() < 0.3:
            start = chance.randrange(len(kept))
            kept[start : start + 4096] = bytes(len(kept[start : start + 4096]))
        return bytes(kept)

    for name, node in world.nodes.items():
        assert isinstance(node, MemoryNode)
        node.fault_power_loss(torn)
        if name in back:
            node.vanished = False
    away = [name for name, node in world.nodes.items() if node.vanished]  # type: ignore[attr-defined]
    for name in away[2:]:
        world.nodes[name].vanished = False  # type: ignore[attr-defined]
    spare = 2 - len(away)
    for name in chance.sample(sorted(world.nodes), k=len(world.nodes))[: max(spare, 0)]:
        world.nodes[name].vanished = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(5))
async def test_many_writers_while_nodes_fail_and_return(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_BYTES_MAX", 2_000_000)
    monkeypatch.setattr(plane_module, "UNSYNCED_BYTES_MAX", 400_000)
    world = memory_world()
    acknowledged: dict[SegmentLocation, bytes] = {}
    chance = random.Random(seed)
    writing = 12

    async def write_some(writer: int) -> None:
        nonlocal writing
        for turn in range(10):
            frames = [
                make_frame(writer * 100 + turn * 5 + n, chance.randrange(60_000)) for n in range(chance.randrange(1, 4))
            ]
            if chance.random() < 0.2:
                with anyio.move_on_after(chance.random() * 0.002):
                    await world.write(frames)
            locations = await world.write(frames)
            acknowledged.update(zip(locations, frames, strict=True))
            if turn == 5 and writer == 3:
                await world.plane.seal()
        writing -= 1

    async def break_nodes() -> None:
        for _ in range(12):  # fewer than one sync survives
            if not writing:
                return
            node = world.nodes[chance.choice(sorted(world.nodes))]
            assert isinstance(node, MemoryNode)
            if chance.random() < 0.5:
                node.fault_next_sync()
                await anyio.sleep(0.003)
            else:
                node.vanished = True
                await anyio.sleep(0.003)
            node.fault_none()
            world.lost.clear()
            world.plane._distrusted.clear()
            await anyio.sleep(0.002)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(break_nodes)
        for writer in range(12):
            tasks.start_soon(write_some, writer)
    for node in world.nodes.values():
        node.fault_power_loss()  # type: ignore[attr-defined]
    for segment in list(world.segments.values()):
        if segment.state is SegmentState.OPEN:
            await world.announce(recover_segment(segment, world.nodes, "s"))
    assert len(acknowledged) > 120
    assert await world.open_plane().read(list(acknowledged)) == list(acknowledged.values())


async def test_a_node_that_is_dropped_while_its_room_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = memory_world(count=7)
    asked = plane_module._free_bytes

    def dropped_meanwhile(nodes: list[Node]) -> list[object]:
        world.nodes.pop("n3", None)
        return list(asked(nodes))

    monkeypatch.setattr(plane_module, "_free_bytes", dropped_meanwhile)
    locations = await world.write(FRAMES)
    assert await world.plane.read(locations) == FRAMES
    assert "n3" not in world.the_segment().node_ids
