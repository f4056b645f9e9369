"""Watching nodes, sealing what crashed writers left, giving returned nodes what they miss.

Runs as one task in the process that owns the store. Node states only change here and in
replace_node: healthy → lost when a node's check fails; lost → stale when it is back;
stale or rebuilding → healthy once no segment or journal file misses anything on it.
"""

from __future__ import annotations

import logging

import anyio
import anyio.to_thread

from engine.changes import FragmentsRepaired, Origin, SetNode
from engine.errors import StoreError
from engine.index.local import LocalIndex
from engine.nodeset import NodeSet
from engine.segments.recovery import missing_fragments, rebuild_fragments, recover_segment
from engine.types import NodeEntry, NodeState, Segment, SegmentState

WATCH_SECONDS = 1.0
ORIGIN = Origin(requester="maintenance")
REPAIRABLE = (NodeState.HEALTHY, NodeState.STALE, NodeState.REBUILDING)

logger = logging.getLogger("objfs.maintenance")


class Maintenance:
    def __init__(self, index: LocalIndex, nodes: NodeSet) -> None:
        self._index = index
        self._nodes = nodes
        self._sealing = anyio.Lock()

    async def run(self) -> None:
        """Until cancelled. A failed round is logged and tried again."""
        while True:
            try:
                await self.watch()
            except (StoreError, OSError) as error:
                logger.warning("maintenance: %s", error)
            await anyio.sleep(WATCH_SECONDS)

    async def watch(self) -> None:
        """One round: states follow the nodes, and returned nodes are repaired."""
        changed = False
        for place in self._index.keymap.nodes():
            problem = await anyio.to_thread.run_sync(self._nodes.probe, place)
            state = self._next_state(place, problem)
            if state is not place.state:
                logger.warning("node %s is %s: %s", place.node_id, state, problem or "it is back")
                await self._set_state(place, state)
                changed = True
        for place in self._index.keymap.nodes():
            if place.state in (NodeState.STALE, NodeState.REBUILDING) and await self.repair(place):
                logger.warning("node %s is whole again", place.node_id)
                await self._set_state(place, NodeState.HEALTHY)
                self._index.forgive(place.node_id)
                changed = True
        if changed:
            await self._index.repair_journal()

    def _next_state(self, place: NodeEntry, problem: str | None) -> NodeState:
        if problem is not None:
            return NodeState.LOST if place.state in REPAIRABLE else place.state
        failed_a_sync = place.state is NodeState.HEALTHY and place.node_id in self._index.failed_replicas
        if place.state is NodeState.LOST or failed_a_sync:
            return NodeState.STALE
        return place.state

    async def seal_orphans(self, *, owner: str | None = None) -> None:
        """Cut the torn tail of every open segment (of `owner`, or of all) and seal it."""
        async with self._sealing:
            for segment in list(self._index.keymap.segments()):
                if segment.state is SegmentState.OPEN and owner in (None, segment.owner):
                    sealed = await anyio.to_thread.run_sync(recover_segment, segment, self._nodes.nodes)
                    await self._index.commit(sealed, ORIGIN)

    async def repair(self, place: NodeEntry) -> bool:
        """Rebuild what `place` misses; True when it misses nothing. An open segment is
        still its writer's business and leaves the node unfinished only if this node is to
        hold a fragment it does not have."""
        whole = True
        for segment in list(self._index.keymap.segments()):
            if place.node_id in segment.node_ids:
                whole = await self._repair_segment(segment, place.node_id) and whole
        return whole

    async def _repair_segment(self, segment: Segment, node_id: str) -> bool:
        missing = await anyio.to_thread.run_sync(missing_fragments, segment, self._nodes.nodes)
        wanted = [index for index in missing if segment.node_ids[index] == node_id]
        if not wanted:
            return True
        if segment.state is SegmentState.OPEN:
            return False
        await anyio.to_thread.run_sync(rebuild_fragments, segment, wanted, self._nodes.nodes)
        await self._index.commit(FragmentsRepaired(segment.segment_id, segment.node_ids), ORIGIN)
        return True

    async def _set_state(self, place: NodeEntry, state: NodeState) -> None:
        change = SetNode(place.node_id, place.path, place.domain, state, place.generation)
        await self._index.commit(change, ORIGIN)
