"""Collection and compaction: bytes nothing names come back.

A collection marks what is named (engine.care.marking), chooses victims among the sealed
segments and the closed journal files (engine.care.victims), and frees them in rounds:

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

from engine.care.checkpoint import drop_journal_before
from engine.care.lock import care_lock
from engine.care.marking import Mark, marking
from engine.care.moving import move_chunks
from engine.care.pace import Meter, Progress, Report, Throttle, silent
from engine.care.sweep import delete_fragments, sweep
from engine.care.victims import Victim, choose_segments, moved_bytes, pages, rounds, weigh
from engine.changes import AbortUpload, Condemn, DeleteSegments, Origin, Spare
from engine.crash_sites import CrashSite, reached
from engine.errors import (
    CollectionStopped,
    FragmentCorrupt,
    NodeFull,
    NoSuchUpload,
    Unreadable,
    WritesStopped,
)
from engine.journal.reading import list_files
from engine.opening import Parts
from engine.pins import OldestPin, living_processes, oldest_pin
from engine.types import Bucket, Segment, SegmentState, Upload

ORIGIN = Origin(requester="collection")
SEAL_SECONDS = 10.0  # for the writers to seal what they have open
WAIT_SECONDS = 60.0  # for pins older than a condemnation to end
FILES_SECONDS = 1.5  # in which every process closes files that were deleted (engine.nodeset)
ABANDONED_SECONDS = 7 * 86400.0  # an upload nothing was added to for so long is aborted
THRESHOLD = 0.8  # a segment whose live share is below is compacted
# A journal of less, with nothing dead in it, is left: freeing it takes a snapshot of every version.
JOURNAL_BYTES_MIN = 16 * 1024
JOURNAL_BYTES_PER_VERSION = 16
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
        keymap = self._parts.index.keymap
        await self._parts.index.freshen()
        last_lsn = keymap.applied_lsn()
        if not self._dry_run:
            await self._sweep()
            await self._seal()
        await self._abort_uploads(time.time_ns() - int(abandoned_after * 10**9))
        if not self._dry_run:
            last_lsn = await self._parts.index.rotate_journal()
        async with marking(self._parts, report=self._report) as mark:
            await mark.extend()  # marking takes its time, and what was written meanwhile is not dead
            dead, mixed = await choose_segments(self._parts, mark, self._threshold, as_if_sealed=self._dry_run)
            await self._free(mark, dead)
            for some in rounds(mixed):
                if not await self._compact(mark, some):
                    break
            await self._free_journal(mark, last_lsn)
        if not self._dry_run:
            await self._spare(list(keymap.condemned()))
            await self._parts.plane.seal()
            if self._result.freed_bytes and living_processes(self._parts.data / "index") > 1:
                await anyio.sleep(FILES_SECONDS)
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
            while any(_is_open(keymap.segment(one)) for one in waited):  # noqa: ASYNC110  # of other processes
                await anyio.sleep(POLL_SECONDS)
        left = [keymap.segment(segment_id) for segment_id in sorted(waited)]
        self._result.unsealed = sorted({one.owner for one in left if one is not None and _is_open(one)})

    async def _abort_uploads(self, before_ns: int) -> None:
        keymap = self._parts.index.keymap
        for bucket in keymap.buckets():
            after = ("", "")
            while page := keymap.uploads(bucket.name, "", *after):
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

    # -- freeing segments ------------------------------------------------------

    async def _compact(self, mark: Mark, victims: Sequence[Victim]) -> bool:
        """Free them all, in smaller rounds while the disks are full. False when it was given
        up and others would be too."""
        left = list(victims)
        while left:
            done = await self._free(mark, left)
            if done is None or done == 0:
                return False
            left = left[done:]
        return True

    async def _free(self, mark: Mark, victims: Sequence[Victim]) -> int | None:
        """One round: how many of them, from the first on, are done with (freed or spared)
        before the disks were full; None when waiting was given up."""
        if self._dry_run:
            for victim in victims:
                self._would_free(victim)
            return len(victims)
        if not victims:
            return 0
        condemned_lsn = await self._condemn(victims)
        emptied, done = await self._empty(mark, victims)
        if not await self._await_pins(condemned_lsn, emptied):
            return None
        await self._delete(mark, emptied)
        return done

    async def _condemn(self, victims: Sequence[Victim]) -> int:
        condemned = await self._parts.index.commit(Condemn([victim.container for victim in victims]), ORIGIN)
        reached(CrashSite.COLLECTION_CONDEMNED)
        return condemned.lsn

    async def _empty(self, mark: Mark, victims: Sequence[Victim]) -> tuple[list[Victim], int]:
        """Copy forward what is named in them. The victims that are empty of it now, and how
        many were worked on before the disks were full; the others are spared."""
        meter = Meter("moving", sum(victim.named_bytes for victim in victims), self._report)
        emptied: list[Victim] = []
        for place, victim in enumerate(victims):
            try:
                await self._move_named(mark, victim, meter)
            except (Unreadable, FragmentCorrupt) as error:
                await self._give_up([victim], str(error))
                continue
            except NodeFull as error:
                if not emptied:
                    await self._give_up(victims[place:], str(error))
                await self._spare([other.container for other in victims[place:]])
                return emptied, place
            emptied.append(victim)
        reached(CrashSite.COLLECTION_MOVED)
        return emptied, len(victims)

    async def _move_named(self, mark: Mark, victim: Victim, meter: Meter) -> Victim:
        """Copy forward what the mark has of it; what else lies there now."""
        left = Victim(victim.container)
        async for named, dead in pages(mark, self._parts.index.keymap.snapshot, victim.container):
            await move_chunks(self._parts, named, self._throttle, meter)
            self._result.moved_bytes += sum(chunk.stored for chunk in named)
            left.count([], dead)
        return left

    async def _await_pins(self, condemned_lsn: int, victims: Sequence[Victim]) -> bool:
        """Until no pin is older than the record; False if one is after all the waiting."""
        deadline = anyio.current_time() + self._wait_seconds
        while True:
            oldest = await anyio.to_thread.run_sync(oldest_pin, self._parts.data / "index")
            if oldest is None or oldest.lsn >= condemned_lsn:
                return True
            if anyio.current_time() > deadline:
                break
            self._report(Progress(f"waiting for a request of process {oldest.process_id}", 0, None))
            await anyio.sleep(POLL_SECONDS)
        await self._give_up(victims, f"a request of process {oldest.process_id} is under way since {_time(oldest)}")
        return False

    async def _delete(self, mark: Mark, victims: Sequence[Victim]) -> None:
        segments = [victim.segment for victim in victims if victim.segment is not None]
        if not segments:
            return
        segment_ids = [segment.segment_id for segment in segments]
        for attempt in range(1, ATTEMPTS_MAX + 1):
            as_of_lsn, left = await self._mark_again(mark, victims)
            dead = sum(victim.dead_chunks for victim in left)
            try:
                await self._parts.index.commit(DeleteSegments(segment_ids, dead, as_of_lsn), ORIGIN)
                break
            except CollectionStopped:
                # Something arrived between the mark and now; look again.
                if attempt == ATTEMPTS_MAX:
                    raise
        reached(CrashSite.SEGMENTS_DELETED)
        self._count_freed(left)
        self._result.segments += len(segments)
        self._result.orphan_bytes += sum(
            max(victim.data_bytes - victim.dead_bytes - victim.named_bytes, 0) for victim in victims
        )
        swept = await anyio.to_thread.run_sync(delete_fragments, segments, dict(self._parts.nodes.nodes))
        self._result.freed_bytes += swept.freed_bytes

    async def _mark_again(self, mark: Mark, victims: Sequence[Victim]) -> tuple[int, list[Victim]]:
        """Copy forward what was named since the first mark. The LSN the mark stands for now,
        and what lies in the victims, which is dead."""
        as_of_lsn = await mark.extend()
        meter = Meter("moving", None, self._report)
        left = [await self._move_named(mark, victim, meter) for victim in victims]
        reached(CrashSite.COLLECTION_MARKED)
        return as_of_lsn, left

    # -- freeing the journal ---------------------------------------------------

    async def _free_journal(self, mark: Mark, last_lsn: int) -> None:
        """Let an index snapshot stand for the journal up to `last_lsn`, where it ends with
        a file."""
        files = await anyio.to_thread.run_sync(list_files, dict(self._parts.nodes.nodes))
        sizes = [sizes for (_, first_lsn), sizes in files.items() if first_lsn <= last_lsn]
        victims: list[Victim] = []
        with self._parts.index.keymap.snapshot() as reader:
            containers = await anyio.to_thread.run_sync(reader.journal_containers)
            for container in sorted(containers, reverse=True):
                if -container <= last_lsn:
                    victims.append(await weigh(mark, reader, Victim(container)))
        dead = sum(victim.dead_chunks for victim in victims)
        worth = JOURNAL_BYTES_MIN + JOURNAL_BYTES_PER_VERSION * self._parts.index.keymap.counters()["versions"]
        if not dead and sum(max(some.values(), default=0) for some in sizes) < worth:
            return
        if self._dry_run:
            self._would_free_journal(victims, sizes)
            return
        condemned_lsn = await self._condemn(victims) if victims else 0
        emptied, _ = await self._empty(mark, victims)
        if len(emptied) == len(victims) and await self._await_pins(condemned_lsn, victims):
            await self._drop_journal(mark, victims, last_lsn + 1, len(sizes))

    async def _drop_journal(self, mark: Mark, victims: Sequence[Victim], before_lsn: int, files: int) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            as_of_lsn, left = await self._mark_again(mark, victims)
            dead = sum(victim.dead_chunks for victim in left)
            try:
                dropped = await drop_journal_before(
                    self._parts, before_lsn, dead_chunks=dead, as_of_lsn=as_of_lsn, report=self._report
                )
                break
            except CollectionStopped:
                if attempt == ATTEMPTS_MAX:
                    raise
            except (NodeFull, WritesStopped) as error:
                await self._give_up(victims, str(error))
                return
        self._count_freed(left)
        self._result.freed_bytes += dropped.freed_bytes
        self._result.journal_files += files

    # -- keeping count ---------------------------------------------------------

    def _would_free(self, victim: Victim) -> None:
        self._count_freed([victim])
        self._result.segments += 1
        self._result.orphan_bytes += max(victim.data_bytes - victim.dead_bytes - victim.named_bytes, 0)
        self._result.moved_bytes += victim.named_bytes
        self._result.freed_bytes += victim.file_bytes - moved_bytes(self._parts, victim)

    def _would_free_journal(self, victims: Sequence[Victim], sizes: Sequence[dict[str, int]]) -> None:
        self._count_freed(victims)
        self._result.journal_files += len(sizes)
        self._result.moved_bytes += sum(victim.named_bytes for victim in victims)
        moved = sum(moved_bytes(self._parts, victim) for victim in victims)
        self._result.freed_bytes += max(sum(sum(some.values()) for some in sizes) - moved, 0)

    def _count_freed(self, victims: Sequence[Victim]) -> None:
        """What goes with them, by the bucket whose write brought it."""
        for victim in victims:
            self._result.chunks += victim.dead_chunks
            for bucket_id, count in victim.dead_by_bucket.items():
                name = self._names.get(bucket_id, "(deleted bucket)")
                self._result.buckets[name] = self._result.buckets.get(name, 0) + count

    async def _give_up(self, victims: Sequence[Victim], reason: str) -> None:
        self._result.spared += len(victims)
        self._result.reasons.append(reason)
        await self._spare([victim.container for victim in victims])

    async def _spare(self, containers: Sequence[int]) -> None:
        if containers:
            await self._parts.index.commit(Spare(list(containers)), ORIGIN)

    # -- leftovers -------------------------------------------------------------

    async def _sweep(self) -> None:
        swept = await sweep(self._parts)
        self._result.leftover_files += swept.files
        self._result.freed_bytes += swept.freed_bytes
        self._result.quarantined_files += swept.quarantined


def _is_open(segment: Segment | None) -> bool:
    return segment is not None and segment.state is SegmentState.OPEN


def _time(pin: OldestPin) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(pin.taken_ns / 10**9))
