"""Watching nodes, sealing what crashed writers left, and starting repair by itself.

Runs as two tasks in the process that owns the store: one watches the nodes every second,
the other repairs (engine/care/repair.py) whenever a node failed, came back or was given an
empty directory, or a fragment was found rotten. Node states only change here and in
engine/care/nodes.py: healthy → lost when a node's check fails; lost → stale when it is
back; stale or rebuilding → healthy, or draining if it was, once no segment misses anything
on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from engine import measured
from engine.care.lock import care_lock
from engine.care.repair import BYTES_PER_SECOND, GRACE_SECONDS, RETURNED, Plan, make_plan, misses, repair
from engine.care.sweep import sweep
from engine.changes import FragmentsDamaged, Origin, SetNode
from engine.errors import PreconditionFailed, StoreError, StoreInUse, WritesStopped
from engine.index.local import LocalIndex
from engine.interfaces import KeymapReader, Node
from engine.nodes.descriptor import read_store_descriptor
from engine.nodeset import NodeSet
from engine.segments.recovery import looks_whole, recover_segment
from engine.types import NodeEntry, NodeState, SegmentLocation, SegmentState

if TYPE_CHECKING:  # opening.py runs this
    from engine.opening import Parts

WATCH_SECONDS = 1.0
LOOK_SECONDS = 30.0  # a lost node's grace may have ended
COPIES_SECONDS = 60.0  # how often copies of the journal, snapshots and archives are counted
GIVE_UP_SECONDS = 300.0  # what could not be repaired is tried again then, or when a node changes
MEASURED_BYTES_MIN = 16 * 1024**2  # a shorter repair says nothing about its rate
ORIGIN = Origin(requester="maintenance")
REPAIRABLE = (NodeState.HEALTHY, NodeState.DRAINING, *RETURNED)

logger = logging.getLogger("objfs.maintenance")


class Maintenance:
    def __init__(self, index: LocalIndex, nodes: NodeSet) -> None:
        self.repair_bytes_per_second: int | None = BYTES_PER_SECOND
        self.grace_seconds = GRACE_SECONDS
        self._index = index
        self._nodes = nodes
        self._sealing = anyio.Lock()
        self._seen_good: dict[str, float] = {}  # node id → when its last check was good
        self._detection_seconds = 0.0  # of the failure noticed last
        self._given_up: dict[int, float] = {}  # segment that can't be repaired → when to try again
        self._unhealed: dict[str, float] = {}  # node whose journal can't be healed → when to try again
        self._looked_at = -1  # the index's protection_lsn when work was looked for last
        self._look_again = 0.0
        self._unswept = False  # a node came back
        self._count_copies_at = 0.0
        self._left_open: set[str] = set()  # owners of segments that could not be sealed at opening

    async def run(self, parts: Parts) -> None:
        """Until cancelled. A failed round is logged and tried again."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watching, parts)
            tasks.start_soon(self._repairing, parts)

    # -- nodes -------------------------------------------------------------------

    async def _watching(self, parts: Parts) -> None:
        while True:
            try:
                try:
                    await self._take_in_replaced(parts)
                finally:  # where too few can be written, watch() lets others be tried again
                    await self.watch()
                await self._seal_left_open()
                await anyio.to_thread.run_sync(self._nodes.reserve.refill)
                if self._detection_seconds:
                    seconds, self._detection_seconds = self._detection_seconds, 0.0
                    await _note(parts, detection_seconds=seconds)
            except (StoreError, OSError) as error:
                logger.warning("maintenance: %s", error)
            await anyio.sleep(WATCH_SECONDS)

    async def _take_in_replaced(self, parts: Parts) -> None:
        """Nodes that were replaced or added, of which the index could not be told: with m+1
        nodes it commits nothing while one is away, until the new one is open here."""
        places = {place.node_id: place for place in self._index.keymap.nodes()}
        nodes, described = self._nodes.nodes, self._nodes.described
        writable = nodes.keys() & places.keys() - self._index.failed_replicas
        stopped = len(writable) < self._nodes.descriptor.m + 1
        current = (
            node_id in nodes and described[node_id].generation == place.generation for node_id, place in places.items()
        )
        if all(current) and not stopped:
            return
        descriptor = await anyio.to_thread.run_sync(read_store_descriptor, parts.data)
        for known in descriptor.nodes:
            place = places.get(known.node_id)
            if place is None:
                taken_in, state = not stopped, NodeState.HEALTHY  # else whoever adds it tells the index
            else:
                taken_in, state = known.generation <= place.generation, NodeState.REBUILDING
            new = NodeEntry(known.node_id, known.path, known.domain, state, known.generation)
            if not taken_in and await anyio.to_thread.run_sync(self._nodes.probe, new) is None:
                self._index.forgive(new.node_id)  # what failed is gone
                change = SetNode(new.node_id, new.path, new.domain, new.state, new.generation)
                await self._index.commit(change, ORIGIN)

    async def watch(self) -> None:
        """One round: states follow the nodes."""
        changed, stopped = False, None
        places = self._index.keymap.nodes()
        self._nodes.keep_only(places)
        for place in places:
            problem = await anyio.to_thread.run_sync(self._nodes.probe, place)
            state = self._next_state(place, problem)
            if problem is None:
                self._seen_good[place.node_id] = time.monotonic()
            if state is not place.state:
                logger.warning("node %s is %s: %s", place.node_id, state, problem or "it is back")
                if state is NodeState.LOST and place.node_id in self._seen_good:
                    self._detection_seconds = time.monotonic() - self._seen_good[place.node_id]
                try:
                    await self.set_state(place, state)
                except WritesStopped as error:
                    if problem is None:
                        # Too few others are there to note that it failed: without another try
                        # nothing could ever be written again.
                        self._index.try_again(place.node_id)
                    stopped = error
                    continue
                changed = True
        if stopped is not None:
            raise stopped
        if changed or await self._copies_missing():
            await self._index.repair_journal()

    async def _copies_missing(self) -> bool:
        """Whether the journal, a snapshot or an archive is on fewer than m+1 nodes: after a
        crash, or because that could not be repaired when a node changed."""
        if time.monotonic() < self._count_copies_at:
            return False
        self._count_copies_at = time.monotonic() + COPIES_SECONDS
        return await self._index.journal_under_redundancy() > 0

    def _next_state(self, place: NodeEntry, problem: str | None) -> NodeState:
        if problem is not None:
            return NodeState.LOST if place.state in REPAIRABLE else place.state
        is_behind = place.state is NodeState.HEALTHY and place.node_id in self._index.behind
        if place.state is NodeState.LOST or is_behind:
            return NodeState.STALE
        return place.state

    async def set_state(self, place: NodeEntry, state: NodeState) -> None:
        self._given_up.clear()
        change = SetNode(place.node_id, place.path, place.domain, state, place.generation, if_state=place.state)
        try:
            await self._index.commit(change, ORIGIN)
        except PreconditionFailed:
            logger.info("node %s changed its state meanwhile; it is looked at again", place.node_id)

    # -- segments ------------------------------------------------------------------

    async def seal_left_open(self) -> None:
        """seal_orphans() of all, when the store is opened. While nothing can be committed they
        stay open, which harms no reader, and are sealed later."""
        owners = {segment.owner for segment in self._index.keymap.open_segments()}
        try:
            await self.seal_orphans()
        except WritesStopped as error:
            logger.warning("segments of gone writers stay open for now: %s", error)
            self._left_open = owners

    async def _seal_left_open(self) -> None:
        for owner in sorted(self._left_open):
            await self.seal_orphans(owner=owner)
            self._left_open.discard(owner)

    async def seal_orphans(self, *, owner: str | None = None) -> None:
        """Cut the torn tail of every open segment (of `owner`, or of all) and seal it."""
        async with self._sealing:
            for segment in self._index.keymap.open_segments():
                if owner in (None, segment.owner):
                    # At opening all that was ever committed is in the keymap; later some may be on its way.
                    named_to = self._named_to(segment.segment_id) if owner is None else None
                    store_id = self._nodes.descriptor.store_id
                    failed = {place.node_id for place in self._index.keymap.nodes() if self._may_have_failed(place)}
                    sealed = await anyio.to_thread.run_sync(
                        recover_segment, segment, self._nodes.nodes, store_id, named_to, failed
                    )
                    await self._index.commit(sealed, ORIGIN)

    def _may_have_failed(self, place: NodeEntry) -> bool:
        return place.state is not NodeState.HEALTHY or place.node_id in self._index.behind

    def _named_to(self, segment_id: int) -> int:
        """Where the last stripe begins that a chunk lies in; -1: none does."""
        locations = [chunk.location for chunk in self._index.keymap.chunks_in(segment_id)]
        return max((one.stripe_offset for one in locations if isinstance(one, SegmentLocation)), default=-1)

    async def _repairing(self, parts: Parts) -> None:
        while True:
            try:
                if self._may_have_work():
                    await self.repair(parts)
                if self._unswept:
                    await self._sweep(parts)
            except (StoreError, OSError) as error:
                logger.warning("repair: %s", error)
            await anyio.sleep(WATCH_SECONDS)

    def _may_have_work(self) -> bool:
        """Looking through all segments is not for every second: only when something bears
        on it, while a node is coming back, and from time to time."""
        looked_at, self._looked_at = self._looked_at, self._index.protection_lsn
        returning = any(place.state in RETURNED for place in self._index.keymap.nodes())
        return returning or looked_at != self._looked_at or time.monotonic() > self._look_again

    async def repair(self, parts: Parts) -> None:
        """One round: repair what can be, then let go of nodes that miss nothing any more."""
        now = time.monotonic()
        self._look_again = now + LOOK_SECONDS
        self._given_up = {segment_id: until for segment_id, until in self._given_up.items() if until > now}
        plan = await self._plan()
        skip = frozenset(self._given_up)
        if any(need.segment.segment_id not in skip for need in plan.needs):
            result = await repair(
                parts, bytes_per_second=self.repair_bytes_per_second, grace_seconds=self.grace_seconds, skip=skip
            )
            self._given_up |= dict.fromkeys(result.failed, time.monotonic() + GIVE_UP_SECONDS)
            if result.left:
                logger.warning("%d segments cannot be repaired now; %s", len(result.failed), result.left[0])
            if result.fragments:
                logger.warning("repaired %d fragments of %d segments", result.fragments, result.segments)
            if result.rebuilt_bytes >= MEASURED_BYTES_MIN:
                rate = result.rebuilt_bytes / result.seconds
                await _note(parts, repair_bytes_per_second=rate)
        await self._settle()

    async def _plan(self) -> Plan:
        with self._index.keymap.snapshot() as keymap:
            return await anyio.to_thread.run_sync(make_plan, keymap, dict(self._nodes.nodes), self.grace_seconds)

    async def _settle(self) -> None:
        """Nodes that came back and miss nothing any more are healthy, or drain again."""
        changed, now = False, time.monotonic()
        for place in self._index.keymap.nodes():
            node = self._nodes.nodes.get(place.node_id)
            if place.state not in RETURNED or node is None or self._unhealed.get(place.node_id, 0.0) > now:
                continue
            with self._index.keymap.snapshot() as keymap:
                missing = await anyio.to_thread.run_sync(_missing_on, keymap, place, node)
            if missing is None or any(segment_id not in self._given_up for segment_id, _ in missing):
                continue
            # What came back may have a journal file's size and not its bytes.
            if place.node_id in await self._index.heal_returned([place.node_id]):
                self._unhealed[place.node_id] = now + LOOK_SECONDS
                continue
            for segment_id, index in missing:
                reason = f"node {place.node_id} came back without it, and it cannot be rebuilt now"
                await self._index.commit(FragmentsDamaged(segment_id, [index], reason), ORIGIN)
            state = NodeState.DRAINING if place.drains_again else NodeState.HEALTHY
            logger.warning("node %s is %s again", place.node_id, state)
            given_up = dict(self._given_up)
            await self.set_state(place, state)
            self._given_up = given_up
            self._unswept = changed = True
        if changed:
            await self._index.repair_journal()

    async def _sweep(self, parts: Parts) -> None:
        """A node that was away may bring back files of segments that were deleted since."""
        try:
            async with care_lock(parts.data, "a sweep", wait=False):
                swept = await sweep(parts)
        except StoreInUse:
            return  # other care is at work: next time
        self._unswept = False
        if swept.files or swept.quarantined:
            logger.warning("deleted %d leftover files, set aside %d unknown ones", swept.files, swept.quarantined)


async def _note(parts: Parts, **figures: float) -> None:
    await anyio.to_thread.run_sync(lambda: measured.note(parts.data, **figures))


def _missing_on(keymap: KeymapReader, place: NodeEntry, node: Node) -> Sequence[tuple[int, int]] | None:
    """(segment, fragment) of sealed segments that the node should have and does not. None
    while an open segment misses its file there: that is its writer's business."""
    missing: list[tuple[int, int]] = []
    for segment in keymap.segments():
        if place.node_id not in segment.node_ids:
            continue
        index = segment.node_ids.index(place.node_id)
        if segment.state is SegmentState.OPEN:
            if not looks_whole(segment, index, node):
                return None
        elif index not in segment.fragments_lost and misses(segment, index, place, node):
            missing.append((segment.segment_id, index))
    return missing
