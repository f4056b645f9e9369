"""Collection and compaction: bytes nothing names come back.

A collection marks what is named (engine.care.marking), chooses victims among the sealed
segments and the journal files, and frees them in rounds:

    condemn      nothing new is matched there; whoever may have matched before holds an
                 older pin
    move         what is named is copied forward
    wait         until no pin is older than the condemnation
    mark again   adding all that was published since the first mark; what is named after
                 all is moved too
    delete       the index drops the victims, if exactly the dead lie in them
    files        then their files are deleted

The first mark comes before every condemnation. So a chunk that is neither in it nor was
published until the second mark can't be in the hands of anyone: who read a version that
named it did so under a pin from before the condemnation, and that has ended.

Stopped anywhere, it leaves condemned containers, which the next run frees or spares, and
files of dropped segments, which the sweep finds (engine.care.sweep). One at a time, under
the care lock, in any process that has the store open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread
from msgspec import Struct

from engine.care.lock import care_lock
from engine.care.marking import Mark, marking
from engine.care.moving import move_chunks
from engine.care.pace import Meter, Progress, Report, Throttle, silent
from engine.care.sweep import Swept, delete_fragments, list_fragments, sweep_files
from engine.changes import AbortUpload, Condemn, DeleteSegments, Origin, Spare
from engine.crash_sites import CrashSite, reached
from engine.errors import (
    CollectionStopped,
    FragmentCorrupt,
    NodeFull,
    NoSuchUpload,
    StoreError,
    Unreadable,
    WritesStopped,
)
from engine.interfaces import StoredChunk
from engine.opening import Parts
from engine.pins import OldestPin, oldest_pin
from engine.types import Bucket, NodeState, Segment, SegmentState, Upload

ORIGIN = Origin(requester="collection")
SEAL_SECONDS = 10.0  # for the writers to seal what they have open
WAIT_SECONDS = 60.0  # for pins older than a condemnation to end
ABANDONED_SECONDS = 7 * 86400.0  # an upload nothing was added to for so long is aborted
THRESHOLD = 0.8  # a segment whose live share is below is compacted
GAIN_MIN = 0.05  # a compaction that would free less than this share is left
ROUND_BYTES = 1024**3  # live bytes moved before the first victims are deleted
ATTEMPTS_MAX = 3  # at a deletion that finds something changed
POLL_SECONDS = 0.05


class CollectionResult(Struct):
    """What a collection did, or (dry_run) would do. Bytes are bytes on the nodes, except
    in `buckets`: there the stored bytes of the dead chunks each bucket's writes brought."""

    dry_run: bool = False
    freed_bytes: int = 0
    segments: int = 0
    journal_files: int = 0
    chunks: int = 0  # dead ones, dropped
    orphan_bytes: int = 0  # of the segments' data, where no chunk lay
    moved_bytes: int = 0  # stored bytes of live chunks copied forward
    uploads: dict[str, int] = {}  # aborted, by bucket
    buckets: dict[str, int] = {}
    leftover_files: int = 0  # of segments that had been dropped before
    quarantined_files: int = 0
    unsealed: list[str] = []  # writers that did not seal in time
    spared: int = 0  # victims given up for this time …
    reasons: list[str] = []  # … and why


class Victim(Struct):
    """A sealed segment that is to go, with what the mark found in it."""

    segment: Segment
    named: list[StoredChunk]
    dead: list[StoredChunk]

    @property
    def named_bytes(self) -> int:
        return sum(chunk.stored for chunk in self.named)

    @property
    def file_bytes(self) -> int:
        return self.segment.size * (self.segment.k + self.segment.m)

    @property
    def live_share(self) -> float:
        return self.named_bytes / max(self.segment.k * self.segment.size, 1)


