"""Reading frames and stripes from fragment files; decoding where fragments fail.

Blocking functions for worker threads. The healthy path reads only the bytes of the data
fragments a frame spans and lets the frame's own checksum judge them. Only when that fails
is the whole stripe read, fragment by fragment, each verified by its stripe header, and
decoded from any k good ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from engine.coding import decode
from engine.errors import FragmentCorrupt, FragmentMissing, NodeUnavailable, StoreError, Unreadable
from engine.frames import verify_frame
from engine.interfaces import Node
from engine.segments.format import (
    STRIPE_HEADER_BYTES,
    StripeHeader,
    decode_stripe_header,
    fragment_name,
    verify_payload,
)
from engine.types import Segment, SegmentLocation

# segment id, fragment index, stripe offset, what is wrong. Only for nodes that answered:
# a fragment that is missing or damaged there needs repair.
ReportRot = Callable[[int, int, int, str], None]

SPAN_WASTE_MAX = 2  # frames of one stripe are read in one go if that reads at most twice their bytes


class Fragment(Struct, frozen=True):
    """A verified fragment of a stripe."""

    header: StripeHeader
    payload: bytes


def read_frames(
    locations: Sequence[SegmentLocation],
    segments: Mapping[int, Segment],
    nodes: Mapping[str, Node],
    report_rot: ReportRot,
    chunk_ids: Sequence[bytes] | None = None,
) -> list[bytes]:
    """The verified frames, in order, of `chunk_ids` if given: a whole frame of another
    chunk, from a file that stands in another's place, is read around like a damaged one.
    Raises Unreadable."""
    frames: dict[int, bytes] = {}
    by_stripe: dict[tuple[int, int], list[int]] = {}
    for position, location in enumerate(locations):
        by_stripe.setdefault((location.segment_id, location.stripe_offset), []).append(position)
    for (segment_id, _), positions in by_stripe.items():
        wanted = [locations[position] for position in positions]
        named = None if chunk_ids is None else [chunk_ids[position] for position in positions]
        found = _read_stripe_frames(segments[segment_id], wanted, named, nodes, report_rot)
        frames.update(zip(positions, found, strict=True))
    return [frames[position] for position in range(len(locations))]


def read_warm_frames(
    locations: Sequence[SegmentLocation],
    segments: Mapping[int, Segment],
    nodes: Mapping[str, Node],
    chunk_ids: Sequence[bytes] | None = None,
) -> list[bytes] | None:
    """read_frames() for the event loop: None unless all of it is in memory and good."""
    frames: list[bytes] = []
    try:
        for location in locations:
            end = location.offset + location.length
            frame = _read_range(segments[location.segment_id], location, location.offset, end, nodes, _warm)
            frames.append(frame)
        _verify(frames, chunk_ids)
    except StoreError:
        return None  # read_frames() finds out what is wrong
    return frames


def read_fragment(segment: Segment, index: int, offset: int, length: int, node: Node) -> Fragment:
    """One verified fragment of the stripe at `offset`. Raises the node's errors and
    FragmentCorrupt, UnknownFormat."""
    content = node.read(fragment_name(segment.segment_id, index), offset, STRIPE_HEADER_BYTES + length)
    header = decode_stripe_header(content, segment.segment_id, index)
    payload = content[STRIPE_HEADER_BYTES:]
    if header.fragment_length != length or not verify_payload(header, payload):
        raise FragmentCorrupt(
            f"fragment {index} of segment {segment.segment_id:016x} is damaged at {offset} on node {node.path}"
        )
    return Fragment(header, payload)


def read_stripe(
    segment: Segment,
    offset: int,
    length: int,
    nodes: Mapping[str, Node],
    report_rot: ReportRot,
) -> bytes:
    """The stripe's data with its padding, from the first k good fragments. Raises
    Unreadable."""
    good: dict[int, bytes] = {}
    problems: list[str] = []
    for index, node_id in enumerate(segment.node_ids):
        node = nodes.get(node_id)
        if node is None:
            problems.append(f"node {node_id} is not there")
            continue
        try:
            good[index] = read_fragment(segment, index, offset, length, node).payload
        except StoreError as error:
            problems.append(str(error))
            if _is_of_the_file(error, node):
                report_rot(segment.segment_id, index, offset, str(error))
        if len(good) == segment.k:
            return decode(good, segment.k, segment.m, segment.code)
    raise Unreadable(
        f"segment {segment.segment_id:016x} has {len(good)} good fragments of the {segment.k} needed at {offset}: "
        + "; ".join(problems)
    )


def _is_of_the_file(error: StoreError, node: Node) -> bool:
    """Whether the file is damaged, on a node that is there: a bad sector is, too."""
    if isinstance(error, NodeUnavailable):
        try:
            node.check()
        except StoreError:
            return False
        return True
    return isinstance(error, FragmentCorrupt | FragmentMissing)


def _read_stripe_frames(
    segment: Segment,
    wanted: Sequence[SegmentLocation],
    chunk_ids: Sequence[bytes] | None,
    nodes: Mapping[str, Node],
    report_rot: ReportRot,
) -> list[bytes]:
    try:
        frames = _read_healthy(segment, wanted, nodes)
        _verify(frames, chunk_ids)
        return frames
    except StoreError:
        # Whatever it was, the other fragments may make up for it; what cannot be made up
        # for is raised from here.
        first = wanted[0]
        data = read_stripe(segment, first.stripe_offset, first.fragment_length, nodes, report_rot)
    frames = [data[location.offset : location.offset + location.length] for location in wanted]
    try:
        _verify(frames, chunk_ids)
    except FragmentCorrupt as error:
        raise Unreadable(
            f"segment {segment.segment_id:016x} is consistent at {wanted[0].stripe_offset}, but {error}"
        ) from error
    return frames


def _read_healthy(segment: Segment, wanted: Sequence[SegmentLocation], nodes: Mapping[str, Node]) -> list[bytes]:
    start = min(location.offset for location in wanted)
    end = max(location.offset + location.length for location in wanted)
    if end - start <= SPAN_WASTE_MAX * sum(location.length for location in wanted):
        span = _read_range(segment, wanted[0], start, end, nodes)
        frames = [span[location.offset - start : location.offset - start + location.length] for location in wanted]
    else:
        frames = [
            _read_range(segment, location, location.offset, location.offset + location.length, nodes)
            for location in wanted
        ]
    return frames


def _verify(frames: Sequence[bytes], chunk_ids: Sequence[bytes] | None) -> None:
    for position, frame in enumerate(frames):
        found = verify_frame(frame)
        if chunk_ids is not None and found.chunk_id != chunk_ids[position]:
            raise FragmentCorrupt(f"found frame {found.chunk_id.hex()} in the place of {chunk_ids[position].hex()}")


_Read = Callable[[Node, str, int, int], bytes]


def _cold(node: Node, name: str, offset: int, length: int) -> bytes:
    return node.read(name, offset, length)


def _warm(node: Node, name: str, offset: int, length: int) -> bytes:
    content = node.read_warm(name, offset, length)
    if content is None:
        raise FragmentMissing(f"{name} is not in memory")
    return content


def _read_range(
    segment: Segment,
    location: SegmentLocation,
    start: int,
    end: int,
    nodes: Mapping[str, Node],
    read: _Read = _cold,
) -> bytes:
    """Bytes [start, end) of the stripe's data, straight from the data fragments."""
    length = location.fragment_length
    pieces: list[bytes] = []
    for index in range(start // length, -(-end // length)):
        first, last = max(start - index * length, 0), min(end - index * length, length)
        node = nodes.get(segment.node_ids[index])
        if node is None:
            raise FragmentMissing(f"node {segment.node_ids[index]} is not there")
        name = fragment_name(segment.segment_id, index)
        pieces.append(read(node, name, location.stripe_offset + STRIPE_HEADER_BYTES + first, last - first))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
