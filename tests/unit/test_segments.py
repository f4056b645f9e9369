"""Segments over nodes that fail: nothing acknowledged is lost, everything read is verified."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from engine import limits
from engine.changes import OpenSegment, SealSegment
from engine.errors import NodeFull, Unreadable, WritesStopped
from engine.frames import encode_frame
from engine.interfaces import Node
from engine.nodes.descriptor import NodeDescriptor, write_node_descriptor
from engine.nodes.directory import DirectoryNode
from engine.nodes.memory import MemoryNode
from engine.segments import plane as plane_module
from engine.segments.format import FILE_HEADER_BYTES, FOOTER_BYTES, decode_file_header, decode_footer, fragment_name
from engine.segments.plane import SegmentPlane, pack
from engine.segments.recovery import missing_fragments, read_directory, rebuild_fragments, recover_segment
from engine.types import NodeEntry, Segment, SegmentLocation, SegmentState


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


pytestmark = pytest.mark.anyio


def make_frame(seed: int, length: int = 1000) -> bytes:
    plain = random.Random(seed).randbytes(length)
    return encode_frame(hashlib.sha256(plain).digest(), plain)


class World:
    """Nodes and the little of an index a plane talks to."""

    def __init__(self, nodes: dict[str, Node], k: int = 4, m: int = 2) -> None:
        self.nodes = nodes
        self.segments: dict[int, Segment] = {}
        self.lost: dict[str, str] = {}
        self.rot: list[tuple[int, int, int, str]] = []
        self.plane = self.open_plane(k, m)

    def open_plane(self, k: int = 4, m: int = 2) -> SegmentPlane:
        return SegmentPlane(
            self.nodes,
            k,
            m,
            announce=self.announce,
            segment_of=self.segments.get,
            healthy=self.healthy,
            report_failure=self.report_failure,
            report_rot=lambda *rot: self.rot.append(rot),
            owner="test",
            store_id="s",
        )

    async def announce(self, change: OpenSegment | SealSegment) -> None:
        await anyio.lowlevel.checkpoint()
        if isinstance(change, OpenSegment):
            self.segments[change.segment_id] = Segment(change.segment_id, change.k, change.m, change.node_ids)
        else:
            found = self.segments[change.segment_id]
            self.segments[change.segment_id] = Segment(
                found.segment_id,
                found.k,
                found.m,
                found.node_ids,
                state=SegmentState.SEALED,
                size=change.size,
                stripes=change.stripes,
                fragments_lost=change.fragments_lost,
            )

    def healthy(self) -> list[NodeEntry]:
        return [NodeEntry(name, node.path) for name, node in self.nodes.items() if name not in self.lost]

    async def report_failure(self, node_id: str, reason: str) -> None:
        self.lost[node_id] = reason

    def the_segment(self) -> Segment:
        assert len(self.segments) == 1
        return next(iter(self.segments.values()))

    async def write(self, frames: list[bytes]) -> list[SegmentLocation]:
        locations = await self.plane.append(frames)
        await self.plane.sync()
        return [self.plane.relocated(location) for location in locations]


def memory_nodes(count: int = 6, capacity: int = 1 << 40) -> dict[str, Node]:
    return {f"n{number}": MemoryNode(f"n{number}", capacity=capacity) for number in range(count)}


def directory_nodes(top: Path, count: int = 6) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    for number in range(count):
        path = top / f"n{number}"
        path.mkdir()
        write_node_descriptor(path, NodeDescriptor(store_id="s", node_id=f"n{number}"))
        nodes[f"n{number}"] = DirectoryNode(path, f"n{number}", "s")
    return nodes


@pytest.fixture(params=["memory", "directory"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    nodes = memory_nodes() if request.param == "memory" else directory_nodes(tmp_path)
    yield World(nodes)
    for node in nodes.values():
        node.close()


def memory_world(**settings: int) -> World:
    return World(memory_nodes(**settings))


def node_of(world: World, index: int, segment: Segment | None = None) -> MemoryNode:
    node = world.nodes[(segment or world.the_segment()).node_ids[index]]
    assert isinstance(node, MemoryNode)
    return node


FRAMES = [
    make_frame(seed, length) for seed, length in enumerate([1, 100, 5000, 200_000, 1_000_000, 0, 64_000, 700_000])
]


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


# -- recovery ------------------------------------------------------------------


async def crashed(world: World) -> tuple[Segment, list[SegmentLocation]]:
    """A writer that went away with everything synced and its segment open."""
    locations = await world.write(FRAMES)
    return world.the_segment(), locations


async def check_recovered(world: World, locations: list[SegmentLocation], lost: list[int] | None = None) -> Segment:
    sealed = recover_segment(world.the_segment(), world.nodes, "s")
    assert sealed.fragments_lost == (lost or [])
    await world.announce(sealed)
    segment = world.the_segment()
    assert missing_fragments(segment, world.nodes) == (lost or [])
    assert recover_segment(segment, world.nodes, "s") == sealed, "a second recovery changes nothing"
    assert await world.open_plane().read(locations) == FRAMES
    directory = read_directory(segment, world.nodes)
    assert directory is not None and [entry.location for entry in directory] == locations
    return segment


async def test_an_orphan_is_sealed(world: World) -> None:
    segment, locations = await crashed(world)
    assert missing_fragments(segment, world.nodes) == []
    await check_recovered(world, locations)


@pytest.mark.parametrize("torn", [[0], [5], [0, 1, 2, 3, 4, 5], [2, 3]])
async def test_torn_tails_are_cut(torn: list[int]) -> None:
    world = memory_world()
    segment, locations = await crashed(world)
    for index in torn:
        node_of(world, index).files[fragment_name(segment.segment_id, index)] += b"oStr" + bytes(100 * index)
    await check_recovered(world, locations)


async def test_unsynced_stripes_are_kept_where_they_can_be() -> None:
    world = memory_world()
    _, locations = await crashed(world)
    extra = await world.plane.append([make_frame(99, 50_000)])
    segment = world.the_segment()
    for index in (0, 4):
        file = node_of(world, index).files[fragment_name(segment.segment_id, index)]
        del file[-100:]
    sealed = recover_segment(segment, world.nodes, "s")
    await world.announce(sealed)
    assert await world.open_plane().read([*locations, *extra]) == [*FRAMES, make_frame(99, 50_000)]


async def test_a_stripe_short_of_k_at_the_end_is_cut() -> None:
    world = memory_world()
    _, locations = await crashed(world)
    await world.plane.append([make_frame(99, 50_000)])
    for index in (0, 2, 4):
        node_of(world, index).fault_power_loss()
    await check_recovered(world, locations)


async def test_recovery_rebuilds_what_two_nodes_lost() -> None:
    world = memory_world()
    segment, locations = await crashed(world)
    name = fragment_name(segment.segment_id, 1)
    node_of(world, 1).delete(name)
    cut = node_of(world, 4).files[fragment_name(segment.segment_id, 4)]
    del cut[300_000:]
    await check_recovered(world, locations)
    node_of(world, 0).vanished = node_of(world, 2).vanished = True
    assert await world.open_plane().read(locations) == FRAMES


async def test_recovery_rebuilds_rot_and_keeps_the_rotten_file() -> None:
    world = memory_world()
    segment, locations = await crashed(world)
    node_of(world, 3).fault_corrupt(fragment_name(segment.segment_id, 3), 1000)
    node_of(world, 0).fault_corrupt(fragment_name(segment.segment_id, 0), 4)
    await check_recovered(world, locations)
    assert list(node_of(world, 3).list("quarantine/"))


async def test_recovery_without_a_node_names_its_fragment_and_rebuild_brings_it_back() -> None:
    world = memory_world()
    segment, locations = await crashed(world)
    node = node_of(world, 2)
    node.vanished = True
    segment = await check_recovered(world, locations, lost=[2])
    node.vanished = False
    assert missing_fragments(segment, world.nodes) == [2]
    rebuild_fragments(segment, [2], world.nodes)
    assert missing_fragments(segment, world.nodes) == []
    node_of(world, 0).vanished = node_of(world, 4).vanished = True
    assert await world.plane.read(locations) == FRAMES


async def test_recovery_refuses_with_too_few_nodes() -> None:
    world = memory_world()
    segment, _ = await crashed(world)
    for index in range(3):
        node_of(world, index).vanished = True
    with pytest.raises(Unreadable, match="needs 4 of its nodes"):
        recover_segment(segment, world.nodes, "s")


async def test_a_dead_stripe_does_not_take_the_ones_behind_it_along() -> None:
    world = memory_world()
    written = [await world.write([make_frame(seed, 90_000)]) for seed in range(3)]
    segment = world.the_segment()
    for index in range(6):
        name = fragment_name(segment.segment_id, index)
        start = written[1][0].stripe_offset
        node_of(world, index).files[name][start : start + 200] = bytes(200)
    await world.announce(recover_segment(segment, world.nodes, "s"))
    segment = world.the_segment()
    plane = world.open_plane()
    assert await plane.read([*written[0], *written[2]]) == [make_frame(0, 90_000), make_frame(2, 90_000)]
    with pytest.raises(Unreadable):
        await plane.read(written[1])
    assert segment.stripes == 3


@pytest.mark.parametrize(("named", "kept"), [(None, 3), (2, 3), (0, 1), (-1, 1)])
async def test_a_torn_stripe_ends_an_orphan_unless_something_behind_it_is_named(named: int | None, kept: int) -> None:
    world = memory_world()
    written = [await world.write([make_frame(seed, 90_000)]) for seed in range(3)]
    segment = world.the_segment()
    for index in range(6):
        start = written[1][0].stripe_offset
        node_of(world, index).files[fragment_name(segment.segment_id, index)][start : start + 200] = bytes(200)
    named_to = None if named is None else -1 if named < 0 else written[named][0].stripe_offset
    sealed = recover_segment(segment, world.nodes, "s", named_to)
    assert (sealed.stripes, sealed.fragments_lost) == (kept, [])
    await world.announce(sealed)
    assert await world.open_plane().read(written[0]) == [make_frame(0, 90_000)]
    assert recover_segment(world.the_segment(), world.nodes, "s", named_to) == sealed, (
        "a second recovery changes nothing"
    )


async def test_a_segment_announced_but_never_made_is_sealed_empty() -> None:
    world = memory_world()
    await world.announce(OpenSegment(7, 4, 2, list(world.nodes), "gone"))
    sealed = recover_segment(world.the_segment(), world.nodes, "s")
    assert (sealed.stripes, sealed.fragments_lost) == (0, [])
    await world.announce(sealed)
    assert missing_fragments(world.the_segment(), world.nodes) == []
    for index in range(6):
        header = node_of(world, index).read(fragment_name(7, index), 0, FILE_HEADER_BYTES)
        assert decode_file_header(header).store_id == "s", "whose it is cannot be read from anything else"


async def test_a_replaced_node_is_filled(tmp_path: Path) -> None:
    world = World(directory_nodes(tmp_path))
    locations = await world.write(FRAMES)
    await world.plane.aclose()
    segment = world.the_segment()
    shutil.rmtree(tmp_path / "n1")
    (tmp_path / "n1").mkdir()
    index = segment.node_ids.index("n1")
    assert missing_fragments(segment, world.nodes) == [index]
    assert await world.plane.read(locations) == FRAMES
    write_node_descriptor(tmp_path / "n1", NodeDescriptor(store_id="s", node_id="n1"))
    rebuild_fragments(segment, [index], world.nodes)
    assert missing_fragments(segment, world.nodes) == []
    for name in ("n0", "n2"):
        shutil.rmtree(tmp_path / name)
    assert await world.open_plane().read(locations) == FRAMES


async def test_a_writer_whose_segment_was_recovered_under_it_leaves_it_alone() -> None:
    world = memory_world()
    locations = await world.write(FRAMES[:2])
    first = world.the_segment()
    await world.announce(recover_segment(first, world.nodes, "s"))
    before = {name: bytes(node.files[file]) for name, node in world.nodes.items() for file in node.files}  # type: ignore[attr-defined]
    locations += await world.write(FRAMES[2:])
    assert not world.lost and len(world.segments) == 2
    assert await world.plane.read(locations) == FRAMES
    for index, node_id in enumerate(first.node_ids):
        assert bytes(node_of(world, index, first).files[fragment_name(first.segment_id, index)]) == before[node_id]


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
