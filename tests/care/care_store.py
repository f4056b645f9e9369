"""A small store for the tests of care: content, its fragments, and ways to damage them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from engine.changes import CreateBucket, Origin, PutVersion
from engine.opening import Parts, init_store, open_parts
from engine.segments.format import fragment_name
from engine.store import Store
from engine.types import Segment, SegmentState

ORIGIN = Origin(requester="test")
BUCKET = "bucket"


class World:
    """An open store, and what was put into it."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.store = Store(parts)
        self.contents: dict[str, bytes] = {}

    async def put(self, key: str, content: bytes) -> None:
        with self.store.pins.hold():
            writer = self.store.open_writer()
            await writer.write(content)
            await self.store.commit(PutVersion(BUCKET, key, await writer.finish(), etag="e"), ORIGIN)
        self.contents[key] = content

    async def fill(self, seed: int = 1, sizes: tuple[int, ...] = (70_000, 1_000_000, 2_500_000)) -> None:
        rng = random.Random(seed)
        for size in sizes:
            await self.put(f"key{seed}-{size}", rng.randbytes(size))
        await self.put(f"text{seed}", b"squeezes well " * 20_000)
        await self.parts.plane.seal()

    async def check(self) -> None:
        """Everything reads as it was put. A reader of its own: nothing comes from a cache."""
        store = Store(self.parts)
        for key, content in self.contents.items():
            head = store.keymap.head(BUCKET, key)
            assert head is not None, key
            assert b"".join([bytes(piece) async for piece in store.read(head.manifest)]) == content, key

    def segments(self) -> list[Segment]:
        return [one for one in self.parts.index.keymap.segments() if one.state is SegmentState.SEALED]

    def segment(self) -> Segment:
        return max(self.segments(), key=lambda one: one.size)

    def now(self, segment: Segment) -> Segment:
        found = self.parts.index.keymap.segment(segment.segment_id)
        assert found is not None
        return found

    def file(self, segment: Segment, index: int) -> Path:
        node = self.parts.nodes.nodes[segment.node_ids[index]]
        return Path(node.path) / fragment_name(segment.segment_id, index)

    def place(self, node_id: str) -> Path:
        return Path(next(one.path for one in self.parts.index.keymap.nodes() if one.node_id == node_id))

    def state(self, node_id: str) -> str:
        return str(next(one.state for one in self.parts.index.keymap.nodes() if one.node_id == node_id))

    def quarantined(self) -> dict[str, str]:
        """File in a quarantine → its note."""
        found: dict[str, str] = {}
        for place in self.parts.index.keymap.nodes():
            for note in Path(place.path).glob("quarantine/*.reason"):
                found[note.name.removesuffix(".reason")] = note.read_text()
        return found

    async def whole(self, *segments: Segment) -> None:
        """Return once nothing of the segments (of all) is lost any more."""
        await until(lambda: not any(self.now(one).fragments_lost for one in segments or self.segments()))


def flip(path: Path, offset: int, count: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        content = file.read(count)
        assert len(content) == count, f"{path} ends before {offset + count}"
        file.seek(offset)
        file.write(bytes(byte ^ 0x5A for byte in content))


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not holds():  # noqa: ASYNC110 - states are looked at, nobody announces them
            await anyio.sleep(0.05)


@asynccontextmanager
async def open_world(
    data: Path, *, nodes: int = 6, k: int = 4, m: int = 2, domains: tuple[str, ...] = ()
) -> AsyncIterator[World]:
    """A store with one bucket, made at `data` unless there is one."""
    if not data.exists():
        names = [
            (str(data / "nodes" / str(number)), domains[number - 1] if domains else "")
            for number in range(1, nodes + 1)
        ]
        init_store(data, k=k, m=m, nodes=names)
    async with open_parts(data) as parts:
        world = World(parts)
        if not parts.index.keymap.buckets():
            await world.store.commit(CreateBucket(BUCKET), ORIGIN)
        yield world
