"""A segment written by format 1 must stay readable, and writing must still give its bytes.

`golden/segment-v1.<index>` are the three fragment files of one 2+1 segment; `make_golden`
made them. They are never made again: a new format gets new files beside them.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from engine.changes import OpenSegment, SealSegment
from engine.frames import decode_frame, encode_frame, read_header
from engine.interfaces import Node
from engine.nodes.memory import MemoryNode
from engine.segments.format import FILE_HEADER_BYTES, decode_file_header, fragment_name
from engine.segments.reader import read_frames
from engine.segments.recovery import missing_fragments, read_directory, rebuild_fragments
from engine.segments.writer import PendingStripe, SegmentWriter
from engine.types import Segment, SegmentState

GOLDEN = Path(__file__).with_name("golden")
SEGMENT_ID = 0x0123456789ABCDEF
OPENED = OpenSegment(SEGMENT_ID, 2, 1, ["n0", "n1", "n2"], "golden")
PLAINS = [b"", b"a", b"compressible " * 100, bytes(hashlib.shake_256(b"noise").digest(5000)), b"the last stripe"]
STRIPES = [4, 1]  # frames of each


def write_segment(frames: list[bytes]) -> tuple[dict[str, Node], SealSegment]:
    nodes: dict[str, Node] = {node_id: MemoryNode(node_id) for node_id in OPENED.node_ids}
    writer = SegmentWriter(OPENED, list(nodes.values()), "5" * 32)
    writer.create()
    waiting = iter(frames)
    for count in STRIPES:
        writer.append(PendingStripe(list(itertools.islice(waiting, count))))
    covered = writer.begin_sync()
    for index in range(3):
        writer.sync_fragment(index)
    writer.finish_sync(covered)
    return nodes, writer.seal_synced()


def make_golden() -> None:
    nodes, _ = write_segment([encode_frame(hashlib.sha256(plain).digest(), plain) for plain in PLAINS])
    GOLDEN.mkdir(exist_ok=True)
    for index, node in enumerate(nodes.values()):
        name = fragment_name(SEGMENT_ID, index)
        (GOLDEN / f"segment-v1.{index}").write_bytes(node.read(name, 0, node.size(name)))


def golden_segment() -> tuple[Segment, dict[str, Node]]:
    nodes: dict[str, Node] = {}
    for index, node_id in enumerate(OPENED.node_ids):
        content = (GOLDEN / f"segment-v1.{index}").read_bytes()
        nodes[node_id] = MemoryNode(node_id)
        nodes[node_id].write_whole(fragment_name(SEGMENT_ID, index), content)
    segment = Segment(
        SEGMENT_ID, 2, 1, OPENED.node_ids, state=SegmentState.SEALED, size=len(content), stripes=len(STRIPES)
    )
    return segment, nodes


def read_all(segment: Segment, nodes: dict[str, Node]) -> list[bytes]:
    entries = read_directory(segment, nodes)
    assert entries is not None
    frames = read_frames([entry.location for entry in entries], {SEGMENT_ID: segment}, nodes, lambda *_: None)
    assert [entry.chunk_id for entry in entries] == [hashlib.sha256(plain).digest() for plain in PLAINS]
    assert [decode_frame(frame, hashlib.sha256(plain).digest()) for frame, plain in zip(frames, PLAINS, strict=True)]
    return frames


def test_format_1_is_readable_from_any_two_fragments() -> None:
    segment, nodes = golden_segment()
    assert missing_fragments(segment, nodes) == []
    frames = read_all(segment, nodes)
    assert [read_header(frame).codec for frame in frames] == [0, 0, 1, 0, 0]
    for lost in nodes:
        assert read_all(segment, {name: node for name, node in nodes.items() if name != lost}) == frames


def test_format_1_is_written_as_it_was() -> None:
    segment, golden = golden_segment()
    # From the frames as stored: another release of zstd may compress otherwise.
    nodes, sealed = write_segment(read_all(segment, golden))
    assert (sealed.size, sealed.stripes, sealed.fragments_lost) == (segment.size, segment.stripes, [])
    for index, node_id in enumerate(OPENED.node_ids):
        name = fragment_name(SEGMENT_ID, index)
        ours, theirs = (node.read(name, 0, segment.size) for node in (nodes[node_id], golden[node_id]))
        assert ours[FILE_HEADER_BYTES:] == theirs[FILE_HEADER_BYTES:]
        found = decode_file_header(theirs)
        assert (found.store_id, found.segment_id, found.index) == ("5" * 32, SEGMENT_ID, index)
        assert (found.k, found.m, found.code, found.library) == (2, 1, "isa_l_rs_cauchy", "pyeclib 1.8.0")


def test_a_lost_fragment_of_format_1_is_rebuilt_byte_for_byte() -> None:
    segment, nodes = golden_segment()
    for index, node_id in enumerate(OPENED.node_ids):
        name = fragment_name(SEGMENT_ID, index)
        before = nodes[node_id].read(name, 0, segment.size)
        nodes[node_id].delete(name)
        rebuild_fragments(segment, [index], nodes)
        assert nodes[node_id].read(name, FILE_HEADER_BYTES, segment.size) == before[FILE_HEADER_BYTES:]
