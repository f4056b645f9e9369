"""Checking a sealed segment: every byte of every fragment file, down to the chunks.

Fragments against their checksums, parity against data, every frame decoded and hashed
against its chunk id, the chunk directory against the frames. Blocking, in steps of one
window, for one worker thread at a time. Changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from engine.errors import FragmentCorrupt, NodeUnavailable, StoreError
from engine.frames import CODEC_NONE, decode_frame, read_header, verify_frame
from engine.interfaces import Buffer, Node
from engine.limits import FRAME_HEADER_BYTES
from engine.recoding import recompute
from engine.segments.format import (
    DIRECTORY,
    FILE_HEADER_BYTES,
    FRAMES,
    DirectoryEntry,
    decode_directory,
    decode_file_header,
    fragment_name,
)
from engine.segments.sweep import Sweep, SweptStripe
from engine.types import Segment, SegmentLocation

TRIES_MAX = 200  # ways to leave fragments out, when checksums hold but chunks do not


class UnreadableStripe(Struct, frozen=True):
    """What lies in [offset, end) of the fragment files cannot be read now."""

    offset: int
    end: int
    reason: str


class SegmentCheck:
    """`nodes` by fragment index: the files that should be whole."""

    def __init__(self, segment: Segment, nodes: Mapping[int, Node], store_id: str) -> None:
        self.segment = segment
        self.sweep = Sweep(segment, nodes, store_id)
        self.unreadable: list[UnreadableStripe] = []
        self.found: list[DirectoryEntry] = []  # of every frame that hashes to its chunk id
        self.problems: list[str] = []
        self.data_bytes = 0
        self._directory: list[DirectoryEntry] = []

    @property
    def damaged(self) -> dict[int, str]:
        return self.sweep.damaged

    @property
    def done(self) -> bool:
        return self.sweep.done

    def begin(self) -> None:
        self.sweep.check_ends()

    def step(self) -> None:
        """Read and check the next window."""
        for stripe in self.sweep.next_window():
            self._check(stripe)

    def finish(self) -> None:
        """What only shows once everything was read."""
        if not self.unreadable and self._directory != self.found:
            self.problems.append("its chunk directory does not name the frames in it")
        footer = self.sweep.footer
        if footer is not None and not self.unreadable and footer.chunks != len(self.found):
            self.problems.append(f"its footer counts {footer.chunks} chunks, {len(self.found)} are in it")

    # -- one stripe ------------------------------------------------------------

    def _check(self, stripe: SweptStripe) -> None:
        header, k = stripe.header, self.segment.k
        if header is None or len(stripe.good) < k:
            reasons = "; ".join(f"fragment {index}: {why}" for index, why in sorted(stripe.bad.items()))
            absent = "".join(f"; fragment {index}: {why}" for index, why in sorted(self.sweep.absent.items()))
            self.unreadable.append(
                UnreadableStripe(
                    stripe.offset,
                    stripe.end,
                    f"{len(stripe.good)} good fragments of the {k} needed ({reasons}{absent})",
                )
            )
            return
        data, odd = self._put_together(stripe.good)
        content = memoryview(data)[: header.data_length]
        self.data_bytes += header.data_length
        if header.kind == DIRECTORY:
            self._directory += decode_directory(self.segment.segment_id, content)
            self._mark(stripe, odd, "parity does not agree with the data")
            return
        try:
            self.found += list(check_frames(self.segment.segment_id, stripe.offset, header.fragment_length, content))
        except StoreError as error:
            self._find_liar(stripe, str(error))
        else:
            self._mark(stripe, odd, "parity does not agree with the data")

    def _put_together(self, good: Mapping[int, Buffer]) -> tuple[bytes, list[int]]:
        """The stripe's data with its padding, from the first k of `good`, and which of the
        others do not agree with them."""
        k, m, code = self.segment.k, self.segment.m, self.segment.code
        sources = sorted(good)[:k]
        others = [index for index in good if index not in sources]
        missing = [index for index in range(k) if index not in sources]
        made = recompute({index: good[index] for index in sources}, sorted({*missing, *others}), k, m, code)
        data = b"".join([good[index] if index in sources else made[index] for index in range(k)])
        return data, [index for index in others if not _same(made[index], good[index])]

    def _find_liar(self, stripe: SweptStripe, reason: str) -> None:
        """All checksums hold, but the frames do not: some fragments were written wrong, or
        the chunk was damaged before it was coded. Without which of them do frames hold?"""
        assert stripe.header is not None
        spare = len(stripe.good) - self.segment.k
        ways = (ways for out in range(1, spare + 1) for ways in itertools.combinations(sorted(stripe.good), out))
        for left_out in itertools.islice(ways, TRIES_MAX):
            kept = {index: payload for index, payload in stripe.good.items() if index not in left_out}
            data, odd = self._put_together(kept)
            content = memoryview(data)[: stripe.header.data_length]
            try:
                frames = list(
                    check_frames(self.segment.segment_id, stripe.offset, stripe.header.fragment_length, content)
                )
            except StoreError:
                continue
            if not odd:
                self.found += frames
                self._mark(stripe, left_out, "the payload is not what was coded, though its checksum holds")
                return
        self.unreadable.append(UnreadableStripe(stripe.offset, stripe.end, f"all fragments agree, but {reason}"))

    def _mark(self, stripe: SweptStripe, indexes: Iterable[int], reason: str) -> None:
        for index in indexes:
            self.damaged.setdefault(index, f"at {stripe.offset}: {reason}")


def _same(one: Buffer, other: Buffer) -> bool:
    """As memcmp says; memoryviews alone are compared item by item."""
    return (one if isinstance(one, bytearray) else bytearray(one)) == other


def check_frames(
    segment_id: int, stripe_offset: int, fragment_length: int, data: memoryview, *, hashing: bool = True
) -> Iterator[DirectoryEntry]:
    """Every frame of a stripe's data, verified, and hashed against its chunk id. Raises
    FragmentCorrupt, UnknownFormat at the first that is not what it says."""
    start = 0
    while start < len(data):
        length = read_header(data[start:]).frame_length
        frame = data[start : start + length]
        header = verify_frame(frame)
        if hashing:
            plain: Buffer = frame[FRAME_HEADER_BYTES:]
            if header.codec != CODEC_NONE or len(plain) != header.plain_length:
                plain = decode_frame(frame, header.chunk_id)
            if hashlib.sha256(plain).digest() != header.chunk_id:
                raise FragmentCorrupt(f"chunk {header.chunk_id.hex()} does not hash to its name")
        location = SegmentLocation(segment_id, stripe_offset, fragment_length, start, length)
        yield DirectoryEntry(header.chunk_id, header.scope, location)
        start += length


def disagreement(segment: Segment, index: int, nodes: Mapping[int, Node], store_id: str) -> str | None:
    """Why one fragment file, though its checksums hold, is not what the others (with it in
    `nodes`) code to; None if it is. Reads all of them."""
    check = SegmentCheck(segment, nodes, store_id)
    check.begin()
    while not check.done:
        check.step()
    return check.damaged.get(index)


class FileState(Struct, frozen=True):
    """One fragment file as found. `aside`: why it has to be kept when it is replaced. One
    that is absent, or was never finished because its node was away, is merely replaced."""

    whole: bool
    exists: bool = True
    aside: str | None = None
    bad_stretches: int = 0  # stripes, or runs of them, that are not good in it


def inspect_file(segment: Segment, index: int, node: Node, store_id: str) -> FileState:
    """Read all of one file. Raises NodeUnavailable, UnknownFormat."""
    node.check()
    sweep = Sweep(segment, {index: node}, store_id)
    sweep.check_ends()
    frames, bad = 0, list[SweptStripe]()
    while index in sweep.nodes and not sweep.done:
        for stripe in sweep.next_window():
            if index in stripe.good:
                frames += stripe.header is not None and stripe.header.kind == FRAMES
            else:
                bad.append(stripe)
    if index in sweep.absent:
        raise NodeUnavailable(sweep.absent[index])
    reason = sweep.damaged.get(index)
    if reason is None:
        return FileState(whole=True)
    if index not in sweep.nodes:
        return FileState(whole=False, exists=False)
    size = node.size(fragment_name(segment.segment_id, index))
    if (
        size != segment.size
        and sweep.footer is None
        and (size < FILE_HEADER_BYTES or _has_header(segment, index, node))
    ) and (not bad or bad[0].end > size or frames == segment.stripes):
        reason = None
    return FileState(whole=False, aside=reason, bad_stretches=len(bad))


def _has_header(segment: Segment, index: int, node: Node) -> bool:
    try:
        header = decode_file_header(node.read(fragment_name(segment.segment_id, index), 0, FILE_HEADER_BYTES))
    except StoreError:
        return False
    return (header.segment_id, header.index) == (segment.segment_id, index)
