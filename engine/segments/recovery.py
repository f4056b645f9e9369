"""Recovery and repair of segments: sealing what a gone writer left, rebuilding fragments.

Blocking functions for worker threads; one segment is worked on by one caller at a time.
They trust nothing but checksums: a stripe is what its headers say, wherever at least k of
its fragments verify. What was acknowledged was whole on all nodes of the segment, so a
stripe short of k good fragments behind the last recoverable one was never acknowledged
and is cut; one that stands before recoverable stripes is kept as it is.

A fragment file is never changed where it already holds anything good: a torn tail is cut
and appended to, anything else is written anew beside it and renamed over it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from engine.changes import SealSegment
from engine.coding import LIBRARY, decode, encode
from engine.crash_sites import CrashSite, reached
from engine.errors import (
    NodeFull,
    NodeUnavailable,
    StoreError,
    UnknownFormat,
    Unreadable,
)
from engine.interfaces import Buffer, Node
from engine.segments.checking import inspect_file
from engine.segments.format import (
    FILE_HEADER_BYTES,
    FOOTER_BYTES,
    STRIPE_HEADER_BYTES,
    DirectoryEntry,
    FileHeader,
    Footer,
    decode_directory,
    decode_file_header,
    decode_footer,
    decode_stripe_header,
    encode_file_header,
    encode_stripe_header,
    fragment_name,
)
from engine.segments.rebuild import SCRATCH, Target, delete_if_there, is_there, rebuild_now
from engine.segments.survey import StripeMark, present, read_payload, stripe_at, survey, without_torn
from engine.segments.writer import encode_tail
from engine.types import Segment, SegmentState

logger = logging.getLogger("objfs.segments")


# -- what callers use ----------------------------------------------------------


def recover_segment(
    segment: Segment,
    nodes: Mapping[str, Node],
    store_id: str,
    named_to: int | None = None,
    failed: Collection[str] = (),
) -> SealSegment:
    """Seal a segment whose writer is gone. Every fragment on a node that is there comes
    back to its full length; the others are named in `fragments_lost`. `named_to`: where
    the last stripe begins that anything names (-1: none does), if all that was committed is
    known; behind it a stripe that is torn ends the segment, even if later ones are whole (power
    loss takes unsynced writes in any order). On nodes that `failed` the files are written
    anew. Raises Unreadable when so many nodes are missing that acknowledged stripes could be
    taken for torn."""
    there = present(segment, nodes)
    if len(there) < segment.k:
        missing = [node_id for index, node_id in enumerate(segment.node_ids) if index not in there]
        raise Unreadable(
            f"segment {segment.segment_id:016x} needs {segment.k} of its nodes to be recovered, "
            f"{len(there)} are there; missing: {', '.join(missing)}"
        )
    marks, entries = survey(segment, there)
    if named_to is not None:
        marks = without_torn(marks, named_to)
    recoverable = [position for position, mark in enumerate(marks) if mark.recoverable]
    marks = marks[: recoverable[-1] + 1] if recoverable else []
    end = marks[-1].end if marks else FILE_HEADER_BYTES
    stripes = marks[-1].header.number + 1 if marks else 0
    entries = [entry for entry in entries if entry.location.stripe_offset < end]
    tail, size = encode_tail(segment, entries, stripes, end)
    lost = set(range(len(segment.node_ids))) - set(there)
    reached(CrashSite.RECOVERY_SURVEYED)
    for index, node in there.items():
        try:
            complete = _rewrite if segment.node_ids[index] in failed else _complete
            complete(segment, index, node, there, store_id, marks, tail[index])
        except UnknownFormat as error:
            raise UnknownFormat(f"{node.path}/{fragment_name(segment.segment_id, index)}: {error}") from error
        except StoreError as error:
            logger.warning("fragment %d of segment %016x stays short: %s", index, segment.segment_id, error)
            lost.add(index)
    return SealSegment(segment.segment_id, size, sorted(lost), stripes, frames_end=end)


def missing_fragments(segment: Segment, nodes: Mapping[str, Node]) -> list[int]:
    """Indexes of fragment files that are absent, short, unsealed or on a node that is not
    there. Looks at size, header and footer only: a cheap check, not a scrub."""
    return [
        index
        for index, node_id in enumerate(segment.node_ids)
        if node_id not in nodes or not looks_whole(segment, index, nodes[node_id])
    ]


def rebuild_fragments(segment: Segment, missing_indexes: Sequence[int], nodes: Mapping[str, Node]) -> None:
    """Write the fragment files of `missing_indexes` anew from the others, on the nodes the
    segment names. What stood there and was damaged is quarantined. Raises Unreadable, and
    the target nodes' errors."""
    there = present(segment, nodes)
    absent = [segment.node_ids[index] for index in missing_indexes if index not in there]
    if absent:
        raise NodeUnavailable(f"node {', '.join(absent)} is not there to take a fragment")
    store_id = _store_id(segment, there)
    sources = {index: node for index, node in there.items() if index not in missing_indexes}
    if len(sources) < segment.k:
        raise Unreadable(
            f"segment {segment.segment_id:016x} has {len(sources)} fragments to rebuild from and needs {segment.k}; "
            "bring back its other nodes"
        )
    targets = []
    for index in missing_indexes:
        state = inspect_file(segment, index, there[index], store_id)
        if not state.whole:
            bad = state.bad_stretches if state.exists else None
            targets.append(Target(index, there[index], state.aside, bad_stretches=bad))
    if targets:
        rebuild_now(segment, targets, sources, store_id)


