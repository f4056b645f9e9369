"""The reserve: room kept aside on every node, so that a full disk can be emptied again.

Each node holds a file of its reserve's size (Node.set_reserve). Ordinary content is
refused while it would eat into that; what makes room (deletes, collection, compaction)
and what keeps the store whole (repair, node changes) goes on, and is lent part of the
reserve when the disk has nothing left. What was lent is not room for content either: room
is counted as if the reserve were whole. Maintenance fills it up again.

Knows nodes, nothing of what is stored there. Blocking; any thread. Several processes may
lend at once: each sees the files' sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from engine import limits
from engine.errors import NodeFull, StoreError
from engine.interfaces import Node, NodeSpace

LEND_BYTES = 8 * 1024**2  # kept free beneath what must go on
REFILL_SLACK_BYTES = 2 * LEND_BYTES  # left free when the reserve is filled up: no to and fro


class Rooms(Struct, frozen=True):
    """What was found, by node id; nodes that don't answer are left out."""

    room: dict[str, int]  # bytes ordinary content may take; below zero: so much is lent
    target: dict[str, int]  # what the reserve should be
    held: dict[str, int]  # what it is
    device: dict[str, int]


def automatic_bytes(space: NodeSpace, nodes_on_device: int) -> int:
    """A node's reserve where nobody said how much."""
    return min(limits.RESERVE_BYTES_MAX, int(space.total * limits.RESERVE_SHARE) // max(nodes_on_device, 1))


class Reserve:
    """Of all `nodes`, which may come and go. `bytes_each`: None for automatic."""

    def __init__(self, nodes: Mapping[str, Node], bytes_each: int | None) -> None:
        self._nodes = nodes
        self._bytes_each = bytes_each

    def look(self) -> Rooms:
        """Nodes of one device share its room, and what is lacking of each other's reserve."""
        spaces: dict[str, NodeSpace] = {}
        held: dict[str, int] = {}
        for node_id, node in list(self._nodes.items()):
            try:
                spaces[node_id], held[node_id] = node.space(), node.reserved()
            except StoreError:
                spaces.pop(node_id, None)  # as lost as the index will soon say
        targets = self._targets(spaces)
        lent: dict[object, int] = {}
        for node_id, space in spaces.items():
            device = _device(node_id, space)
            lent[device] = lent.get(device, 0) + max(targets[node_id] - held[node_id], 0)
        room = {node_id: space.free - lent[_device(node_id, space)] for node_id, space in spaces.items()}
        return Rooms(room, targets, held, {node_id: space.device for node_id, space in spaces.items()})

    def lend(self, count: int) -> None:
        """Give back reserve until `count` bytes are free on every node, or there is none
        left to give."""
        for node in list(self._nodes.values()):
            try:
                free, held = node.space().free, node.reserved()
                if free < count and held:
                    node.set_reserve(max(held - (count - free), 0))
            except StoreError:
                continue  # a node that is not there has nothing to lend

    def refill(self) -> None:
        """Bring every reserve to its size, as far as there is room."""
        found = self.look()
        for node_id, target in found.target.items():
            node, held = self._nodes.get(node_id), found.held[node_id]
            if node is None or held == target:
                continue
            try:
                wanted = min(target, held + max(node.space().free - REFILL_SLACK_BYTES, 0))
                if wanted != held:
                    node.set_reserve(wanted)
            except NodeFull:
                continue  # somebody was quicker
            except StoreError:
                continue  # the watch over the nodes reports it

    def _targets(self, spaces: Mapping[str, NodeSpace]) -> dict[str, int]:
        if self._bytes_each is not None:
            return dict.fromkeys(spaces, self._bytes_each)
        devices = [_device(node_id, space) for node_id, space in spaces.items()]
        return {
            node_id: automatic_bytes(space, devices.count(_device(node_id, space))) for node_id, space in spaces.items()
        }


def _device(node_id: str, space: NodeSpace) -> object:
    """What nodes share room on. Nodes of unknown devices have their own."""
    return space.device or node_id
