"""SegmentPlane: the data plane of one process. See engine.interfaces.DataPlane.

Appends go to this process's one open segment; when a node fails, the segment is sealed
at what was synced, and everything younger, which is kept in memory, is written again to
a new segment over the nodes that remain.

Concurrency: many tasks of one event loop. `_syncing` is held by the one sync round, seal
or repair of failure in progress; `_writing` by whoever changes which segment is open or
appends to it; who needs both takes `_syncing` first. Work on files runs in threads. It
is not abandoned when a caller is cancelled: what a cancelled append wrote is dead space.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import anyio
import anyio.to_thread

from engine import limits
from engine.changes import OpenSegment, SealSegment
from engine.coding import DEFAULT_CODE, check_code
from engine.crash_sites import CrashSite, reached
from engine.errors import FragmentCorrupt, NodeFull, NodeUnavailable, StoreError, Unreadable, WritesStopped, WrongStore
from engine.interfaces import Node
from engine.placement import choose_nodes
from engine.segments.reader import read_frames, read_warm_frames
from engine.segments.writer import FragmentsFailed, PendingStripe, SegmentWriter
from engine.types import NodeEntry, Segment, SegmentLocation, SegmentState

UNSYNCED_BYTES_MAX = 64 * 1024**2  # kept in memory for writing again; more forces a sync
RELOCATIONS_MAX = 1_000_000  # older ones are refused, not forgotten silently
ROUNDS_MAX = 16  # failing segments in one sync before it gives up
DISTRUST_SECONDS = 30.0  # a node that failed is not chosen, unless the index lost and healed it since
ROOM_BYTES_MIN = 4 * 1024**2  # a node with less free is full: no new segment starts there
ROOM_LOOK_BYTES = 2 * 1024**2  # appended between two looks at what room there is
ON_LOOP_BYTES = 32 * 1024  # appends and warm reads up to this cost less than a hop to a thread
SYNC_THREADS_MAX = 64

_from_reserve: ContextVar[bool] = ContextVar("from_reserve", default=False)

logger = logging.getLogger("objfs.segments")


class _Distrust(NamedTuple):
    until: float
    full: bool


class SegmentPlane:
    """`announce` commits durably; `healthy` lists the nodes the index holds for healthy;
    `report_failure` tells it of one that is not; `nodes` may change under us. `rooms` says
    what ordinary content may take on each node (none given: all that is free)."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        k: int,
        m: int,
        *,
        announce: Callable[[OpenSegment | SealSegment], Awaitable[object]],
        segment_of: Callable[[int], Segment | None],
        healthy: Callable[[], Sequence[NodeEntry]],
        report_failure: Callable[[str, str], Awaitable[None]],
        report_rot: Callable[[int, int, int, str], None] | None = None,
        rooms: Callable[[], Mapping[str, int]] | None = None,
        owner: str = "",
        writer_epoch: int = 0,
        store_id: str = "",
    ) -> None:
        check_code(k, m)
        self._nodes = nodes
        self._k, self._m = k, m
        self._announce = announce
        self._segment_of = segment_of
        self._healthy = healthy
        self._report_failure = report_failure
        self._report_rot = report_rot or _log_rot
        self._rooms = rooms
        self._unlooked_bytes = ROOM_LOOK_BYTES  # appended since room was looked for
        self._owner, self._writer_epoch, self._store_id = owner, writer_epoch, store_id
        self._writing = anyio.Lock()
        self._syncing = anyio.Lock()
        self._limiter = anyio.CapacityLimiter(SYNC_THREADS_MAX)
        self._writer: SegmentWriter | None = None
        self._sealed_untold: list[SealSegment] = []  # the index could not be told of them
        self._homeless: list[PendingStripe] = []  # written nowhere that lasts, oldest first
        self._relocations: dict[SegmentLocation, SegmentLocation] = {}
        self._cut: dict[int, int] = {}  # abandoned segment → end of what was synced there
        self._distrusted: dict[str, _Distrust] = {}
        self._appended = 0  # appends that returned …
        self._synced = 0  # … and how many of them are synced
        self._rotation = secrets.randbelow(1 << 16)
        self._last_append = time.monotonic()
        self._closed = False

    # -- appending -------------------------------------------------------------

    async def append(self, frames: Sequence[bytes]) -> list[SegmentLocation]:
        if not frames:
            return []
        stripes = [PendingStripe(group) for group in pack(frames)]
        total = sum(map(len, frames))
        await self._find_room(total)
        while True:
            if self._unsynced_bytes() + total > UNSYNCED_BYTES_MAX and self._unsynced_bytes():
                await self.sync()
            if self._writer is not None and self._writer.full:
                await self._seal(only_full=True)
            async with self._writing:
                if self._writer is not None and self._writer.full:
                    continue
                await self._settle()
                await self._write(stripes, on_loop=total <= ON_LOOP_BYTES)
                await self._settle()
                self._appended += 1
                self._last_append = time.monotonic()
                return [location for stripe in stripes for location in stripe.locations]

    @contextmanager
    def from_reserve(self) -> Iterator[None]:
        """What this task appends meanwhile may take what is kept aside."""
        token = _from_reserve.set(True)
        try:
            yield
        finally:
            _from_reserve.reset(token)

    async def _find_room(self, count: int) -> None:
        """Raises NodeFull when ordinary content would eat into the reserve. An open segment
        with some such nodes is sealed: another one begins on the others."""
        self._unlooked_bytes += count
        if self._rooms is None or _from_reserve.get() or self._unlooked_bytes < ROOM_LOOK_BYTES:
            return
        rooms = await anyio.to_thread.run_sync(self._rooms)
        places = [place.node_id for place in self._healthy() if place.node_id in self._nodes]
        enough = limits.CONTENT_ROOM_BYTES_MIN
        short = {node_id for node_id in places if rooms.get(node_id, enough) < enough}  # not those that don't answer
        if len(places) - len(short) < self._m + 1 <= len(places):
            raise NodeFull(f"nodes {', '.join(sorted(short))} are full; delete something or add nodes")
        self._unlooked_bytes = 0
        if self._writer is not None and short.intersection(self._writer.segment.node_ids):
            await self.seal()

    async def _write(self, stripes: Sequence[PendingStripe], *, on_loop: bool) -> None:
        """Append to the open segment, or leave stripes homeless. `_writing` is held."""
        writer = self._writer or await self._open()
        if writer is None:
            self._homeless += stripes
            return
        with anyio.CancelScope(shield=True):
            try:
                if on_loop:
                    _append_all(writer, stripes)
                else:
                    await anyio.to_thread.run_sync(_append_all, writer, stripes, limiter=self._limiter)
            except FragmentsFailed as error:
                written = {id(stripe) for stripe in writer.pending}
                untouched = [stripe for stripe in stripes if id(stripe) not in written]
                await self._abandon(writer, error.failures, also=untouched)

    def _unsynced_bytes(self) -> int:
        pending = self._writer.pending_bytes if self._writer is not None else 0
        return pending + sum(stripe.data_length for stripe in self._homeless)

    # -- syncing ---------------------------------------------------------------

    async def sync(self) -> None:
        wanted = self._appended
        while self._synced < wanted:
            async with self._syncing:
                # Whoever held the lock before us may have synced our appends too.
                if self._synced < wanted:
                    await self._sync_round()

    async def _sync_round(self) -> None:
        """Sync everything appended until now. `_syncing` is held."""
        for _ in range(ROUNDS_MAX):
            async with self._writing:
                await self._settle()
                writer, appended = self._writer, self._appended
                covered = writer.begin_sync() if writer is not None else None
            if writer is None or covered is None:
                self._synced = appended
                return
            with anyio.CancelScope(shield=True):
                failures = await self._sync_fragments(writer)
                async with self._writing:
                    if writer is not self._writer:
                        continue  # an append failed meanwhile; its segment is abandoned already
                    if failures:
                        await self._abandon(writer, failures)
                        continue
                    reached(CrashSite.STRIPES_SYNCED)
                    writer.finish_sync(covered)
                    self._synced = appended
                    return
        raise WritesStopped(f"no segment could be synced in {ROUNDS_MAX} attempts; see the log for the nodes' errors")

    async def _sync_fragments(self, writer: SegmentWriter) -> dict[int, StoreError]:
        failures: dict[int, StoreError] = {}

        async def sync_one(index: int) -> None:
            try:
                await anyio.to_thread.run_sync(writer.sync_fragment, index, limiter=self._limiter)
            except StoreError as error:
                failures[index] = error

        async with anyio.create_task_group() as tasks:
            for index in range(len(writer.nodes)):
                tasks.start_soon(sync_one, index)
        return failures

    # -- relocation ------------------------------------------------------------

    def relocated(self, location: SegmentLocation) -> SegmentLocation:
        while (moved := self._relocations.get(location)) is not None:
            location = moved
        cut = self._cut.get(location.segment_id)
        if cut is not None and location.stripe_offset >= cut:
            raise WritesStopped("a node failed while this was written and it took too long since; send it again")
        return location

    async def _settle(self) -> None:
        """Write homeless stripes to an open segment. `_writing` is held. Raises
        WritesStopped, NodeFull; they stay homeless then."""
        for _ in range(ROUNDS_MAX):
            if not self._homeless:
                return
            stripes, self._homeless = self._homeless, []
            before = [stripe.locations for stripe in stripes]
            try:
                await self._write(stripes, on_loop=False)
            except BaseException:
                kept = [*self._homeless, *(self._writer.pending if self._writer is not None else ())]
                known = {id(stripe) for stripe in kept}
                self._homeless = [*(stripe for stripe in stripes if id(stripe) not in known), *self._homeless]
                raise
            finally:
                for old, stripe in zip(before, stripes, strict=True):
                    if old and stripe.locations != old:
                        self._relocations.update(zip(old, stripe.locations, strict=True))
            while len(self._relocations) > RELOCATIONS_MAX:
                del self._relocations[next(iter(self._relocations))]
        raise WritesStopped(f"no segment could be written in {ROUNDS_MAX} attempts; see the log for the nodes' errors")

    async def _abandon(
        self, writer: SegmentWriter, failures: Mapping[int, StoreError], also: Sequence[PendingStripe] = ()
    ) -> None:
        """The segment goes no further: seal what was synced, keep the rest for another
        one, tell of the nodes. `_writing` is held."""
        self._writer = None
        self._homeless += [*writer.take_pending(), *also]
        self._cut[writer.segment.segment_id] = writer.synced_end
        for index, error in failures.items():
            node_id = writer.segment.node_ids[index]
            logger.warning("node %s fails in segment %016x: %s", node_id, writer.segment.segment_id, error)
            if isinstance(error, (NodeFull, NodeUnavailable, WrongStore)):
                self._distrusted[node_id] = _Distrust(time.monotonic() + DISTRUST_SECONDS, isinstance(error, NodeFull))
            if isinstance(error, (NodeUnavailable, WrongStore)):
                await self._report_failure(node_id, str(error))
        if not any(isinstance(error, FragmentCorrupt) for error in failures.values()):
            await self._finish(writer, list(failures))
        # else someone took this segment for an orphan and seals it: hands off

    async def _finish(self, writer: SegmentWriter, failed: Sequence[int] = ()) -> None:
        """Seal and announce. A segment that cannot be sealed stays open in the index: its
        synced stripes are readable, and recovery seals it when its nodes are back."""
        try:
            sealed = await anyio.to_thread.run_sync(writer.seal_synced, failed, limiter=self._limiter)
        except WritesStopped as error:
            logger.warning("%s", error)
            return
        reached(CrashSite.SEAL_WRITTEN)
        self._sealed_untold.append(sealed)
        await self._tell_sealed()
        reached(CrashSite.SEAL_ANNOUNCED)

    async def _tell_sealed(self) -> None:
        """Tell the index of sealed segments. While nothing can be committed they stay open
        there, which harms no reader; the next seal() tries again."""
        while self._sealed_untold:
            sealed = self._sealed_untold[0]
            segment = self._segment_of(sealed.segment_id)
            try:
                if segment is None or segment.state is SegmentState.OPEN:
                    await self._announce(sealed)
            except WritesStopped as error:
                logger.warning("segment %016x stays open for now: %s", sealed.segment_id, error)
                return
            if sealed in self._sealed_untold:  # else another task told it meanwhile
                self._sealed_untold.remove(sealed)

    # -- opening and sealing ---------------------------------------------------

    async def _open(self) -> SegmentWriter | None:
        """Open a segment over the healthy nodes; None if one of them failed at that (try
        again without it). `_writing` is held. Raises WritesStopped, NodeFull."""
        if self._closed:
            raise WritesStopped("the store is closing")
        k, places = choose_nodes(await self._candidates(), self._k, self._m, self._rotation)
        self._rotation += 1
        held = dict(self._nodes)  # a thread may drop one at any moment
        nodes = [held[place.node_id] for place in places if place.node_id in held]
        if len(nodes) < len(places):
            return None  # one of them went away while its room was asked for
        opened = OpenSegment(
            segment_id=secrets.randbits(63),
            k=k,
            m=self._m,
            node_ids=[place.node_id for place in places],
            owner=self._owner,
            writer_epoch=self._writer_epoch,
            code=DEFAULT_CODE,
        )
        writer = SegmentWriter(opened, nodes, self._store_id)
        with anyio.CancelScope(shield=True):
            # The index knows of a segment before anything can lie in it.
            await self._announce(opened)
            reached(CrashSite.SEGMENT_ANNOUNCED)
            try:
                await anyio.to_thread.run_sync(writer.create, limiter=self._limiter)
            except FragmentsFailed as error:
                await self._abandon(writer, error.failures)
                return None
        self._writer = writer
        return writer

    async def _candidates(self) -> list[NodeEntry]:
        """Nodes a new segment may use: healthy, not failing a moment ago, with room."""
        listed = [place for place in self._healthy() if place.node_id in self._nodes]
        now, names = time.monotonic(), {place.node_id for place in listed}
        # A node the index no longer lists as healthy is its business from then on.
        self._distrusted = {
            node_id: distrust
            for node_id, distrust in self._distrusted.items()
            if node_id in names and distrust.until > now
        }
        lenient = _from_reserve.get()
        full = [node_id for node_id, distrust in self._distrusted.items() if distrust.full and not lenient]
        trusted = [
            place
            for place in listed
            if place.node_id not in self._distrusted or (lenient and self._distrusted[place.node_id].full)
        ]
        usable: list[NodeEntry] = []
        found = await anyio.to_thread.run_sync(_free_bytes, [self._nodes[place.node_id] for place in trusted])
        if self._rooms is not None and not lenient:
            rooms = await anyio.to_thread.run_sync(self._rooms)
            found = [
                min(free, rooms.get(place.node_id, free) - limits.CONTENT_ROOM_BYTES_MIN + ROOM_BYTES_MIN)
                if isinstance(free, int)
                else free
                for place, free in zip(trusted, found, strict=True)
            ]
        for place, free in zip(trusted, found, strict=True):
            if isinstance(free, StoreError):
                await self._report_failure(place.node_id, str(free))
            elif free < ROOM_BYTES_MIN:
                full.append(place.node_id)
            else:
                usable.append(place)
        if len(usable) < self._m + 1 <= len(usable) + len(full):
            raise NodeFull(f"nodes {', '.join(sorted(full))} are full; delete something or add nodes")
        return usable

    async def seal(self) -> None:
        await self._tell_sealed()
        await self._seal(only_full=False)

    async def _seal(self, *, only_full: bool) -> None:
        async with self._syncing:
            for _ in range(ROUNDS_MAX):
                if self._writer is None or (only_full and not self._writer.full):
                    break
                await self._sync_round()
                async with self._writing:
                    writer = self._writer
                    if writer is None or writer.pending or self._homeless:
                        continue  # appended meanwhile: sync that first
                    self._writer = None
                    with anyio.CancelScope(shield=True):
                        await self._finish(writer)

    async def aclose(self) -> None:
        """Seal. Afterwards nothing can be appended. What could not be synced was not
        acknowledged; a segment that can't be sealed now is sealed by recovery."""
        try:
            await self.seal()
        except StoreError as error:
            logger.warning("closing with an open segment: %s", error)
        self._closed = True

    def idle_seconds(self) -> float:
        """Since the last append."""
        return time.monotonic() - self._last_append

    # -- reading ---------------------------------------------------------------

    async def read(self, locations: Sequence[SegmentLocation], chunk_ids: Sequence[bytes] | None = None) -> list[bytes]:
        if not locations:
            return []
        # The keymap belongs to the event loop's thread, the files to worker threads.
        segments = self.segments_of(locations)
        if sum(location.length for location in locations) <= ON_LOOP_BYTES:
            warm = read_warm_frames(locations, segments, self._nodes, chunk_ids)
            if warm is not None:
                return warm
        return await anyio.to_thread.run_sync(self.read_sync, locations, segments, chunk_ids)

    def segments_of(self, locations: Sequence[SegmentLocation]) -> dict[int, Segment]:
        segments: dict[int, Segment] = {}
        for segment_id in {location.segment_id for location in locations}:
            segment = self._segment_of(segment_id)
            if segment is None and self._writer is not None and self._writer.segment.segment_id == segment_id:
                segment = self._writer.segment
            if segment is None:
                raise Unreadable(f"segment {segment_id:016x} is not known to the index")
            segments[segment_id] = segment
        return segments

    def read_sync(
        self,
        locations: Sequence[SegmentLocation],
        segments: Mapping[int, Segment],
        chunk_ids: Sequence[bytes] | None = None,
    ) -> list[bytes]:
        """read() for callers already in a worker thread; `segments` from segments_of()."""
        return read_frames(locations, segments, self._nodes, self._report_rot, chunk_ids)


def pack(frames: Sequence[bytes]) -> list[list[bytes]]:
    """Frames in order, in groups that each fit one stripe."""
    groups: list[list[bytes]] = []
    room = 0
    for frame in frames:
        assert len(frame) <= limits.STRIPE_BYTES_MAX, "a frame must fit one stripe"
        if not groups or len(frame) > room:
            groups.append([])
            room = limits.STRIPE_BYTES_MAX
        groups[-1].append(frame)
        room -= len(frame)
    return groups


def _append_all(writer: SegmentWriter, stripes: Sequence[PendingStripe]) -> None:
    for stripe in stripes:
        writer.append(stripe)


def _free_bytes(nodes: Sequence[Node]) -> list[int | StoreError]:
    found: list[int | StoreError] = []
    for node in nodes:
        try:
            found.append(node.space().free)
        except StoreError as error:
            found.append(error)
    return found


def _log_rot(segment_id: int, index: int, offset: int, why: str) -> None:
    logger.warning("segment %016x fragment %d needs repair at %d: %s", segment_id, index, offset, why)