def read_directory(segment: Segment, nodes: Mapping[str, Node]) -> list[DirectoryEntry] | None:
    """The chunk directory of a sealed segment, or None where it can't be read (the frames
    themselves name their chunks too)."""
    there = present(segment, nodes)
    footer = next((found for index, node in there.items() if (found := _footer(segment, index, node))), None)
    if footer is None:
        return None
    entries: list[DirectoryEntry] = []
    offset = footer.directory_offset
    for _ in range(footer.directory_stripes):
        stripe = stripe_at(segment, offset, there)
        if stripe is None or len(stripe.good) < segment.k:
            return None
        data = decode(stripe.good, segment.k, segment.m, segment.code)
        entries += decode_directory(segment.segment_id, data[: stripe.header.data_length])
        offset = stripe.end
    return entries


# -- writing fragments ---------------------------------------------------------


def _complete(
    segment: Segment,
    index: int,
    node: Node,
    there: Mapping[int, Node],
    store_id: str,
    marks: Sequence[StripeMark],
    tail: list[Buffer],
) -> None:
    """Bring one file of an open segment to its full, sealed length."""
    name = fragment_name(segment.segment_id, index)
    if not _has_header(segment, index, node):
        _rewrite(segment, index, node, there, store_id, marks, tail)
        return
    good = 0
    while good < len(marks) and index in marks[good].good:
        good += 1
    if any(index in mark.good for mark in marks[good:]):
        _rewrite(segment, index, node, there, store_id, marks, tail)
        return
    end = marks[good - 1].end if good else FILE_HEADER_BYTES
    node.truncate(name, end)
    reached(CrashSite.RECOVERY_CUT)
    end = _append_stripes(segment, index, there, marks[good:], node, name, end)
    node.append(name, end, tail)
    node.sync(name)
    reached(CrashSite.RECOVERY_COMPLETED)


def _rewrite(
    segment: Segment,
    index: int,
    node: Node,
    there: Mapping[int, Node],
    store_id: str,
    marks: Sequence[StripeMark],
    tail: list[Buffer],
) -> None:
    """Write the whole file anew and put it in its place. After a sync that failed no other
    way is safe: the kernel may have dropped pages that it still shows."""
    name = fragment_name(segment.segment_id, index)
    scratch = name + SCRATCH
    delete_if_there(node, scratch)  # left by an earlier attempt
    try:
        header = FileHeader(store_id, segment.segment_id, index, segment.k, segment.m, segment.code, LIBRARY)
        node.create(scratch)
        node.append(scratch, 0, [encode_file_header(header)])
        end = _append_stripes(segment, index, there, marks, node, scratch, FILE_HEADER_BYTES)
        node.append(scratch, end, tail)
        node.sync(scratch)
        reached(CrashSite.REBUILD_WRITTEN)
    except NodeFull:
        delete_if_there(node, scratch)
        raise
    if is_there(node, name) and _damaged(segment, index, node, marks):
        node.quarantine(name, f"fragment {index} of segment {segment.segment_id:016x} was damaged and is rebuilt")
        reached(CrashSite.REBUILD_QUARANTINED)
    node.rename(scratch, name)
    reached(CrashSite.REBUILD_RENAMED)


