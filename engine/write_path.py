"""The write path: bytes in, Content out.

StreamWriter cuts a stream into chunks; ChunkSink stores what the keymap does not know
yet: small content stays in memory and rides in the commit record, more goes into
stripes of this process's open segment. finish() returns once all of it is synced, so a
commit never names a byte that could still be lost (design.md section 6, rule 1).

Memory per writer: one block of chunks in work (BLOCK_BYTES plus one chunk) and, below
the inline limit, its frames. A writer belongs to one task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import anyio.to_thread

from engine import limits
from engine.chunking import Chunker
from engine.frames import encode_frame
from engine.interfaces import Buffer, DataPlane, KeymapReader
from engine.manifests import encode_manifest
from engine.pins import Pins
from engine.types import ChunkEntry, Content, Entry, Manifest, NewChunk, SegmentLocation, TreeEntry

BLOCK_BYTES = 1024 * 1024  # worked on at once: one hop to a thread each
ON_LOOP_BYTES = 16 * 1024  # below this a thread hop costs more than the hash


class ChunkSink:
    """Where the new chunks of one content go. `add` returns once they are written (or
    kept, while all of them together may still ride in the record). The caller holds a pin
    (engine.pins) from before it makes the sink until its commit has returned."""

    def __init__(self, plane: DataPlane, keymap: KeymapReader, pins: Pins) -> None:
        assert pins.active, "content is written under a pin"
        self._plane = plane
        self._keymap = keymap
        self._riding: list[tuple[bytes, int, bytes]] = []
        self._riding_bytes = 0
        self._stored: list[tuple[bytes, int, SegmentLocation]] = []
        self._seen: set[bytes] = set()

    async def add(self, chunks: Sequence[tuple[bytes, Buffer]]) -> None:
        """Store each (chunk id, plaintext) that is new. Raises NodeFull, WritesStopped."""
        fresh = {chunk_id: plain for chunk_id, plain in chunks if chunk_id not in self._seen}
        known = self._keymap.matchable(fresh)
        missing = [(chunk_id, plain) for chunk_id, plain in fresh.items() if chunk_id not in known]
        self._seen.update(fresh)
        if not missing:
            return
        if sum(len(plain) for _, plain in missing) <= ON_LOOP_BYTES:
            frames = [encode_frame(chunk_id, plain) for chunk_id, plain in missing]
        else:
            frames = await anyio.to_thread.run_sync(_encode_frames, missing)
        for (chunk_id, plain), frame in zip(missing, frames, strict=True):
            self._riding.append((chunk_id, len(plain), frame))
            self._riding_bytes += len(frame)
        if self._stored or self._riding_bytes > limits.INLINE_BYTES_MAX:
            await self._store_riding()

    async def finish(self) -> list[NewChunk]:
        """Every chunk added, synced where it was stored in segments."""
        if not self._stored:
            return [NewChunk(chunk_id, length, frame=frame) for chunk_id, length, frame in self._riding]
        await self._plane.sync()
        return [
            NewChunk(chunk_id, length, location=self._plane.relocated(location))
            for chunk_id, length, location in self._stored
        ]

    async def _store_riding(self) -> None:
        riding, self._riding, self._riding_bytes = self._riding, [], 0
        locations = await self._plane.append([frame for _, _, frame in riding])
        for (chunk_id, length, _), location in zip(riding, locations, strict=True):
            self._stored.append((chunk_id, length, location))


class StreamWriter:
    """Streams one content in; see engine.store.ContentWriter."""

    def __init__(self, plane: DataPlane, keymap: KeymapReader, pins: Pins) -> None:
        self.size = 0
        self._sink = ChunkSink(plane, keymap, pins)
        self._chunker: Chunker | None = None
        self._entries: list[Entry] = []
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._ended = False

    async def write(self, data: Buffer) -> None:
        """Raises NodeFull, WritesStopped. `data` must not change afterwards."""
        assert not self._ended, "a writer is used once"
        self.size += len(data)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= BLOCK_BYTES:
            await self._work(final=False)

    async def finish(self) -> Content:
        assert not self._ended, "a writer is used once"
        await self._work(final=True)
        self._ended = True
        manifest = await grow(self._entries, self._sink)
        content = Content(manifest, await self._sink.finish())
        assert content.size == self.size, "entries must cover the content"
        return content

    async def abort(self) -> None:
        """Forget the content. What reached a segment is dead space there."""
        self._ended = True
        self._pending.clear()
        self._entries.clear()

    async def _work(self, *, final: bool) -> None:
        blocks, self._pending = self._pending, []
        total, self._pending_bytes = self._pending_bytes, 0
        if self._chunker is None:
            self._chunker = Chunker()
        if total <= ON_LOOP_BYTES and self.size <= ON_LOOP_BYTES:
            chunks = _cut_and_hash(self._chunker, blocks, final)
        else:
            chunks = await anyio.to_thread.run_sync(_cut_and_hash, self._chunker, blocks, final)
        self._entries += [ChunkEntry(chunk_id, len(plain)) for chunk_id, plain in chunks]
        if chunks:
            await self._sink.add(chunks)


async def grow(entries: Sequence[Entry], sink: ChunkSink) -> Manifest:
    """A manifest over `entries`; more than MANIFEST_ENTRIES_MAX become a tree, whose nodes
    are chunks like any other."""
    level = list(entries)
    while len(level) > limits.MANIFEST_ENTRIES_MAX:
        parents: list[Entry] = []
        for start in range(0, len(level), limits.MANIFEST_ENTRIES_MAX):
            node = Manifest(level[start : start + limits.MANIFEST_ENTRIES_MAX])
            encoded = encode_manifest(node)
            chunk_id = hashlib.sha256(encoded).digest()
            await sink.add([(chunk_id, encoded)])
            parents.append(TreeEntry(chunk_id, len(encoded), node.length))
        level = parents
    return Manifest(level)


async def cut_into(blocks: Sequence[Buffer], sink: ChunkSink) -> list[Entry]:
    """Chunk `blocks` as one run of bytes, store what is new, and return the entries."""
    total = sum(map(len, blocks))
    if total <= ON_LOOP_BYTES:
        chunks = _cut_and_hash(Chunker(), blocks, True)
    else:
        chunks = await anyio.to_thread.run_sync(_cut_and_hash, Chunker(), blocks, True)
    await sink.add(chunks)
    return [ChunkEntry(chunk_id, len(plain)) for chunk_id, plain in chunks]


def _cut_and_hash(chunker: Chunker, blocks: Sequence[Buffer], final: bool) -> list[tuple[bytes, Buffer]]:
    chunks: list[Buffer] = []
    for block in blocks:
        chunks += chunker.feed(block)
    if final:
        chunks += chunker.finish()
    return [(hashlib.sha256(chunk).digest(), chunk) for chunk in chunks]


def _encode_frames(chunks: Sequence[tuple[bytes, Buffer]]) -> list[bytes]:
    return [encode_frame(chunk_id, plain) for chunk_id, plain in chunks]
