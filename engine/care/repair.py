"""Repair: brings every sealed segment back to full protection.

Finds fragments that are known to be lost or rotten, lie on a node that came back without
them, or on one that is lost for good, draining or gone; rebuilds them in their place, or on
another healthy node that keeps the placement rule; highest risk first. One segment at a
time under the care lock, so that others who move fragments get their turn. What cannot be
repaired is named and left as it is; nothing is deleted but the old copy of a fragment that
was moved, once the index durably names the new one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import anyio.to_thread
from msgspec import Struct

from engine.care.lock import care_lock
from engine.care.pace import Meter, Report, Throttle, silent
from engine.care.survival import holding, losses_left
from engine.care.underway import telling
from engine.changes import FragmentsDamaged, FragmentsRepaired, Origin
from engine.crash_sites import CrashSite, reached
from engine.errors import FragmentMissing, PreconditionFailed, StoreError
from engine.interfaces import KeymapReader, Node
from engine.placement import choose_spare
from engine.segments.checking import disagreement, inspect_file
from engine.segments.format import fragment_name
from engine.segments.rebuild import Rebuild, Target
from engine.segments.recovery import looks_whole
from engine.types import NodeEntry, NodeState, Segment, SegmentState

if TYPE_CHECKING:  # opening.py runs maintenance, which repairs
    from engine.opening import Parts

BYTES_PER_SECOND = 100 * 1024**2  # read and written, unless told otherwise
GRACE_SECONDS = 600.0  # a node that is lost this long is given up: its fragments move elsewhere
ORIGIN = Origin(requester="repair")
RETURNED = (NodeState.STALE, NodeState.REBUILDING)
READABLE = (NodeState.HEALTHY, NodeState.DRAINING, NodeState.STALE, NodeState.REBUILDING)

logger = logging.getLogger("objfs.care")


class Need(Struct):
    """What one segment needs. `losses_left` is what it still survives."""

    segment: Segment
    losses_left: int
    in_place: list[int] = []  # fragment indexes to write anew on their node
    moves: list[int] = []  # … and to be written on another node


class Plan(Struct):
    """Everything that needs repair, highest risk first."""

    needs: list[Need] = []
    waiting: list[str] = []  # lost nodes whose grace has not ended


class RepairResult(Struct):
    """What a repair did. `left` says in words what is still below full protection, and why."""

    segments: int = 0
    fragments: int = 0
    rebuilt_bytes: int = 0
    seconds: float = 0.0
    left: list[str] = []
    waiting: list[str] = []  # lost nodes whose fragments are not moved yet
    failed: list[int] = []  # segments named in `left`


# -- what is needed --------------------------------------------------------------


def make_plan(keymap: KeymapReader, nodes: Mapping[str, Node], grace_seconds: float) -> Plan:
    """Blocking: looks at files of nodes that came back."""
    places = {place.node_id: place for place in keymap.nodes()}
    plan = Plan()
    patience = time.time_ns() - int(grace_seconds * 1e9)
    plan.waiting = [
        place.node_id
        for place in places.values()
        if place.state is NodeState.LOST and place.since_ns > patience and not place.drains_again
    ]
    for segment in keymap.segments():
        if segment.state is SegmentState.SEALED:
            need = find_need(segment, places, nodes, plan.waiting)
            if need.in_place or need.moves:
                plan.needs.append(need)
    plan.needs.sort(key=lambda need: (need.losses_left, need.segment.segment_id))
    return plan


def find_need(
    segment: Segment, places: Mapping[str, NodeEntry], nodes: Mapping[str, Node], waiting: Sequence[str]
) -> Need:
    need = Need(segment, losses_left(segment, holding(places.values())))
    for index, node_id in enumerate(segment.node_ids):
        place = places.get(node_id)
        if place is None or place.drains_again or place.state in (NodeState.DRAINING, NodeState.QUARANTINED):
            need.moves.append(index)
        elif place.state is NodeState.LOST:
            if node_id not in waiting:
                need.moves.append(index)
        elif node_id not in nodes:
            continue  # it is about to be found lost
        elif index in segment.fragments_lost or misses(segment, index, place, nodes[node_id]):
            need.in_place.append(index)
    return need


def misses(segment: Segment, index: int, place: NodeEntry, node: Node) -> bool:
    """Whether a node that came back came without its fragment. A look at size, header and
    footer: scrub reads the rest."""
    return place.state in RETURNED and not looks_whole(segment, index, node)


# -- doing it ----------------------------------------------------------------------


async def repair(
    parts: Parts,
    *,
    bytes_per_second: int | None = BYTES_PER_SECOND,
    report: Report = silent,
    grace_seconds: float = GRACE_SECONDS,
    skip: frozenset[int] = frozenset(),
) -> RepairResult:
    """Repair all that can be repaired now, but for the segments in `skip`. Raises nothing
    for a segment that cannot be: the result names it."""
    await parts.index.freshen()
    with parts.index.keymap.snapshot() as keymap:
        plan = await anyio.to_thread.run_sync(make_plan, keymap, dict(parts.nodes.nodes), grace_seconds)
    needs = [need for need in plan.needs if need.segment.segment_id not in skip]
    with telling(parts.data, "repair", report) as tell:
        meter = Meter("repair", _estimate(needs), tell)
        work = FragmentWork(parts, Throttle(bytes_per_second), meter, plan.waiting)
        started = time.monotonic()
        for need in needs:
            end = meter.done + _estimate([need])
            async with care_lock(parts.data, "repair"):
                await work.repair(need.segment.segment_id)
            meter.add(max(end - meter.done, 0))  # what turned out to need no reading
        meter.tell()
    work.result.seconds = time.monotonic() - started
    work.result.waiting = plan.waiting
    return work.result


def _estimate(needs: Sequence[Need]) -> int:
    """Bytes that will be read and written."""
    return sum(need.segment.size * (need.segment.k + len(need.in_place) + len(need.moves)) for need in needs)


class FragmentWork:
    """Writing fragments anew, segment by segment; the care lock is held around each."""

    def __init__(self, parts: Parts, throttle: Throttle, meter: Meter, waiting: Sequence[str]) -> None:
        self.result = RepairResult()
        self.meter = meter
        self._parts = parts
        self._throttle = throttle
        self._waiting = waiting

    async def repair(self, segment_id: int) -> None:
        """One segment, as it is now. The care lock is held."""
        parts = self._parts
        segment = parts.index.keymap.segment(segment_id)
        if segment is None or segment.state is not SegmentState.SEALED:
            return  # collected meanwhile
        places = {place.node_id: place for place in parts.index.keymap.nodes()}
        nodes = dict(parts.nodes.nodes)
        need = await anyio.to_thread.run_sync(find_need, segment, places, nodes, self._waiting)
        try:
            targets = await anyio.to_thread.run_sync(self._targets, need, places, nodes)
            # A file that only looked incomplete, or was reported wrongly, is whole as it is.
            fine = [index for index in need.in_place if index not in {one.index for one in targets}]
            sources = self._sources(need, places, nodes, fine)
            whole = await self._rebuild(segment, targets, sources) if targets else []
            moved = {one.index: one.node for one in targets if one.index in whole and not one.in_place}
            if whole or fine:
                await self._commit(segment, [*whole, *fine], moved, nodes)
        except StoreError as error:
            self._leave(segment, str(error))
            return
        self._tell_left(segment, need, targets, whole)

    async def move(self, segment_id: int, index: int, node_id: str) -> bool:
        """Move one fragment to a node that has none of the segment. The care lock is held.
        False if that is not so any more. Raises what reading and writing raise."""
        parts = self._parts
        segment = parts.index.keymap.segment(segment_id)
        nodes = dict(parts.nodes.nodes)
        if segment is None or node_id in segment.node_ids or node_id not in nodes:
            return False
        places = {place.node_id: place for place in parts.index.keymap.nodes()}
        target = Target(index, nodes[node_id], in_place=False)
        whole = await self._rebuild(segment, [target], self._sources(Need(segment, 0), places, nodes, []))
        if whole:
            await self._commit(segment, whole, {index: target.node}, nodes)
        return bool(whole)

    def _targets(self, need: Need, places: Mapping[str, NodeEntry], nodes: Mapping[str, Node]) -> list[Target]:
        """Where fragments will be written. Blocking: reads the files they replace."""
        segment, store_id = need.segment, self._parts.descriptor.store_id
        targets: list[Target] = []
        for index in need.in_place:
            node = nodes[segment.node_ids[index]]
            state = inspect_file(segment, index, node, store_id)
            if not state.whole:
                bad = state.bad_stretches if state.exists else None
                targets.append(Target(index, node, state.aside, bad_stretches=bad))
            elif index in segment.never_synced:
                # Its sync failed: the kernel may have dropped pages it still shows, and would
                # report success from now on.
                targets.append(Target(index, node, bad_stretches=0))
            elif reason := disagreement(segment, index, self._sources(need, places, nodes, [index]), store_id):
                targets.append(Target(index, node, reason, bad_stretches=1))
        free = _free_bytes(nodes)
        kept = [places[node_id] for index, node_id in enumerate(segment.node_ids) if index not in need.moves]
        for index in need.moves:
            used = {*segment.node_ids, *(place.node_id for place in kept)}
            spares = [
                place
                for place in places.values()
                if place.state is NodeState.HEALTHY
                and place.node_id not in used
                and free.get(place.node_id, 0) > segment.size
            ]
            chosen = choose_spare(kept, spares, segment.m, free)
            if chosen is not None:
                kept.append(chosen)
                targets.append(Target(index, nodes[chosen.node_id], in_place=False))
        return targets

    def _sources(
        self, need: Need, places: Mapping[str, NodeEntry], nodes: Mapping[str, Node], fine: Sequence[int]
    ) -> dict[int, Node]:
        """Files that should be whole, or were found to be (`fine`). What lies on a node that
        drains is one too."""
        segment = need.segment
        return {
            index: nodes[node_id]
            for index, node_id in enumerate(segment.node_ids)
            if node_id in nodes
            and (index in fine or (index not in segment.fragments_lost and index not in need.in_place))
            and node_id in places
            and places[node_id].state in READABLE
        }

    async def _rebuild(self, segment: Segment, targets: list[Target], sources: dict[int, Node]) -> list[int]:
        readable = len(sources) + sum(one.bad_stretches is not None for one in targets)
        if readable < segment.k:
            raise StoreError(
                f"segment {segment.segment_id:016x} has {readable} fragments to rebuild from and needs "
                f"{segment.k}; bring back its other nodes"
            )
        work = Rebuild(segment, targets, sources, self._parts.descriptor.store_id)
        try:
            await anyio.to_thread.run_sync(work.begin)
            while not work.done:
                size = work.next_bytes
                await self._throttle.take(size)
                await anyio.to_thread.run_sync(work.step)
                self.meter.add(size)
            whole = await anyio.to_thread.run_sync(work.finish)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(work.abandon)
            raise
        for index, reason in work.damaged.items():
            logger.warning("segment %016x fragment %d is damaged: %s", segment.segment_id, index, reason)
            await self._parts.index.commit(FragmentsDamaged(segment.segment_id, [index], reason), ORIGIN)
        return whole

    async def _commit(
        self, segment: Segment, whole: Sequence[int], moved: Mapping[int, Node], nodes: Mapping[str, Node]
    ) -> None:
        reached(CrashSite.REPAIR_PLACED)
        node_ids = [moved[index].node_id if index in moved else old for index, old in enumerate(segment.node_ids)]
        while True:
            now = self._parts.index.keymap.segment(segment.segment_id) or segment
            lost = [index for index in now.fragments_lost if index not in whole]
            change = FragmentsRepaired(segment.segment_id, node_ids, lost, if_lost=now.fragments_lost)
            try:
                await self._parts.index.commit(change, ORIGIN)
                break
            except PreconditionFailed:
                continue  # a reader or scrub told of another one in between
        reached(CrashSite.REPAIR_TOLD)
        self.result.segments += 1
        self.result.fragments += len(whole)
        self.result.rebuilt_bytes += segment.size * len(whole)
        for index in moved:
            old = nodes.get(segment.node_ids[index])
            if old is not None:
                await anyio.to_thread.run_sync(_delete_old, old, fragment_name(segment.segment_id, index))

    def _tell_left(self, segment: Segment, need: Need, targets: Sequence[Target], whole: Sequence[int]) -> None:
        holes = [one.index for one in targets if one.index not in whole]
        homeless = [index for index in need.moves if index not in {one.index for one in targets}]
        if holes:
            self._leave(
                segment,
                f"segment {segment.segment_id:016x}: fragment {_listed(holes)} has stripes too few others are good of; "
                "bring back nodes that hold it",
            )
        if homeless:
            self._leave(
                segment,
                f"segment {segment.segment_id:016x}: no healthy node is free for fragment {_listed(homeless)}; "
                "add a node, or run objfs repair --narrow",
            )

    def _leave(self, segment: Segment, reason: str) -> None:
        logger.info("repair: %s", reason)
        self.result.left.append(reason)
        if segment.segment_id not in self.result.failed:
            self.result.failed.append(segment.segment_id)


def _listed(indexes: Sequence[int]) -> str:
    return ", ".join(map(str, indexes))


def _delete_old(node: Node, name: str) -> None:
    try:
        node.delete(name)
    except FragmentMissing:
        return  # there was none
    except StoreError as error:
        logger.warning("%s stays on node %s until collection: %s", name, node.node_id, error)


def _free_bytes(nodes: Mapping[str, Node]) -> dict[str, int]:
    free: dict[str, int] = {}
    for node_id, node in nodes.items():
        try:
            free[node_id] = node.space().free
        except StoreError:
            continue  # it is about to be found lost
    return free
