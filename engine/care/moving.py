"""Copying chunks forward: out of a container that is to go, into this process's segment.

Bytes are hashed on the way: what does not hash to its name is not carried on. Whatever
was copied is synced before the index is told, and a chunk that was moved or dropped by
somebody else meanwhile is left as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import anyio.to_thread

from engine.care.pace import Meter, Throttle
from engine.changes import MoveChunks, Origin
from engine.errors import FragmentCorrupt
from engine.frames import decode_frame
from engine.interfaces import StoredChunk
from engine.opening import Parts
from engine.types import JournalLocation, NewChunk, SegmentLocation

BATCH_BYTES = 4 * 1024 * 1024
BATCH_CHUNKS = 1000
ROOM_BYTES = 4 * BATCH_BYTES  # on every node, before a batch is copied
ORIGIN = Origin(requester="care")


async def move_chunks(parts: Parts, chunks: Sequence[StoredChunk], throttle: Throttle, meter: Meter) -> None:
    """Returns when all of them lie in segments of this process, synced and committed.
    Raises Unreadable, FragmentCorrupt, NodeFull, WritesStopped; what was moved by then
    stays moved."""
    for batch in _batches(chunks):
        await throttle.take(sum(chunk.stored for chunk in batch))
        frames = await _read(parts, batch)
        await anyio.to_thread.run_sync(_check, batch, frames)
        # Moving makes room in the end, so it may take what is kept aside for that.
        await anyio.to_thread.run_sync(parts.nodes.reserve.lend, ROOM_BYTES)
        with parts.plane.from_reserve():
            appended = await parts.plane.append(frames)
            await parts.plane.sync()
        moves = [
            NewChunk(chunk.chunk_id, chunk.length, location=parts.plane.relocated(location), scope=chunk.scope)
            for chunk, location in zip(batch, appended, strict=True)
        ]
        await parts.index.commit(MoveChunks(moves, before=[chunk.location for chunk in batch]), ORIGIN)
        meter.add(sum(chunk.stored for chunk in batch))


def _batches(chunks: Sequence[StoredChunk]) -> Iterator[list[StoredChunk]]:
    batch: list[StoredChunk] = []
    size = 0
    for chunk in chunks:
        if batch and (size + chunk.stored > BATCH_BYTES or len(batch) == BATCH_CHUNKS):
            yield batch
            batch, size = [], 0
        batch.append(chunk)
        size += chunk.stored
    if batch:
        yield batch


async def _read(parts: Parts, batch: Sequence[StoredChunk]) -> list[bytes]:
    frames: dict[int, bytes] = {}
    in_segments: list[tuple[int, SegmentLocation]] = []
    for number, chunk in enumerate(batch):
        if isinstance(chunk.location, JournalLocation):
            frames[number] = await parts.index.read_frame(chunk.location, chunk.chunk_id)
        else:
            in_segments.append((number, chunk.location))
    read = await parts.plane.read(
        [location for _, location in in_segments], [batch[number].chunk_id for number, _ in in_segments]
    )
    frames.update(zip((number for number, _ in in_segments), read, strict=True))
    return [frames[number] for number in range(len(batch))]


def _check(batch: Sequence[StoredChunk], frames: Sequence[bytes]) -> None:
    for chunk, frame in zip(batch, frames, strict=True):
        if hashlib.sha256(decode_frame(frame, chunk.chunk_id)).digest() != chunk.chunk_id:
            raise FragmentCorrupt(f"chunk {chunk.chunk_id.hex()} does not hash to its name and was not moved")
