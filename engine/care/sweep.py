"""The sweep: fragment files on nodes that no segment has a use for.

What a crash between the end of a segment and the end of its files leaves, what a node
brings back that was away meanwhile, and what a moved fragment left at its old place.
Nothing is deleted on doubt: a file goes only if its own header says it is this store's
and the index knows that its segment was deleted, or has the same fragment whole
elsewhere. Files of segments nobody knows are set aside.

Under the care lock: whoever moves or rebuilds fragments must not run beside it. All but
sweep() are blocking functions for worker threads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import anyio.to_thread
from msgspec import Struct

from engine.changes import Origin, Spare
from engine.crash_sites import CrashSite, reached
from engine.errors import (
    CollectionStopped,
    FragmentCorrupt,
    FragmentMissing,
    NodeUnavailable,
    StoreError,
    UnknownFormat,
)
from engine.interfaces import KeymapReader, Node
from engine.segments.format import FILE_HEADER_BYTES, decode_file_header, fragment_name
from engine.segments.rebuild import SCRATCH
from engine.segments.recovery import missing_fragments
from engine.types import Segment, SegmentState

if TYPE_CHECKING:  # opening.py runs maintenance, which sweeps
    from engine.opening import Parts

_NAME = re.compile(r"segments/[0-9a-f]{2}/([0-9a-f]{16})\.(\d{1,5})")
FOLDER = "segments/"
ORIGIN = Origin(requester="sweep")

logger = logging.getLogger("objfs.care")


class Swept(Struct):
    """What a sweep did."""

    files: int = 0  # deleted
    freed_bytes: int = 0
    quarantined: int = 0

    def add(self, other: Swept) -> None:
        self.files += other.files
        self.freed_bytes += other.freed_bytes
        self.quarantined += other.quarantined


def delete_fragments(segments: Iterable[Segment], nodes: Mapping[str, Node]) -> Swept:
    """Delete the files of segments the index has durably dropped, on the nodes that are
    there; the others are swept when they come back."""
    swept = Swept()
    for segment in segments:
        for index, node_id in enumerate(segment.node_ids):
            node = nodes.get(node_id)
            if node is None:
                continue
            try:
                _delete(node, fragment_name(segment.segment_id, index), swept)
            except FragmentMissing:
                continue  # it was one of those not whole
            except StoreError as error:
                logger.warning("fragment %d of segment %016x stays for now: %s", index, segment.segment_id, error)
    return swept


async def sweep(parts: Parts) -> Swept:
    """Every node that is there. The care lock is held. Raises CollectionStopped while the
    keymap does not show the present: an index process that starts again builds it anew."""
    nodes, names = dict(parts.nodes.nodes), dict[str, list[str]]()
    for node_id, node in sorted(nodes.items()):
        try:
            names[node_id] = await anyio.to_thread.run_sync(list_fragments, node)
        except StoreError as error:
            logger.warning("node %s is not swept: %s", node_id, error)
    # Whatever had a file by now was announced before this record.
    now = (await parts.index.commit(Spare([]), ORIGIN)).lsn
    swept = Swept()
    with parts.index.keymap.snapshot() as reader:
        if reader.applied_lsn() < now:
            raise CollectionStopped("the keymap is behind the journal; no file was looked at, try again")
        for node_id, listed in names.items():
            try:
                swept.add(
                    await anyio.to_thread.run_sync(
                        sweep_files, reader, nodes[node_id], listed, parts.descriptor.store_id, nodes
                    )
                )
            except StoreError as error:
                logger.warning("node %s is not swept to the end: %s", node_id, error)
    return swept


def list_fragments(node: Node) -> list[str]:
    """Every fragment file of a node, for sweep_files(). Raises NodeUnavailable."""
    return list(node.list(FOLDER))


def sweep_files(
    keymap: KeymapReader, node: Node, names: Iterable[str], store_id: str, nodes: Mapping[str, Node]
) -> Swept:
    """Look at these files of one node. `keymap` must show a state from after they were
    listed: the index knows of a segment before any file of it is made. Raises
    NodeUnavailable."""
    swept = Swept()
    for name in names:
        try:
            _sweep_file(keymap, node, name, store_id, nodes, swept)
        except FragmentMissing:
            continue  # gone meanwhile
        except UnknownFormat as error:
            logger.warning("%s on node %s is left alone: %s", name, node.node_id, error)
    return swept


def _sweep_file(
    keymap: KeymapReader, node: Node, name: str, store_id: str, nodes: Mapping[str, Node], swept: Swept
) -> None:
    scratch = name.endswith(SCRATCH)
    match = _NAME.fullmatch(name.removesuffix(SCRATCH))
    if match is None:
        _set_aside(node, name, "no fragment file has such a name", swept)
        return
    segment_id, index = int(match[1], 16), int(match[2])
    segment = keymap.segment(segment_id)
    if segment is not None and segment.state is SegmentState.OPEN:
        return  # its writer's business, or recovery's
    if scratch:
        _delete(node, name, swept)  # of an attempt that ended: the file beside it counts
    elif segment is None:
        _sweep_unknown(keymap, node, name, (store_id, segment_id, index), swept)
    elif segment.node_ids[index : index + 1] != [node.node_id]:
        _sweep_moved(segment, node, name, (store_id, segment_id, index), nodes, swept)


def _sweep_unknown(keymap: KeymapReader, node: Node, name: str, expected: tuple[str, int, int], swept: Swept) -> None:
    if not keymap.was_deleted(expected[1]):
        _set_aside(node, name, "the index knows no such segment, and none that was deleted", swept)
    elif not _is_ours(node, name, expected):
        _set_aside(node, name, "its segment was deleted, but its header does not say it is that segment's", swept)
    else:
        _delete(node, name, swept)


def _sweep_moved(
    segment: Segment, node: Node, name: str, expected: tuple[str, int, int], nodes: Mapping[str, Node], swept: Swept
) -> None:
    index = expected[2]
    if not _is_ours(node, name, expected) or index >= len(segment.node_ids):
        _set_aside(node, name, f"node {node.node_id} has no such fragment of that segment", swept)
    elif index not in segment.fragments_lost and index not in missing_fragments(segment, nodes):
        _delete(node, name, swept)


def _is_ours(node: Node, name: str, expected: tuple[str, int, int]) -> bool:
    try:
        header = decode_file_header(node.read(name, 0, FILE_HEADER_BYTES))
    except FragmentCorrupt:
        return False
    except NodeUnavailable:
        node.check()
        return False  # a bad sector of this file alone: it can't be told whose it is
    return (header.store_id, header.segment_id, header.index) == expected


def _delete(node: Node, name: str, swept: Swept) -> None:
    size = node.size(name)
    node.delete(name)
    reached(CrashSite.FRAGMENT_DELETED)
    swept.files += 1
    swept.freed_bytes += size


def _set_aside(node: Node, name: str, reason: str, swept: Swept) -> None:
    logger.warning("%s on node %s is set aside: %s", name, node.node_id, reason)
    node.quarantine(name, reason)
    swept.quarantined += 1
