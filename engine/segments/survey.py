"""What there is of a segment: its stripes, found in whatever files are there.

Reads only, and trusts nothing but checksums. Blocking functions for worker threads, which
may run beside each other; a segment that is still written to is seen as far as it got.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from engine.coding import decode
from engine.errors import FragmentCorrupt, StoreError, UnknownFormat
from engine.frames import read_header, verify_frame
from engine.interfaces import Node
from engine.segments.format import (
    FILE_HEADER_BYTES,
    FRAMES,
    STRIPE_HEADER_BYTES,
    DirectoryEntry,
    StripeHeader,
    decode_stripe_header,
    fragment_name,
    verify_payload,
)
from engine.segments.sweep import search_stripe
from engine.types import Segment, SegmentLocation, SegmentState

logger = logging.getLogger("objfs.segments")


class Stripe(Struct):
    """A stripe as found: `good` holds the verified payloads by fragment index."""

    offset: int
    header: StripeHeader
    good: dict[int, bytes]

    @property
    def end(self) -> int:
        return self.offset + STRIPE_HEADER_BYTES + self.header.fragment_length


class StripeMark(Struct):
    """What is kept of a stripe once its payloads are out of memory."""

    offset: int
    header: StripeHeader
    good: frozenset[int]
    recoverable: bool

    @property
    def end(self) -> int:
        return self.offset + STRIPE_HEADER_BYTES + self.header.fragment_length


def present(segment: Segment, nodes: Mapping[str, Node]) -> dict[int, Node]:
    there: dict[int, Node] = {}
    for index, node_id in enumerate(segment.node_ids):
        node = nodes.get(node_id)
        if node is None:
            continue
        try:
            node.check()
        except StoreError as error:
            logger.warning("node %s is left out: %s", node_id, error)
        else:
            there[index] = node
    return there


def survey(segment: Segment, there: Mapping[int, Node]) -> tuple[list[StripeMark], list[DirectoryEntry]]:
    """Every stripe of frames, and the chunk directory the recoverable ones amount to."""
    marks: list[StripeMark] = []
    entries: list[DirectoryEntry] = []
    for stripe in _scan(segment, there):
        recoverable = len(stripe.good) >= segment.k
        if recoverable:
            entries += _frames_of(segment, stripe)
        else:
            logger.error(
                "segment %016x stripe %d at %d has %d good fragments of the %d needed",
                segment.segment_id,
                stripe.header.number,
                stripe.offset,
                len(stripe.good),
                segment.k,
            )
        marks.append(StripeMark(stripe.offset, stripe.header, frozenset(stripe.good), recoverable))
    return marks, entries


def without_torn(marks: Sequence[StripeMark], named_to: int) -> list[StripeMark]:
    """Up to the first stripe behind `named_to` that is torn, or of which no header is left."""
    end = FILE_HEADER_BYTES
    for position, mark in enumerate(marks):
        if mark.offset > named_to and (not mark.recoverable or mark.offset > end):
            return list(marks[:position])
        end = mark.end
    return list(marks)


def _scan(segment: Segment, there: Mapping[int, Node]) -> Iterator[Stripe]:
    """Stripes of frames from the start of the files to the last one of which any fragment
    can be found. Where no header stands at the place the next stripe should start, the
    files are searched for the next one."""
    sealed = segment.state is SegmentState.SEALED
    offset: int | None = FILE_HEADER_BYTES
    while offset is not None:
        stripe = stripe_at(segment, offset, there)
        if stripe is None:
            offset = _search(segment, offset, there)
        elif stripe.header.kind != FRAMES or (sealed and stripe.header.number >= segment.stripes):
            # Behind the end that sealing decided, only a node that was away then has more.
            return
        else:
            yield stripe
            offset = stripe.end


def stripe_at(segment: Segment, offset: int, there: Mapping[int, Node]) -> Stripe | None:
    headers: dict[int, StripeHeader] = {}
    for index, node in there.items():
        try:
            content = node.read(fragment_name(segment.segment_id, index), offset, STRIPE_HEADER_BYTES)
            headers[index] = decode_stripe_header(content, segment.segment_id, index)
        except UnknownFormat:
            raise
        except StoreError:
            continue  # this fragment is not good, which is what is being found out
    if not headers:
        return None
    found = _agreed(list(headers.values()))
    good: dict[int, bytes] = {}
    for index, header in headers.items():
        if _shape(header) == _shape(found):
            payload = read_payload(segment, index, there[index], offset, header)
            if payload is not None:
                good[index] = payload
    return Stripe(offset, found, good)


def _shape(header: StripeHeader) -> tuple[int, int, int, int]:
    return header.kind, header.number, header.fragment_length, header.data_length


def _agreed(headers: Sequence[StripeHeader]) -> StripeHeader:
    """Files disagree where one missed a recovery. A directory says that the end of the
    frames was decided before; else the most files are right."""
    shapes = [_shape(header) for header in headers]
    return max(headers, key=lambda header: (header.kind != FRAMES, shapes.count(_shape(header))))


def read_payload(segment: Segment, index: int, node: Node, offset: int, header: StripeHeader) -> bytes | None:
    try:
        name = fragment_name(segment.segment_id, index)
        payload = node.read(name, offset + STRIPE_HEADER_BYTES, header.fragment_length)
    except StoreError:
        return None
    return payload if verify_payload(header, payload) else None


def _search(segment: Segment, offset: int, there: Mapping[int, Node]) -> int | None:
    """The first offset beyond `offset` at which some file has a valid stripe header."""
    found = [
        position
        for index, node in there.items()
        if (position := search_stripe(segment, index, node, offset + 1)) is not None
    ]
    return min(found, default=None)


def _frames_of(segment: Segment, stripe: Stripe) -> Iterator[DirectoryEntry]:
    header = stripe.header
    data = memoryview(decode(stripe.good, segment.k, segment.m, segment.code))[: header.data_length]
    start = 0
    while start < len(data):
        try:
            frame = read_header(data[start:])
            verify_frame(data[start : start + frame.frame_length])
        except FragmentCorrupt as error:
            # It was damaged before it was coded. The stripe is kept as it is; what cannot
            # be read stays out of the directory.
            logger.error("segment %016x stripe %d: %s", segment.segment_id, header.number, error)
            return
        location = SegmentLocation(segment.segment_id, stripe.offset, header.fragment_length, start, frame.frame_length)
        yield DirectoryEntry(frame.chunk_id, frame.scope, location)
        start += frame.frame_length
