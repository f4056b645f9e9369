"""What a writer left is sealed, with what was synced whole; lost and rotten fragments are made anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.changes import OpenSegment
from engine.errors import Unreadable
from engine.nodes.descriptor import NodeDescriptor, write_node_descriptor
from engine.segments.format import FILE_HEADER_BYTES, decode_file_header, fragment_name
from engine.segments.recovery import missing_fragments, read_directory, rebuild_fragments, recover_segment
from engine.types import Segment, SegmentLocation
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