async def collect(
    parts: Parts,
    *,
    compact: bool = False,
    dry_run: bool = False,
    threshold: float = THRESHOLD,
    abandoned_after: float = ABANDONED_SECONDS,
    bytes_per_second: int | None = None,
    wait_seconds: float = WAIT_SECONDS,
    report: Report = silent,
    waiting: Callable[[str], None] | None = None,
) -> CollectionResult:
    """Free what nothing names; with `compact` also what lies between what something names.
    Returns when the bytes are freed. Raises CollectionStopped when the index contradicts
    itself (nothing is deleted then), and what reading and writing raise."""
    async with care_lock(parts.data, "compaction" if compact else "collection", waiting=waiting):
        run = _Collection(parts, dry_run, threshold if compact else None, bytes_per_second, wait_seconds, report)
        return await run.collect(abandoned_after)


class _Collection:
    def __init__(
        self,
        parts: Parts,
        dry_run: bool,
        threshold: float | None,
        bytes_per_second: int | None,
        wait_seconds: float,
        report: Report,
    ) -> None:
        self._parts = parts
        self._dry_run = dry_run
        self._threshold = threshold  # None: only what is wholly dead
        self._throttle = Throttle(bytes_per_second)
        self._wait_seconds = wait_seconds
        self._report = report
        self._result = CollectionResult(dry_run=dry_run)
        self._names = {bucket.bucket_id: bucket.name for bucket in parts.index.keymap.buckets()}

    async def collect(self, abandoned_after: float) -> CollectionResult:
        await self._parts.index.freshen()
        if not self._dry_run:
            await self._sweep()
            await self._seal()
        await self._abort_uploads(time.time_ns() - int(abandoned_after * 10**9))
        async with marking(self._parts, report=self._report) as mark:
            await mark.extend()  # marking takes its time, and what was written meanwhile is not dead
            dead, mixed = await self._choose(mark)
            await self._free(mark, dead)
            for some in _rounds(mixed):
                if not await self._free(mark, some):
                    break
        if not self._dry_run:
            await self._spare(list(self._parts.index.keymap.condemned()))
            await self._parts.plane.seal()
        return self._result

    # -- before the mark -------------------------------------------------------

    async def _seal(self) -> None:
        """Ask every writer to seal, and wait for the segments that are open now."""
        keymap = self._parts.index.keymap
        waited = {segment.segment_id for segment in keymap.segments() if segment.state is SegmentState.OPEN}
        await self._parts.index.request_seal()
        await self._parts.plane.seal()
        self._report(Progress("waiting for writers to seal", 0, None))
        with anyio.move_on_after(SEAL_SECONDS):
            while any(_is_open(keymap.segment(segment_id)) for segment_id in waited):  # noqa: ASYNC110 - other processes
                await anyio.sleep(POLL_SECONDS)
        left = [keymap.segment(segment_id) for segment_id in sorted(waited)]
        self._result.unsealed = sorted({one.owner for one in left if one is not None and _is_open(one)})

    async def _abort_uploads(self, before_ns: int) -> None:
        for bucket in self._parts.index.keymap.buckets():
            after = ("", "")
            while page := self._parts.index.keymap.uploads(bucket.name, "", *after):
                after = (page[-1].key, page[-1].upload_id)
                for upload in page:
                    if self._last_used_ns(upload) < before_ns:
                        await self._abort(bucket, upload)

    def _last_used_ns(self, upload: Upload) -> int:
        parts = self._parts.index.keymap.parts(upload.upload_id)
        return max([upload.initiated_ns, *(part.last_modified_ns for part in parts)])

    async def _abort(self, bucket: Bucket, upload: Upload) -> None:
        if not self._dry_run:
            try:
                await self._parts.index.commit(AbortUpload(bucket.name, upload.key, upload.upload_id), ORIGIN)
            except NoSuchUpload:
                return  # completed or aborted meanwhile
        self._result.uploads[bucket.name] = self._result.uploads.get(bucket.name, 0) + 1

    # -- choosing --------------------------------------------------------------

    async def _choose(self, mark: Mark) -> tuple[list[Victim], list[Victim]]:
        """Segments nothing is named in, and those worth compacting, emptiest first."""
        dead: list[Victim] = []
        mixed: list[Victim] = []
        with self._parts.index.keymap.snapshot() as reader:
            for segment in reader.segments():
                if segment.state is not SegmentState.SEALED:
                    continue
                chunks = await anyio.to_thread.run_sync(reader.chunks_in, segment.segment_id)
                named, gone = await mark.split(chunks)
                victim = Victim(segment, named, gone)
                if not named:
                    dead.append(victim)
                elif self._threshold is not None and self._is_worth_it(victim, self._threshold):
                    mixed.append(victim)
        mixed.sort(key=lambda victim: (victim.live_share, victim.segment.segment_id))
        return dead, mixed if self._gains(mixed) else []

    def _is_worth_it(self, victim: Victim, threshold: float) -> bool:
        k, m = self._parts.descriptor.k, self._parts.descriptor.m
        healthy = sum(1 for place in self._parts.index.keymap.nodes() if place.state is NodeState.HEALTHY)
        narrow = victim.segment.k < k and healthy >= k + m
        return narrow or victim.live_share < threshold

    def _gains(self, victims: Sequence[Victim]) -> bool:
        """Small segments are never full: compacting them again and again frees nothing."""
        before = sum(victim.file_bytes for victim in victims)
        return before > 0 and before - sum(map(self._bytes_moved_to, victims)) >= GAIN_MIN * before

    def _bytes_moved_to(self, victim: Victim) -> int:
        """What the live chunks of a victim will take on the nodes."""
        k, m = self._parts.descriptor.k, self._parts.descriptor.m
        return victim.named_bytes * (k + m) // k

    # -- freeing ---------------------------------------------------------------

    async def _free(self, mark: Mark, victims: Sequence[Victim]) -> bool:
        """One round; False when it was given up and another would be too."""
        if self._dry_run:
            for victim in victims:
                self._count(victim)
                self._result.moved_bytes += victim.named_bytes
                self._result.freed_bytes += victim.file_bytes - self._bytes_moved_to(victim)
            return True
        if not victims:
            return True
        containers = [victim.segment.segment_id for victim in victims]
        condemned = await self._parts.index.commit(Condemn(containers), ORIGIN)
        reached(CrashSite.COLLECTION_CONDEMNED)
        emptied, full = await self._empty(victims)
        reached(CrashSite.COLLECTION_MOVED)
        blocking = await self._wait_for_pins(condemned.lsn)
        if blocking is not None:
            await self._give_up(emptied, f"process {blocking.process_id} has been at work since {_ago(blocking)}")
            return False
        await self._delete(mark, emptied)
        return not full

    async def _empty(self, victims: Sequence[Victim]) -> tuple[list[Victim], bool]:
        """Copy forward what is named in them. The victims that are empty of it now, and
        whether the disks filled up over it."""
        meter = Meter("compact", sum(victim.named_bytes for victim in victims), self._report)
        emptied: list[Victim] = []
        for place, victim in enumerate(victims):
            try:
                await move_chunks(self._parts, victim.named, self._throttle, meter)
            except (Unreadable, FragmentCorrupt) as error:
                await self._give_up([victim], str(error))
                continue
            except (NodeFull, WritesStopped) as error:
                await self._give_up(victims[place:], str(error))
                return emptied, True
            self._result.moved_bytes += victim.named_bytes
            emptied.append(victim)
        return emptied, False

    async def _wait_for_pins(self, lsn: int) -> OldestPin | None:
        """Until no pin is older than the record; else the one that was waited for in vain."""
        deadline = anyio.current_time() + self._wait_seconds
        while True:
            oldest = await anyio.to_thread.run_sync(oldest_pin, self._parts.data / "index")
            if oldest is None or oldest.lsn >= lsn:
                return None
            if anyio.current_time() > deadline:
                return oldest
            self._report(Progress(f"waiting for process {oldest.process_id}", 0, None))
            await anyio.sleep(POLL_SECONDS)

    async def _delete(self, mark: Mark, victims: Sequence[Victim]) -> None:
        if not victims:
            return
        segment_ids = [victim.segment.segment_id for victim in victims]
        for attempt in range(1, ATTEMPTS_MAX + 1):
            as_of_lsn = await mark.extend()
            dead = await self._move_revived(mark, victims)
            reached(CrashSite.COLLECTION_MARKED)
            try:
                await self._parts.index.commit(DeleteSegments(segment_ids, dead, as_of_lsn), ORIGIN)
                break
            except CollectionStopped:
                # Something arrived between the mark and now; look again.
                if attempt == ATTEMPTS_MAX:
                    raise
        reached(CrashSite.SEGMENTS_DELETED)
        for victim in victims:
            self._count(victim)
        segments = [victim.segment for victim in victims]
        swept = await anyio.to_thread.run_sync(delete_fragments, segments, dict(self._parts.nodes.nodes))
        self._result.freed_bytes += swept.freed_bytes

    async def _move_revived(self, mark: Mark, victims: Sequence[Victim]) -> int:
        """Copy forward what was named since the first mark; how many dead chunks lie in
        the victims now."""
        dead = 0
        meter = Meter("compact", None, self._report)
        for victim in victims:
            with self._parts.index.keymap.snapshot() as reader:
                chunks = await anyio.to_thread.run_sync(reader.chunks_in, victim.segment.segment_id)
            named, gone = await mark.split(chunks)
            await move_chunks(self._parts, named, self._throttle, meter)
            self._result.moved_bytes += sum(chunk.stored for chunk in named)
            victim.dead = gone
            dead += len(gone)
        return dead

    async def _give_up(self, victims: Sequence[Victim], reason: str) -> None:
        self._result.spared += len(victims)
        self._result.reasons.append(reason)
        await self._spare([victim.segment.segment_id for victim in victims])

    async def _spare(self, containers: Sequence[int]) -> None:
        if containers:
            await self._parts.index.commit(Spare(list(containers)), ORIGIN)

    def _count(self, victim: Victim) -> None:
        """What goes with a victim, by the bucket whose write brought it."""
        self._result.segments += 1
        self._result.chunks += len(victim.dead)
        stored = sum(chunk.stored for chunk in victim.dead)
        for chunk in victim.dead:
            name = self._names.get(chunk.bucket_id, "(deleted bucket)")
            self._result.buckets[name] = self._result.buckets.get(name, 0) + chunk.stored
        data = victim.segment.k * victim.segment.size
        self._result.orphan_bytes += max(data - stored - victim.named_bytes, 0)

    # -- leftovers -------------------------------------------------------------

    async def _sweep(self) -> None:
        swept = await sweep(self._parts)
        self._result.leftover_files += swept.files
        self._result.freed_bytes += swept.freed_bytes
        self._result.quarantined_files += swept.quarantined