def _append_stripes(
    segment: Segment,
    index: int,
    there: Mapping[int, Node],
    marks: Sequence[StripeMark],
    node: Node,
    name: str,
    end: int,
) -> int:
    for mark in marks:
        if mark.offset > end:
            # Between stripes that survived lies one nothing is left of.
            node.append(name, end, [bytes(mark.offset - end)])
        if mark.recoverable:
            payload = _payload_of(segment, index, there, mark)
            header = encode_stripe_header(
                segment.segment_id, index, mark.header.number, payload, mark.header.data_length, mark.header.kind
            )
            node.append(name, mark.offset, [header, payload])
        else:
            node.append(name, mark.offset, [bytes(mark.end - mark.offset)])
        end = mark.end
    return end


def _payload_of(segment: Segment, index: int, there: Mapping[int, Node], mark: StripeMark) -> Buffer:
    """The fragment of one stripe, read from its file if good there, else from the others."""
    good: dict[int, bytes] = {}
    for source in sorted(mark.good, key=lambda source: source != index):
        payload = _read_verified(segment, source, there[source], mark)
        if payload is None:
            continue
        if source == index:
            return payload
        good[source] = payload
        if len(good) == segment.k:
            data = decode(good, segment.k, segment.m, segment.code)
            return encode(data, segment.k, segment.m, segment.code)[index]
    raise Unreadable(
        f"segment {segment.segment_id:016x} stripe {mark.header.number} has lost fragments while it was repaired"
    )


def _read_verified(segment: Segment, index: int, node: Node, mark: StripeMark) -> bytes | None:
    try:
        content = node.read(fragment_name(segment.segment_id, index), mark.offset, STRIPE_HEADER_BYTES)
        header = decode_stripe_header(content, segment.segment_id, index)
    except StoreError:
        return None
    return read_payload(segment, index, node, mark.offset, header)


# -- looking at files ----------------------------------------------------------


def _damaged(segment: Segment, index: int, node: Node, marks: Sequence[StripeMark]) -> bool:
    """Whether the file is more than short: something before its end does not verify."""
    size = node.size(fragment_name(segment.segment_id, index))
    if size < FILE_HEADER_BYTES:
        return False
    return not _has_header(segment, index, node) or any(index not in mark.good for mark in marks if mark.end <= size)


def _has_header(segment: Segment, index: int, node: Node) -> bool:
    def read() -> bool:
        content = node.read(fragment_name(segment.segment_id, index), 0, FILE_HEADER_BYTES)
        header = decode_file_header(content)
        return (header.segment_id, header.index) == (segment.segment_id, index)

    return _holds(read)


def looks_whole(segment: Segment, index: int, node: Node) -> bool:
    def read() -> bool:
        node.check()
        if not _has_header(segment, index, node):
            return False
        if segment.state is SegmentState.OPEN:
            return True
        if node.size(fragment_name(segment.segment_id, index)) != segment.size:
            return False
        footer = _footer(segment, index, node)
        return footer is not None and footer.stripes == segment.stripes

    return _holds(read)


def _footer(segment: Segment, index: int, node: Node) -> Footer | None:
    try:
        name = fragment_name(segment.segment_id, index)
        content = node.read(name, max(segment.size - FOOTER_BYTES, 0), FOOTER_BYTES)
        return decode_footer(content, segment.segment_id, index)
    except UnknownFormat:
        raise
    except StoreError:
        return None


def _holds(read: Callable[[], bool]) -> bool:
    try:
        return read()
    except UnknownFormat:
        raise
    except StoreError:
        return False


def _store_id(segment: Segment, there: Mapping[int, Node]) -> str:
    """As the other fragments have it."""
    for index, node in there.items():
        if _has_header(segment, index, node):
            content = node.read(fragment_name(segment.segment_id, index), 0, FILE_HEADER_BYTES)
            return decode_file_header(content).store_id
    return ""
