"""Scrub: every byte of every sealed segment is read and checked, least recently checked first.

What is damaged is committed as FragmentsDamaged, and repair takes it from there; that a
segment was checked is committed as SegmentsScrubbed, in small batches: a scrub that is
interrupted goes on where it stopped. What cannot be read any more is reported with its
chunks and never deleted. Journal, epochs, descriptors, index snapshots and archives are
checked too (engine/care/scrub_copies.py).

Reads only, so it runs beside everything else, one scrub at a time. A segment that is
collected or moved while it is read is simply left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from msgspec import Struct

from engine import measured
from engine.care.lock import SCRUB, care_lock
from engine.care.pace import Meter, Report, Throttle, silent
from engine.care.scrub_copies import scrub_copies
from engine.care.underway import telling
from engine.changes import FragmentsDamaged, Origin, SegmentsScrubbed
from engine.errors import StoreError
from engine.interfaces import Node, StoredChunk
from engine.opening import Parts
from engine.segments.checking import SegmentCheck
from engine.types import Segment, SegmentLocation, SegmentState

BYTES_PER_SECOND = 50 * 1024**2  # read, unless told otherwise
BATCH_SEGMENTS = 16  # and at most so many seconds are lost when a scrub is interrupted:
BATCH_SECONDS = 5.0
MEASURED_BYTES_MIN = 16 * 1024**2  # a shorter scrub says nothing about its rate
SEAL_SECONDS = 10.0
ORIGIN = Origin(requester="scrub")

logger = logging.getLogger("objfs.care")


class Damage(Struct, frozen=True):
    """A damaged fragment: `where` is its file, or that of a copy, on the node."""

    node_id: str
    where: str
    reason: str
    segment_id: int = 0
    index: int = 0


class Unreadable(Struct, frozen=True):
    """A stretch of a segment that cannot be read now, and the chunks that lie in it."""

    segment_id: int
    offset: int
    reason: str
    chunk_ids: list[bytes]


class ScrubResult(Struct):
    """What a scrub found. Nothing in the lists: all is well."""

    segments: int = 0
    checked_bytes: int = 0  # of fragment files and copies
    copies: int = 0  # journal replicas, epoch files, descriptors, snapshots and archives
    seconds: float = 0.0
    damaged: list[Damage] = []
    unreadable: list[Unreadable] = []
    problems: list[str] = []
    absent: list[str] = []  # nodes that could not be read


async def scrub(
    parts: Parts,
    *,
    bytes_per_second: int | None = BYTES_PER_SECOND,
    report: Report = silent,
    older_than_ns: int | None = None,
    segment_ids: frozenset[int] | None = None,
    copies: bool = True,
    seal: bool = False,
) -> ScrubResult:
    """Check all segments not checked since `older_than_ns` (None: all), or just those in
    `segment_ids`; with `copies` also what is replicated. `seal` first asks writers to seal
    what is open, so that it is checked too. Raises StoreInUse while another scrub runs."""
    async with care_lock(parts.data, "scrub", name=SCRUB, wait=False), _telling(parts, report) as report:
        if seal:
            await _seal_open(parts)
        work = _Scrub(parts, bytes_per_second)
        await parts.index.freshen()
        waiting = [
            segment
            for segment in parts.index.keymap.segments()
            if segment.state is SegmentState.SEALED
            and (older_than_ns is None or segment.scrubbed_ns < older_than_ns)
            and (segment_ids is None or segment.segment_id in segment_ids)
        ]
        waiting.sort(key=lambda segment: (segment.scrubbed_ns, segment.segment_id))
        meter = Meter("scrub", sum(segment.size * len(segment.node_ids) for segment in waiting), report)
        started = time.monotonic()
        try:
            for segment in waiting:
                await work.check(segment.segment_id, meter)
        finally:
            with anyio.CancelScope(shield=True):
                await work.note_checked()
        if copies:
            await _copies(parts, work, meter)
        meter.tell()
        work.result.seconds = time.monotonic() - started
        await _measure(parts, work.result)
        return work.result


@asynccontextmanager
async def _telling(parts: Parts, report: Report) -> AsyncIterator[Report]:
    with telling(parts.data, "scrub", report) as tell:
        yield tell


async def _seal_open(parts: Parts) -> None:
    """Ask for sealing and wait a moment. What is open after that is checked next time."""
    opened = [one.segment_id for one in parts.index.keymap.segments() if one.state is SegmentState.OPEN]
    await parts.index.request_seal()
    with anyio.move_on_after(SEAL_SECONDS):
        while any(  # noqa: ASYNC110 - nobody announces that a segment is sealed
            one.state is SegmentState.OPEN
            for segment_id in opened
            if (one := parts.index.keymap.segment(segment_id)) is not None
        ):
            await anyio.sleep(0.1)


async def _copies(parts: Parts, work: _Scrub, meter: Meter) -> None:
    found = await scrub_copies(parts, work.throttle, meter)
    work.result.copies = found.copies
    work.result.checked_bytes += found.checked_bytes
    work.result.problems += found.problems
    work.result.damaged += [Damage(node_id, where, reason) for node_id, where, reason in found.damaged]


async def _measure(parts: Parts, result: ScrubResult) -> None:
    nodes = len(parts.nodes.nodes)
    if result.checked_bytes >= MEASURED_BYTES_MIN and nodes:
        rate = result.checked_bytes / result.seconds / nodes
        await anyio.to_thread.run_sync(lambda: measured.note(parts.data, scrub_bytes_per_second=rate))


class _Scrub:
    def __init__(self, parts: Parts, bytes_per_second: int | None) -> None:
        self.result = ScrubResult()
        self.throttle = Throttle(bytes_per_second)
        self._parts = parts
        self._checked: list[int] = []
        self._noted = time.monotonic()

    async def check(self, segment_id: int, meter: Meter) -> None:
        parts = self._parts
        segment = parts.index.keymap.segment(segment_id)
        if segment is None or segment.state is not SegmentState.SEALED:
            return
        nodes = _nodes_of(segment, parts.nodes.nodes)
        check = SegmentCheck(segment, nodes, parts.descriptor.store_id)
        try:
            await self._read(check, meter)
        except StoreError as error:  # a newer format: said by name, everything else goes on
            self.result.problems.append(f"segment {segment_id:016x}: {error}")
            return
        now = parts.index.keymap.segment(segment_id)
        if now is None or now.node_ids != segment.node_ids:
            return  # deleted or moved while it was read: what was found is of the past
        await self._tell(now, check)
        self.result.segments += 1
        self._checked.append(segment_id)
        if len(self._checked) >= BATCH_SEGMENTS or time.monotonic() - self._noted > BATCH_SECONDS:
            await self.note_checked()

    async def _read(self, check: SegmentCheck, meter: Meter) -> None:
        expected = check.segment.size * len(check.segment.node_ids)
        await anyio.to_thread.run_sync(check.begin)
        while not check.done:
            size = check.sweep.next_bytes
            await self.throttle.take(size)
            await anyio.to_thread.run_sync(check.step)
            meter.add(size)
            expected -= size
        check.finish()
        meter.add(expected)  # headers, footers, and what is not there to be read
        self.result.checked_bytes += check.sweep.bytes_read

    async def note_checked(self) -> None:
        checked, self._checked, self._noted = self._checked, [], time.monotonic()
        if checked:
            await self._parts.index.commit(SegmentsScrubbed(checked, time.time_ns()), ORIGIN)

    # -- telling -----------------------------------------------------------------

    async def _tell(self, segment: Segment, check: SegmentCheck) -> None:
        segment_id = segment.segment_id
        for index, reason in sorted(check.damaged.items()):
            node_id = segment.node_ids[index]
            logger.warning("segment %016x fragment %d on node %s: %s", segment_id, index, node_id, reason)
            self.result.damaged.append(
                Damage(node_id, f"segment {segment_id:016x} fragment {index}", reason, segment_id, index)
            )
        indexes = sorted(set(check.damaged) - set(segment.fragments_lost))
        if indexes:
            reasons = "; ".join(f"fragment {index}: {check.damaged[index]}" for index in indexes)
            await self._parts.index.commit(FragmentsDamaged(segment_id, indexes, reasons), ORIGIN)
        for why in check.sweep.absent.values():
            if why not in self.result.absent:
                self.result.absent.append(why)
        self.result.problems += [f"segment {segment_id:016x}: {problem}" for problem in check.problems]
        with self._parts.index.keymap.snapshot() as keymap:
            stored = await anyio.to_thread.run_sync(keymap.chunks_in, segment_id)
        self._tell_unreadable(segment_id, check, stored)

    def _tell_unreadable(self, segment_id: int, check: SegmentCheck, stored: Sequence[StoredChunk]) -> None:
        found = {(entry.scope, entry.chunk_id, entry.location) for entry in check.found}
        lacking = [chunk for chunk in stored if (chunk.scope, chunk.chunk_id, chunk.location) not in found]
        for stretch in check.unreadable:
            inside = [chunk for chunk in lacking if stretch.offset <= _offset(chunk) < stretch.end]
            lacking = [chunk for chunk in lacking if chunk not in inside]
            self._unreadable(segment_id, stretch.offset, stretch.reason, inside)
        if lacking:
            self._unreadable(segment_id, _offset(lacking[0]), "chunks are not where the index says they are", lacking)

    def _unreadable(self, segment_id: int, offset: int, reason: str, chunks: Sequence[StoredChunk]) -> None:
        logger.error("segment %016x at %d: %d chunks can't be read: %s", segment_id, offset, len(chunks), reason)
        self.result.unreadable.append(Unreadable(segment_id, offset, reason, [chunk.chunk_id for chunk in chunks]))


def _offset(chunk: StoredChunk) -> int:
    assert isinstance(chunk.location, SegmentLocation), "it was listed as lying in a segment"
    return chunk.location.stripe_offset


def _nodes_of(segment: Segment, nodes: Mapping[str, Node]) -> dict[int, Node]:
    """Where the fragments lie that should be whole."""
    return {
        index: nodes[node_id]
        for index, node_id in enumerate(segment.node_ids)
        if node_id in nodes and index not in segment.fragments_lost
    }
