"""The nodes of one store as this process holds them.

`nodes` maps node id to an opened Node and is changed in place, so the parts that hold it
see a node come and go. A node is opened only while its descriptor says it is ours; what
is missing stays unopened and nothing is created under it. probe() may be called from a
thread; the rest belongs to the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engine.care.reserve import Reserve
from engine.errors import NodeUnavailable, StoreError
from engine.interfaces import Node, NodeSpace
from engine.limits import CONTENT_ROOM_BYTES_MIN
from engine.nodes.descriptor import NodeDescriptor, StoreDescriptor, read_node_descriptor
from engine.nodes.directory import DirectoryNode
from engine.placement import layout_warnings
from engine.types import NodeEntry

NodeOpener = Callable[[str, str, str], Node]  # (path, node id, store id) of a place whose descriptor is ours


class NodeSet:
    def __init__(self, descriptor: StoreDescriptor, opener: NodeOpener = DirectoryNode) -> None:
        self.descriptor = descriptor
        self._opener = opener
        self.nodes: dict[str, Node] = {}
        self.reserve = Reserve(self.nodes, descriptor.reserve_bytes)
        self.missing: dict[str, str] = {}  # node id → why, as found when the set was opened
        self.described: dict[str, NodeDescriptor] = {}  # as each node was opened last
        for place in descriptor.nodes:
            problem = self.probe(NodeEntry(place.node_id, place.path, place.domain, generation=place.generation))
            if problem is not None:
                self.missing[place.node_id] = problem

    def probe(self, place: NodeEntry) -> str | None:
        """Check the node, opening it again where it came back. None when it is good,
        else what is wrong with it."""
        node = self.nodes.get(place.node_id)
        if node is not None and node.path == place.path:
            try:
                node.check()
                if isinstance(node, DirectoryNode):
                    node.close_deleted()
                return None
            except StoreError:
                # it may be a new directory in the same place: fall through and look afresh
                self._drop(place.node_id)
        try:
            self.nodes[place.node_id] = self._open(place)
        except (StoreError, OSError) as error:
            return str(error)
        return None

    def keep_only(self, places: Sequence[NodeEntry]) -> None:
        """Let go of nodes that were removed from the store."""
        known = {place.node_id for place in places}
        for node_id in [node_id for node_id in self.nodes if node_id not in known]:
            self._drop(node_id)

    def _open(self, place: NodeEntry) -> Node:
        found = read_node_descriptor(Path(place.path), self.descriptor.store_id)
        if found.node_id != place.node_id:
            raise NodeUnavailable(
                f"{place.path} holds node {found.node_id}, not {place.node_id}; put its path in store.json right"
            )
        if found.generation != place.generation:
            raise NodeUnavailable(
                f"{place.path} holds an older disk of node {place.node_id} "
                f"(generation {found.generation}, not {place.generation}); empty it and run objfs node replace"
            )
        self.described[place.node_id] = found
        return self._opener(place.path, place.node_id, self.descriptor.store_id)

    def _drop(self, node_id: str) -> None:
        node = self.nodes.pop(node_id, None)
        if node is not None:
            node.close()

    def close(self) -> None:
        for node_id in list(self.nodes):
            self._drop(node_id)

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of content under the store's code. Nodes of one device
        share its room, so each device counts once."""
        devices: dict[int, NodeSpace] = {}
        for node in self.nodes.values():
            try:
                space = node.space()
            except StoreError:
                continue  # a lost node has no room; maintenance reports it
            devices[space.device] = space
        found = self.reserve.look()
        room = {found.device[node_id]: max(room - CONTENT_ROOM_BYTES_MIN, 0) for node_id, room in found.room.items()}
        share = self.descriptor.k / (self.descriptor.k + self.descriptor.m)
        total = sum(space.total for space in devices.values())
        return int(total * share), int(sum(room.values()) * share)

    def used_bytes(self) -> dict[str, int | None]:
        """Bytes of our files on each node; None where it can't be read. Blocking."""
        used: dict[str, int | None] = {}
        for node_id, node in list(self.nodes.items()):
            try:
                used[node_id] = sum(node.size(name) for name in node.list("")) + node.reserved()
            except StoreError:
                used[node_id] = None
        return used

    def warnings(self) -> list[str]:
        return layout_warnings(self.descriptor, list(self.nodes.values()))
