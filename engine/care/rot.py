"""Rot found by readers: told to the index, so that repair takes it up.

Readers report from worker threads and go on at once; a task looks again whether what they
found is so (the file may have been moved or rebuilt under them) and commits it, each
damage once. Bounded: what does not fit is found again by the next reader, or by scrub.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import anyio
import anyio.to_thread

from engine.changes import FragmentsDamaged, Origin
from engine.errors import FragmentCorrupt, StoreError, UnknownFormat
from engine.interfaces import Index, Node
from engine.segments.format import STRIPE_HEADER_BYTES, decode_stripe_header, fragment_name
from engine.segments.reader import read_fragment
from engine.types import Segment, SegmentState

WAITING_MAX = 1000
LOOK_SECONDS = 0.25
ORIGIN = Origin(requester="reader")

logger = logging.getLogger("objfs.segments")


class RotReports:
    """report() from any thread; run() on the event loop."""

    def __init__(self, index: Index, nodes: Mapping[str, Node]) -> None:
        self._index = index
        self._nodes = nodes
        self._waiting: dict[tuple[int, int], tuple[int, str]] = {}  # (segment, fragment) → (offset, why)

    def report(self, segment_id: int, index: int, offset: int, why: str) -> None:
        if len(self._waiting) < WAITING_MAX:
            self._waiting.setdefault((segment_id, index), (offset, why))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for (segment_id, index), (offset, why) in list(self._waiting.items()):
                try:
                    told = await self._tell(segment_id, index, offset, why)
                except StoreError as error:
                    logger.warning("segment %016x fragment %d is damaged, but: %s", segment_id, index, error)
                    break  # the index does not take it now
                if told:
                    self._waiting.pop((segment_id, index), None)
            await anyio.sleep(LOOK_SECONDS)

    async def _tell(self, segment_id: int, index: int, offset: int, why: str) -> bool:
        """False while it is too early: the segment is still written."""
        segment = self._index.keymap.segment(segment_id)
        if segment is None or index in segment.fragments_lost:
            return True  # collected meanwhile, or known already
        if segment.state is SegmentState.OPEN:
            return False
        node = self._nodes.get(segment.node_ids[index])
        if node is not None and await anyio.to_thread.run_sync(is_rotten, segment, index, offset, node):
            logger.warning("segment %016x fragment %d is damaged: %s", segment_id, index, why)
            await self._index.commit(FragmentsDamaged(segment_id, [index], why), ORIGIN)
        return True


def is_rotten(segment: Segment, index: int, offset: int, node: Node) -> bool:
    """Whether the stripe at `offset` is damaged in this file, on a node that is there."""
    try:
        content = node.read(fragment_name(segment.segment_id, index), offset, STRIPE_HEADER_BYTES)
        header = decode_stripe_header(content, segment.segment_id, index)
        read_fragment(segment, index, offset, header.fragment_length, node)
    except FragmentCorrupt:
        return True
    except UnknownFormat:
        return False
    except StoreError:
        try:
            node.check()
        except StoreError:
            return False  # the node is lost, which is told as such
        return True
    return False
