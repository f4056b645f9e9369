"""Nodes that are added, drained, removed, given another domain; fragments evened out.

store.json, the node's descriptor and the index each name a node. They change in an order
that leaves a command that was interrupted to be given again: what a node is, before that
it exists; that it is gone, last. Every piece of work takes the care lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from engine.care.lock import care_lock
from engine.care.narrowing import narrow
from engine.care.pace import Meter, Report, Throttle, silent
from engine.care.repair import BYTES_PER_SECOND, GRACE_SECONDS, FragmentWork, repair
from engine.changes import Origin, RemoveNode, SetNode
from engine.crash_sites import CrashSite, reached
from engine.errors import StoreError
from engine.journal.recovery import heal_epochs
from engine.nodes.descriptor import (
    NODE_DESCRIPTOR_NAME,
    NodeDescriptor,
    NodePlace,
    read_node_descriptor,
    read_store_descriptor,
    write_node_descriptor,
    write_store_descriptor,
)
from engine.opening import Parts
from engine.placement import crowded, spare_keeps_rule
from engine.replacing import commit_with_patience
from engine.types import NodeEntry, NodeState, Segment, SegmentState

EVEN_SHARE = 0.05  # nodes are even when none holds more than this share beyond another
SEAL_SECONDS = 15.0
ORIGIN = Origin(requester="node")


class NodeWork(Struct):
    """What a command on nodes did. `left`: what it could not do, in words."""

    node_id: str = ""
    moved: int = 0  # fragments
    crowded: int = 0  # segments that broke the placement rule
    left: list[str] = []


# -- adding ------------------------------------------------------------------------


async def add_node(parts: Parts, path: str, domain: str = "") -> str:
    """Make the directory at `path` (made if missing; else empty) a node, used for new
    segments at once. Returns its id. Raises StoreError."""
    async with care_lock(parts.data, "adding a node"):
        await parts.index.freshen()
        place = await anyio.to_thread.run_sync(
            _make_node, parts.data, parts.index.keymap.nodes(), os.path.abspath(path), domain
        )
        await commit_with_patience(parts, SetNode(place.node_id, place.path, place.domain))
        problem = await anyio.to_thread.run_sync(
            parts.nodes.probe, NodeEntry(place.node_id, place.path, place.domain, generation=place.generation)
        )
        # A node without the newest epoch would be taken for an old copy that was put back.
        await anyio.to_thread.run_sync(heal_epochs, dict(parts.nodes.nodes), parts.descriptor.store_id)
    if problem is not None:
        raise StoreError(f"node {place.node_id} was added, but {problem}")
    return place.node_id


def _make_node(data: Path, entries: list[NodeEntry], path: str, domain: str) -> NodePlace:
    descriptor = read_store_descriptor(data)
    known = {entry.node_id for entry in entries} | {place.node_id for place in descriptor.nodes}
    if path in {entry.path for entry in entries} | {place.path for place in descriptor.nodes}:
        raise StoreError(f"{path} is a node already; objfs node list shows them")
    directory = Path(path)
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{path} is no directory; name one")
    directory.mkdir(parents=True, exist_ok=True)
    node_id = _unfinished(directory, descriptor.store_id, known) or _next_id(known)
    write_node_descriptor(
        directory,
        NodeDescriptor(
            store_id=descriptor.store_id,
            node_id=node_id,
            k=descriptor.k,
            m=descriptor.m,
            code=descriptor.code,
            domain=domain,
        ),
    )
    reached(CrashSite.NODE_DESCRIBED)
    place = NodePlace(node_id=node_id, path=path, domain=domain)
    write_store_descriptor(data, msgspec.structs.replace(descriptor, nodes=[*descriptor.nodes, place]))
    reached(CrashSite.NODE_PLACED)
    return place


def _unfinished(directory: Path, store_id: str, known: set[str]) -> str | None:
    """The id an earlier attempt gave the directory. Raises StoreError if it holds anything
    else."""
    entries = [entry.name for entry in directory.iterdir() if entry.name != "lost+found"]
    if not entries:
        return None
    if entries == [NODE_DESCRIPTOR_NAME]:
        found = read_node_descriptor(directory, store_id)
        if found.node_id not in known:
            return found.node_id
    raise StoreError(f"{directory} is not empty; empty it or name another directory")


def _next_id(known: set[str]) -> str:
    numbers = [int(name[4:]) for name in known if name.startswith("node") and name[4:].isdigit()]
    return f"node{max(numbers, default=0) + 1}"


# -- draining and removing -----------------------------------------------------------


async def drain_node(
    parts: Parts, node_id: str, *, bytes_per_second: int | None = BYTES_PER_SECOND, report: Report = silent
) -> NodeWork:
    """Nothing new is written to the node, and what it holds is copied elsewhere: to nodes
    that have room beside the others of a segment, else by writing segments anew over fewer
    nodes. Raises StoreError if too few nodes would be left."""
    await parts.index.freshen()
    place = find_place(parts, node_id)
    if place.state not in (NodeState.HEALTHY, NodeState.DRAINING):
        raise StoreError(f"node {node_id} is {place.state}; only a healthy node can be drained, see objfs node remove")
    _check_enough(parts, node_id)
    if place.state is NodeState.HEALTHY:
        await _set(parts, place, state=NodeState.DRAINING)
    await _seal_on(parts, node_id)
    work = await _empty(parts, node_id, bytes_per_second, report, GRACE_SECONDS)
    await parts.index.heal_journal()  # it is no place for replicas any more
    return work


async def remove_node(
    parts: Parts, node_id: str, *, bytes_per_second: int | None = BYTES_PER_SECOND, report: Report = silent
) -> NodeWork:
    """Forget a node: one that was drained, or one that is lost, whose fragments are rebuilt
    elsewhere before. Raises StoreError."""
    await parts.index.freshen()
    place = find_place(parts, node_id)
    if place.state not in (NodeState.DRAINING, NodeState.LOST):
        raise StoreError(f"node {node_id} is {place.state}; run objfs node drain {node_id} first")
    _check_enough(parts, node_id)
    await _seal_on(parts, node_id)
    work = await _empty(parts, node_id, bytes_per_second, report, 0.0)
    if work.left:
        raise StoreError(
            f"node {node_id} still holds what could not be moved ({work.left[0]}); it stays until that is done"
        )
    await parts.index.heal_journal()
    async with care_lock(parts.data, "removing a node"):
        descriptor = read_store_descriptor(parts.data)
        kept = [known for known in descriptor.nodes if known.node_id != node_id]
        write_store_descriptor(parts.data, msgspec.structs.replace(descriptor, nodes=kept))
        reached(CrashSite.NODE_PLACED)
        await parts.index.commit(RemoveNode(node_id), ORIGIN)
    return work


async def _empty(
    parts: Parts, node_id: str, bytes_per_second: int | None, report: Report, grace_seconds: float
) -> NodeWork:
    """Move everything off a node that drains or is lost."""
    work = NodeWork(node_id)
    repaired = await repair(parts, bytes_per_second=bytes_per_second, report=report, grace_seconds=grace_seconds)
    work.moved = repaired.fragments
    if _naming(parts, node_id):
        narrowed = await narrow(parts, bytes_per_second=bytes_per_second, report=report, grace_seconds=grace_seconds)
        work.left = narrowed.left
    naming = _naming(parts, node_id)
    if naming and not work.left:
        work.left = [
            f"{len(naming)} segments still name it, such as {naming[0].segment_id:016x}; "
            "their old copies are in use, try again in a minute"
        ]
    return work


def _naming(parts: Parts, node_id: str) -> list[Segment]:
    return [segment for segment in parts.index.keymap.segments() if node_id in segment.node_ids]


async def _seal_on(parts: Parts, node_id: str) -> None:
    """Have the open segments that lie on the node sealed."""
    await parts.index.request_seal()
    await parts.plane.seal()
    with anyio.move_on_after(SEAL_SECONDS):
        while any(one.state is SegmentState.OPEN for one in _naming(parts, node_id)):
            await anyio.sleep(0.1)
            await parts.plane.seal()


def find_place(parts: Parts, node_id: str) -> NodeEntry:
    places = parts.index.keymap.nodes()
    place = next((place for place in places if place.node_id == node_id), None)
    if place is None:
        known = ", ".join(entry.node_id for entry in places)
        raise StoreError(f"there is no node {node_id}; the nodes are {known}")
    return place


def _check_enough(parts: Parts, without: str) -> None:
    m = parts.descriptor.m
    healthy = [
        place.node_id
        for place in parts.index.keymap.nodes()
        if place.state is NodeState.HEALTHY and place.node_id != without
    ]
    if len(healthy) < m + 1:
        raise StoreError(
            f"without node {without} {len(healthy)} healthy nodes are left and the store needs {m + 1}; "
            "add a node first: objfs node add PATH"
        )


async def _set(parts: Parts, place: NodeEntry, *, state: NodeState | None = None, domain: str | None = None) -> None:
    await parts.index.commit(
        SetNode(
            place.node_id,
            place.path,
            place.domain if domain is None else domain,
            place.state if state is None else state,
            place.generation,
        ),
        ORIGIN,
    )


async def undrain_node(parts: Parts, node_id: str) -> None:
    """Take draining back: the node is used as before. Raises StoreError."""
    await parts.index.freshen()
    place = find_place(parts, node_id)
    if place.drains_again:
        raise StoreError(f"node {node_id} is {place.state}; its draining can be taken back once it is there again")
    if place.state is not NodeState.DRAINING:
        raise StoreError(f"node {node_id} is {place.state}, not draining")
    await _set(parts, place, state=NodeState.HEALTHY)
    await parts.index.heal_journal()  # it missed the epochs that began meanwhile


# -- domains and balance ---------------------------------------------------------------


async def set_domain(
    parts: Parts,
    node_id: str,
    domain: str,
    *,
    bytes_per_second: int | None = BYTES_PER_SECOND,
    report: Report = silent,
) -> NodeWork:
    """Say where the node is, everywhere; then move fragments that break the placement rule
    because of it. Raises StoreError."""
    await parts.index.freshen()
    place = find_place(parts, node_id)
    async with care_lock(parts.data, "setting a domain"):
        await anyio.to_thread.run_sync(_describe_domain, parts, place, domain)
        await _set(parts, place, domain=domain)
    work = await rebalance(parts, bytes_per_second=bytes_per_second, report=report, even=False)
    work.node_id = node_id
    return work


def _describe_domain(parts: Parts, place: NodeEntry, domain: str) -> None:
    if place.node_id in parts.nodes.nodes:
        found = read_node_descriptor(Path(place.path), parts.descriptor.store_id)
        write_node_descriptor(Path(place.path), msgspec.structs.replace(found, domain=domain))
    reached(CrashSite.NODE_DESCRIBED)
    descriptor = read_store_descriptor(parts.data)
    places = [
        msgspec.structs.replace(known, domain=domain) if known.node_id == place.node_id else known
        for known in descriptor.nodes
    ]
    write_store_descriptor(parts.data, msgspec.structs.replace(descriptor, nodes=places))
    reached(CrashSite.NODE_PLACED)


class _Move(Struct, frozen=True):
    segment: Segment
    index: int
    target: str


async def rebalance(
    parts: Parts, *, bytes_per_second: int | None = BYTES_PER_SECOND, report: Report = silent, even: bool = True
) -> NodeWork:
    """Move fragments that break the placement rule, and with `even` from the fullest to the
    emptiest nodes until they hold about as much of what they can."""
    await parts.index.freshen()
    work = NodeWork()
    room = await anyio.to_thread.run_sync(_room, parts)
    with parts.index.keymap.snapshot() as keymap:
        segments = [one for one in keymap.segments() if one.state is SegmentState.SEALED]
        balance = _Balance(segments, keymap.nodes(), parts.descriptor.m, room)
    moves, work.crowded, work.left = await anyio.to_thread.run_sync(balance.separate)
    if even:
        moves += await anyio.to_thread.run_sync(balance.even_out)
    total = sum(move.segment.size * (move.segment.k + 1) for move in moves)
    fragments = FragmentWork(parts, Throttle(bytes_per_second), Meter("rebalance", total, report), [])
    for move in moves:
        async with care_lock(parts.data, "rebalancing"):
            work.moved += await fragments.move(move.segment.segment_id, move.index, move.target)
    fragments.meter.tell()
    return work


def _room(parts: Parts) -> dict[str, int]:
    """What each node can hold at most, where it says so; those of one device share it."""
    found: dict[str, tuple[int, int]] = {}
    for node_id, node in list(parts.nodes.nodes.items()):
        try:
            space = node.space()
        except StoreError:
            continue  # it is about to be found lost
        found[node_id] = (space.device, space.total)
    sharing = [device for device, _ in found.values()]
    return {node_id: total // sharing.count(device) for node_id, (device, total) in found.items()}


class _Balance:
    """Where fragments would lie after the moves chosen so far."""

    def __init__(self, segments: Sequence[Segment], places: Sequence[NodeEntry], m: int, room: dict[str, int]) -> None:
        self._places = {place.node_id: place for place in places}
        self._healthy = [place for place in places if place.state is NodeState.HEALTHY and room.get(place.node_id)]
        self._m = m
        self._room = room
        self._segments = {one.segment_id: one for one in segments}
        self._lies = {one.segment_id: list(one.node_ids) for one in segments}
        self._held = dict.fromkeys((place.node_id for place in places), 0)
        for one in segments:
            for node_id in one.node_ids:
                self._held[node_id] = self._held.get(node_id, 0) + one.size

    def separate(self) -> tuple[list[_Move], int, list[str]]:
        """(moves that restore the placement rule, segments that break it, those for which
        there is no move)."""
        moves: list[_Move] = []
        left: list[str] = []
        broken = 0
        for segment_id, lies in self._lies.items():
            known = [self._places[node_id] for node_id in lies if node_id in self._places]
            wrong = crowded(known, self._healthy, self._m) if len(known) == len(lies) else []
            broken += bool(wrong)
            for index in wrong:
                target = self._target(segment_id, index)
                if target is None:
                    left.append(f"segment {segment_id:016x}: no node in another domain is free for fragment {index}")
                else:
                    moves.append(self._take(segment_id, index, target))
        return moves, broken, left

    def _target(self, segment_id: int, index: int) -> str | None:
        fitting = [place.node_id for place in self._healthy if self._fits(segment_id, index, place)]
        return min(fitting, key=self._share, default=None)

    def _fits(self, segment_id: int, index: int, place: NodeEntry) -> bool:
        lies = self._lies[segment_id]
        kept = [self._places[one] for at, one in enumerate(lies) if at != index and one in self._places]
        return place.node_id not in lies and spare_keeps_rule(kept, place, self._healthy, self._m)

    def _take(self, segment_id: int, index: int, target: str) -> _Move:
        segment, lies = self._segments[segment_id], self._lies[segment_id]
        self._held[lies[index]] -= segment.size
        self._held[target] += segment.size
        lies[index] = target
        return _Move(segment, index, target)

    def _share(self, node_id: str) -> float:
        return self._held[node_id] / self._room[node_id]

    def even_out(self) -> list[_Move]:
        moves: list[_Move] = []
        while len(self._healthy) > 1 and (move := self._next_even()) is not None:
            moves.append(move)
        return moves

    def _next_even(self) -> _Move | None:
        """From the fullest node that can give to the emptiest that can take."""
        order = sorted((place.node_id for place in self._healthy), key=self._share)
        mean = sum(map(self._share, order)) / len(order)
        for giver in reversed(order):
            for taker in order:
                if self._share(giver) - self._share(taker) <= EVEN_SHARE * mean:
                    break
                for segment_id, index in self._on(giver):
                    if self._evens(segment_id, giver, taker) and self._fits(segment_id, index, self._places[taker]):
                        return self._take(segment_id, index, taker)
        return None

    def _on(self, node_id: str) -> Iterator[tuple[int, int]]:
        for segment_id, lies in self._lies.items():
            if node_id in lies and not self._segments[segment_id].fragments_lost:
                yield segment_id, lies.index(node_id)

    def _evens(self, segment_id: int, giver: str, taker: str) -> bool:
        """Whether the move leaves the two closer than they were, by more than nothing."""
        size = self._segments[segment_id].size
        after = (self._held[taker] + size) / self._room[taker]
        return after < self._share(giver)
