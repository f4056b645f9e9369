"""Nodes, and the little of an index a data plane talks to, for the tests of segments."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel

from engine.changes import OpenSegment, SealSegment
from engine.frames import encode_frame
from engine.interfaces import Node
from engine.nodes.descriptor import NodeDescriptor, write_node_descriptor
from engine.nodes.directory import DirectoryNode
from engine.nodes.memory import MemoryNode
from engine.segments.plane import SegmentPlane
from engine.types import NodeEntry, Segment, SegmentLocation, SegmentState


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


@contextmanager
def fresh_world(kind: str, top: Path) -> Iterator[World]:
    """Over nodes in "memory", or over directories below `top`."""
    nodes = memory_nodes() if kind == "memory" else directory_nodes(top)
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
