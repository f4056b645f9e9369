"""The read path: a manifest and a range in, verified bytes out.

Works in windows of a few MiB: cut the entries, look up the chunks, read their frames in
one batch, verify and decompress in a thread. Decoded chunks stay in a small LRU, so
that neighbouring windows and small random reads do not decode twice. One per process;
its methods may run concurrently on one event loop.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence

import anyio.to_thread

from engine.errors import FragmentCorrupt, StoreError, Unreadable
from engine.frames import decode_frame
from engine.interfaces import DataPlane, Index
from engine.manifests import cut, decode_manifest
from engine.types import (
    ChunkEntry,
    Entry,
    HoleEntry,
    InlineEntry,
    JournalLocation,
    Location,
    Manifest,
    SliceEntry,
    TreeEntry,
)

WINDOW_BYTES = 2 * 1024 * 1024
CACHE_BYTES_MAX = 32 * 1024 * 1024
ON_LOOP_BYTES = 64 * 1024
_ZEROS = memoryview(bytes(1024 * 1024))


class ChunkCache:
    """Decoded chunks, least recently used out first, bounded in bytes."""

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, chunk_id: bytes) -> bytes | None:
        plain = self._chunks.get(chunk_id)
        if plain is not None:
            self._chunks.move_to_end(chunk_id)
        return plain

    def put(self, chunk_id: bytes, plain: bytes) -> None:
        if chunk_id in self._chunks:
            return
        self._chunks[chunk_id] = plain
        self._bytes += len(plain)
        while self._bytes > self._bytes_max:
            _, dropped = self._chunks.popitem(last=False)
            self._bytes -= len(dropped)


class ContentReader:
    def __init__(self, plane: DataPlane, index: Index) -> None:
        self._plane = plane
        self._index = index
        self._cache = ChunkCache()

    async def read(self, manifest: Manifest, offset: int = 0, length: int | None = None) -> AsyncIterator[memoryview]:
        """Pieces of [offset, offset+length). Raises Unreadable, FragmentCorrupt."""
        end = manifest.length if length is None else min(offset + length, manifest.length)
        while offset < end:
            window_end = min(offset + WINDOW_BYTES, end)
            entries = await cut(manifest.entries, offset, window_end, self.load, keep_trees=False)
            for piece in await self._materialise(entries):
                yield piece
            offset = window_end

    async def read_range(self, manifest: Manifest, offset: int, length: int) -> memoryview:
        end = min(offset + length, manifest.length)
        if offset >= end:
            return memoryview(b"")
        entries = await cut(manifest.entries, offset, end, self.load, keep_trees=False)
        pieces = await self._materialise(entries)
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    async def load(self, entry: TreeEntry) -> Manifest:
        """A tree entry's node."""
        plains = await self._chunks([entry.chunk_id])
        return decode_manifest(plains[entry.chunk_id])

    async def expand(self, manifest: Manifest) -> AsyncIterator[Entry]:
        """Every leaf entry, in order, loading tree nodes one at a time."""
        for entry in manifest.entries:
            if isinstance(entry, TreeEntry):
                async for leaf in self.expand(await self.load(entry)):
                    yield leaf
            else:
                yield entry

    async def verify(self, chunk_id: bytes) -> None:
        """Read the chunk from the nodes, past the cache, and hash it again. Raises
        Unreadable, FragmentCorrupt."""
        frames = await self._frames([chunk_id])
        await anyio.to_thread.run_sync(_rehash, frames)

    async def _materialise(self, entries: Sequence[Entry]) -> list[memoryview]:
        wanted = [entry.chunk_id for entry in entries if isinstance(entry, (ChunkEntry, SliceEntry))]
        plains = await self._chunks(wanted)
        pieces: list[memoryview] = []
        for entry in entries:
            match entry:
                case ChunkEntry():
                    pieces.append(memoryview(plains[entry.chunk_id]))
                case SliceEntry():
                    whole = memoryview(plains[entry.chunk_id])
                    pieces.append(whole[entry.offset : entry.offset + entry.length])
                case InlineEntry():
                    pieces.append(memoryview(entry.content))
                case HoleEntry():
                    left = entry.length
                    while left:
                        pieces.append(_ZEROS[: min(left, len(_ZEROS))])
                        left -= len(pieces[-1])
                case TreeEntry():
                    raise AssertionError("cut() returns leaves")
        return pieces

    async def _chunks(self, wanted: Sequence[bytes]) -> dict[bytes, bytes]:
        plains: dict[bytes, bytes] = {}
        missing: list[bytes] = []
        for chunk_id in dict.fromkeys(wanted):
            plain = self._cache.get(chunk_id)
            if plain is None:
                missing.append(chunk_id)
            else:
                plains[chunk_id] = plain
        if missing:
            frames = await self._frames(missing)
            if sum(map(len, frames.values())) <= ON_LOOP_BYTES:
                decoded = _decode_frames(frames)
            else:
                decoded = await anyio.to_thread.run_sync(_decode_frames, frames)
            for chunk_id, plain in decoded.items():
                self._cache.put(chunk_id, plain)
            plains |= decoded
        return plains

    async def _frames(self, chunk_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Frames may be moved, and the place they were at deleted, between the look at the
        keymap and the read: then they are looked up once more."""
        locations = self._locate(chunk_ids)
        while True:
            try:
                return await self._frames_at(locations)
            except StoreError:
                before, locations = locations, self._locate(chunk_ids)
                if locations == before:
                    raise

    def _locate(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        locations = self._index.keymap.locations(chunk_ids)
        if len(locations) < len(chunk_ids):
            lost = next(chunk_id for chunk_id in chunk_ids if chunk_id not in locations)
            raise Unreadable(f"chunk {lost.hex()} is named by a manifest but stored nowhere; run objfs fsck")
        return locations

    async def _frames_at(self, locations: Mapping[bytes, Location]) -> dict[bytes, bytes]:
        frames: dict[bytes, bytes] = {}
        in_segments = []
        for chunk_id, location in locations.items():
            if isinstance(location, JournalLocation):
                frames[chunk_id] = await self._index.read_frame(location, chunk_id)
            else:
                in_segments.append((chunk_id, location))
        if in_segments:
            read = await self._plane.read(
                [location for _, location in in_segments], [chunk_id for chunk_id, _ in in_segments]
            )
            frames.update(zip((chunk_id for chunk_id, _ in in_segments), read, strict=True))
        return frames


def _decode_frames(frames: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {chunk_id: decode_frame(frame, chunk_id) for chunk_id, frame in frames.items()}


def _rehash(frames: dict[bytes, bytes]) -> None:
    for chunk_id, plain in _decode_frames(frames).items():
        if hashlib.sha256(plain).digest() != chunk_id:
            raise FragmentCorrupt(f"chunk {chunk_id.hex()} does not hash to its name")
