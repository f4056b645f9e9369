"""Which containers a collection may free: what lies in them, and whether it is worth it.

A victim is a sealed segment or a closed journal file, weighed against a mark. Only sums
are kept of it; its chunks are read in pages whenever they are worked on. Pages are read in
threads; one task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import anyio.to_thread
from msgspec import Struct

from engine.care.marking import Mark
from engine.interfaces import KeymapReader, StoredChunk
from engine.opening import Parts
from engine.types import NodeState, Segment, SegmentState

PAGE_CHUNKS = 4000
GAIN_MIN = 0.05  # a compaction that would free less than this share is left
ROUND_BYTES = 1024**3  # live bytes moved before the first victims are deleted


class Victim(Struct):
    """`container` as in engine.changes.Condemn. Bytes are stored bytes of chunks, but for
    `data_bytes`, what the container can hold, and `file_bytes`, over all nodes."""

    container: int
    segment: Segment | None = None  # None: a journal file
    data_bytes: int = 0
    file_bytes: int = 0
    named_chunks: int = 0
    named_bytes: int = 0
    dead_chunks: int = 0
    dead_bytes: int = 0
    dead_by_bucket: dict[int, int] = {}

    @property
    def live_share(self) -> float:
        return self.named_bytes / max(self.data_bytes, 1)

    def count(self, named: Sequence[StoredChunk], dead: Sequence[StoredChunk]) -> None:
        self.named_chunks += len(named)
        self.named_bytes += sum(chunk.stored for chunk in named)
        self.dead_chunks += len(dead)
        for chunk in dead:
            self.dead_bytes += chunk.stored
            self.dead_by_bucket[chunk.bucket_id] = self.dead_by_bucket.get(chunk.bucket_id, 0) + chunk.stored


def segment_victim(segment: Segment) -> Victim:
    return Victim(
        segment.segment_id,
        segment,
        data_bytes=segment.k * segment.size,
        file_bytes=(segment.k + segment.m) * segment.size,
    )


async def pages(
    mark: Mark, state: Callable[[], AbstractContextManager[KeymapReader]], container: int
) -> AsyncIterator[tuple[list[StoredChunk], list[StoredChunk]]]:
    """What lies in a container, page by page: (named, dead). `state` gives the reader for
    each page: a long look at one state would keep the keymap from tidying up."""
    after = (-1, b"")
    while True:
        with state() as reader:
            chunks = await anyio.to_thread.run_sync(reader.chunks_in, container, PAGE_CHUNKS, after)
        if not chunks:
            return
        after = (chunks[-1].scope, chunks[-1].chunk_id)
        yield await mark.split(chunks)


async def weigh(mark: Mark, reader: KeymapReader, victim: Victim) -> Victim:
    async for named, dead in pages(mark, lambda: nullcontext(reader), victim.container):
        victim.count(named, dead)
    return victim


async def choose_segments(
    parts: Parts, mark: Mark, threshold: float | None, *, as_if_sealed: bool = False
) -> tuple[list[Victim], list[Victim]]:
    """Sealed segments nothing is named in, and (with a threshold) those worth compacting,
    the emptiest first. `as_if_sealed` takes in the open ones, for a dry run."""
    dead: list[Victim] = []
    mixed: list[Victim] = []
    with parts.index.keymap.snapshot() as reader:
        for segment in reader.segments():
            if segment.state is not SegmentState.SEALED and not as_if_sealed:
                continue
            victim = await weigh(mark, reader, segment_victim(segment))
            if segment.state is not SegmentState.SEALED:
                _size_by_content(victim, segment)
            if not victim.named_chunks:
                dead.append(victim)
            elif threshold is not None and (_is_narrow(parts, segment) or victim.live_share < threshold):
                mixed.append(victim)
    mixed.sort(key=lambda victim: (victim.live_share, victim.container))
    return dead, mixed if _gains(parts, mixed) else []


def _size_by_content(victim: Victim, segment: Segment) -> None:
    """Of an open segment only that is known."""
    victim.data_bytes = victim.named_bytes + victim.dead_bytes
    victim.file_bytes = victim.data_bytes * (segment.k + segment.m) // segment.k


def _is_narrow(parts: Parts, segment: Segment) -> bool:
    """Cut over fewer nodes than there are now."""
    healthy = sum(1 for place in parts.index.keymap.nodes() if place.state is NodeState.HEALTHY)
    return segment.k < parts.descriptor.k and healthy >= parts.descriptor.k + parts.descriptor.m


def _gains(parts: Parts, victims: Sequence[Victim]) -> bool:
    """Small segments are never full: compacting them again and again frees nothing."""
    before = sum(victim.file_bytes for victim in victims)
    return before > 0 and before - sum(moved_bytes(parts, victim) for victim in victims) >= GAIN_MIN * before


def moved_bytes(parts: Parts, victim: Victim) -> int:
    """What the named chunks of a victim will take on the nodes."""
    k, m = parts.descriptor.k, parts.descriptor.m
    return victim.named_bytes * (k + m) // k


def rounds(victims: Sequence[Victim]) -> list[list[Victim]]:
    """Victims in groups whose live bytes need little room at a time."""
    groups: list[list[Victim]] = []
    size = ROUND_BYTES
    for victim in victims:
        if size + victim.named_bytes > ROUND_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(victim)
        size += victim.named_bytes
    return groups
