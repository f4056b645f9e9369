"""What was set aside on the nodes: damaged files, each with a note of what, where and why.

Files under `quarantine/` of a node: `<name with _ for />.<time in ns>`, and beside it
`….reason` (FORMAT.md). Nothing here deletes any. Blocking.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from engine.errors import StoreError
from engine.interfaces import Node

FOLDER = "quarantine/"
REASON = ".reason"
NOTE_BYTES_MAX = 64 * 1024


class SetAside(Struct, frozen=True):
    """One file in quarantine. `size` is None if only the note is there."""

    node_id: str
    path: str
    file: str  # what it was
    reason: str
    time_ns: int
    size: int | None


def count_quarantined(nodes: Mapping[str, Node]) -> int:
    return sum(1 for node in nodes.values() for name in _names(node) if not name.endswith(REASON))


def list_quarantined(nodes: Mapping[str, Node]) -> list[SetAside]:
    """Everything in quarantine, the oldest first."""
    found: list[SetAside] = []
    for node_id, node in nodes.items():
        names = set(_names(node))
        for aside in sorted({name.removesuffix(REASON) for name in names}):
            found.append(_describe(node_id, node, aside, names))
    return sorted(found, key=lambda one: (one.time_ns, one.node_id, one.path))


def _names(node: Node) -> list[str]:
    try:
        return list(node.list(FOLDER))
    except StoreError:
        return []  # a lost node shows nothing; it is told of as lost


def _describe(node_id: str, node: Node, aside: str, names: set[str]) -> SetAside:
    file, _, time = aside.removeprefix(FOLDER).rpartition(".")
    reason = "no note was kept"
    if aside + REASON in names:
        first, _, rest = _note(node, aside + REASON).partition("\n")
        file, reason = first.partition(" of node ")[0] or file, rest.strip() or reason
    return SetAside(
        node_id,
        f"{node.path}/{aside}",
        file,
        reason,
        int(time) if time.isdigit() else 0,
        _size(node, aside) if aside in names else None,
    )


def _note(node: Node, name: str) -> str:
    try:
        return node.read(name, 0, NOTE_BYTES_MAX).decode(errors="replace")
    except StoreError as error:
        return f"\nits note cannot be read: {error}"


def _size(node: Node, name: str) -> int | None:
    try:
        return node.size(name)
    except StoreError:
        return None