async def sweep(parts: Parts) -> Swept:
    """Every node that is there (see engine.care.sweep). Under the care lock."""
    swept = Swept()
    for node_id, node in sorted(parts.nodes.nodes.items()):
        try:
            names = await anyio.to_thread.run_sync(list_fragments, node)
            with parts.index.keymap.snapshot() as reader:
                found = await anyio.to_thread.run_sync(
                    sweep_files, reader, node, names, parts.descriptor.store_id, dict(parts.nodes.nodes)
                )
        except StoreError:
            if node_id in parts.nodes.nodes and parts.nodes.nodes[node_id] is node:
                raise
            continue  # it went away meanwhile
        swept.add(found)
    return swept


def _is_open(segment: Segment | None) -> bool:
    return segment is not None and segment.state is SegmentState.OPEN


def _rounds(victims: Sequence[Victim]) -> list[list[Victim]]:
    """Victims in groups whose live bytes need little room at a time."""
    rounds: list[list[Victim]] = []
    size = ROUND_BYTES
    for victim in victims:
        if size + victim.named_bytes > ROUND_BYTES:
            rounds.append([])
            size = 0
        rounds[-1].append(victim)
        size += victim.named_bytes
    return rounds


def _ago(pin: OldestPin) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(pin.taken_ns / 10**9))
