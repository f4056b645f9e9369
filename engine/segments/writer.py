"""SegmentWriter: stripes of one open segment, onto its nodes.

Blocking; its methods are called from worker threads. One lock orders everything that
changes the segment; fragment syncs run outside it, side by side and beside appends. What
is not synced yet stays in `pending`, so that it can be written again elsewhere.

A writer that raised FragmentsFailed is broken: it takes no more stripes, and its synced
part waits for seal_synced().
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from msgspec import Struct

from engine import limits
from engine.changes import OpenSegment, SealSegment
from engine.coding import LIBRARY, encode, fragment_length
from engine.crash_sites import CrashSite, reached
from engine.errors import (
    FragmentCorrupt,
    FragmentMissing,
    NodeFull,
    NodeUnavailable,
    StoreError,
    WritesStopped,
    WrongStore,
)
from engine.frames import read_header
from engine.interfaces import Buffer, Node
from engine.segments.format import (
    DIRECTORY,
    FILE_HEADER_BYTES,
    FOOTER_BYTES,
    FRAMES,
    STRIPE_HEADER_BYTES,
    DirectoryEntry,
    FileHeader,
    Footer,
    encode_directory,
    encode_file_header,
    encode_footer,
    encode_stripe_header,
    fragment_name,
)
from engine.types import Segment, SegmentLocation

ENTRIES_MAX = 64 * 1024  # chunks of one segment: bounds the directory kept in memory (~20 MB)
NODE_ERRORS = (NodeFull, NodeUnavailable, FragmentMissing, FragmentCorrupt, WrongStore)


class PendingStripe(Struct):
    """Whole frames that make one stripe and are not synced yet: all that is needed to
    write them again. `locations` is where they were written last."""

    frames: Sequence[bytes]
    locations: list[SegmentLocation] = []

    @property
    def data_length(self) -> int:
        return sum(map(len, self.frames))


class FragmentsFailed(Exception):
    """Some fragments could not be written or synced; by fragment index, why. Stays within
    engine.segments."""

    def __init__(self, failures: dict[int, StoreError]) -> None:
        super().__init__(failures)
        self.failures = failures


class SegmentWriter:
    """`nodes` in fragment order; the files do not exist yet (see create)."""

    def __init__(self, opened: OpenSegment, nodes: Sequence[Node], store_id: str) -> None:
        assert len(nodes) == opened.k + opened.m
        self.segment = Segment(
            opened.segment_id, opened.k, opened.m, opened.node_ids, opened.owner, opened.writer_epoch, code=opened.code
        )
        self.nodes = list(nodes)
        self.pending: list[PendingStripe] = []
        self.pending_bytes = 0
        self.data_bytes = 0
        self.synced_end = FILE_HEADER_BYTES
        self._store_id = store_id
        self._names = [fragment_name(opened.segment_id, index) for index in range(len(nodes))]
        self._end = FILE_HEADER_BYTES
        self._stripes = 0
        self._synced_stripes = 0
        self._entries: list[DirectoryEntry] = []
        self._broken = False
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        return self.data_bytes >= limits.SEGMENT_BYTES_MAX or len(self._entries) >= ENTRIES_MAX

    # -- appending -------------------------------------------------------------

    def create(self) -> None:
        """Make the fragment files. Raises FragmentsFailed."""

        def create_one(index: int, node: Node) -> None:
            header = FileHeader(
                self._store_id,
                self.segment.segment_id,
                index,
                self.segment.k,
                self.segment.m,
                self.segment.code,
                LIBRARY,
            )
            node.create(self._names[index])
            node.append(self._names[index], 0, [encode_file_header(header)])
            reached(CrashSite.SEGMENT_PARTLY_CREATED)

        with self._lock:
            self._on_all_nodes(create_one)
        reached(CrashSite.SEGMENT_CREATED)

    def append(self, stripe: PendingStripe) -> None:
        """Write one stripe and set its locations. It is pending from here on, even if this
        raises FragmentsFailed."""
        with self._lock:
            length = fragment_length(stripe.data_length, self.segment.k)
            start = 0
            entries: list[DirectoryEntry] = []
            for frame in stripe.frames:
                header = read_header(frame)
                assert header.frame_length == len(frame), "only whole frames are appended"
                location = SegmentLocation(self.segment.segment_id, self._end, length, start, len(frame))
                entries.append(DirectoryEntry(header.chunk_id, header.scope, location))
                start += len(frame)
            stripe.locations = [entry.location for entry in entries]
            self._entries += entries
            self.pending.append(stripe)
            self.pending_bytes += start
            self.data_bytes += start
            self._write_stripe(stripe.frames[0] if len(stripe.frames) == 1 else b"".join(stripe.frames))

    def _write_stripe(self, data: bytes) -> None:
        segment, number = self.segment, self._stripes
        fragments = encode(data, segment.k, segment.m, segment.code)

        def write_one(index: int, node: Node) -> None:
            payload = fragments[index]
            header = encode_stripe_header(segment.segment_id, index, number, payload, len(data), FRAMES)
            node.append(self._names[index], self._end, [header, payload])
            reached(CrashSite.STRIPE_PARTLY_WRITTEN)

        self._on_all_nodes(write_one)
        reached(CrashSite.STRIPE_WRITTEN)
        self._end += STRIPE_HEADER_BYTES + len(fragments[0])
        self._stripes += 1

    # -- syncing ---------------------------------------------------------------

    def begin_sync(self) -> tuple[int, int, int]:
        """What a sync that starts now will cover; hand it to finish_sync()."""
        with self._lock:
            return self._end, self._stripes, len(self.pending)

    def sync_fragment(self, index: int) -> None:
        """Blocking, one per thread. Raises the node's errors."""
        self.nodes[index].sync(self._names[index])
        reached(CrashSite.FRAGMENT_SYNCED)

    def finish_sync(self, covered: tuple[int, int, int]) -> None:
        """All fragments are synced: what was pending at begin_sync() is safe."""
        with self._lock:
            self.synced_end, self._synced_stripes, count = covered
            self.pending_bytes -= sum(stripe.data_length for stripe in self.pending[:count])
            del self.pending[:count]

    # -- sealing ---------------------------------------------------------------

    def seal_synced(self, failed: Sequence[int] = ()) -> SealSegment:
        """Cut what is not synced, write directory and footer, sync. `failed` fragments
        are left alone and counted as lost, as are those that fail now. Raises
        WritesStopped when more than m failed for another reason than a full disk (what
        lacks only its tail is still readable)."""
        with self._lock:
            failures: dict[int, StoreError | None] = dict.fromkeys(failed)
            if self._broken or self._end != self.synced_end:
                self._try_on_nodes(lambda index, node: node.truncate(self._names[index], self.synced_end), failures)
                reached(CrashSite.SEAL_CUT)
            self._broken = True  # once sealed nothing is ever appended again
            self._end, self._stripes = self.synced_end, self._synced_stripes
            entries = [entry for entry in self._entries if entry.location.stripe_offset < self.synced_end]
            tail, self._end = encode_tail(self.segment, entries, self._stripes, self._end)

            def write_tail(index: int, node: Node) -> None:
                node.append(self._names[index], self.synced_end, tail[index])
                reached(CrashSite.SEAL_PARTLY_WRITTEN)
                node.sync(self._names[index])

            self._try_on_nodes(write_tail, failures)
            gone = [index for index, error in failures.items() if not isinstance(error, NodeFull)]
            if len(gone) > self.segment.m:
                raise WritesStopped(
                    f"segment {self.segment.segment_id:016x} could not be sealed on {len(gone)} of "
                    f"{len(self.nodes)} nodes; it stays open and is sealed when they are back"
                )
            return SealSegment(
                self.segment.segment_id, self._end, sorted(failures), self._stripes, frames_end=self.synced_end
            )

    def take_pending(self) -> list[PendingStripe]:
        with self._lock:
            self._broken = True
            taken, self.pending, self.pending_bytes = self.pending, [], 0
            return taken

    # -- nodes -----------------------------------------------------------------

    def _on_all_nodes(self, action: Callable[[int, Node], None]) -> None:
        failures: dict[int, StoreError] = {}
        if self._broken:
            raise FragmentsFailed(failures)
        for index, node in enumerate(self.nodes):
            try:
                action(index, node)
            except NODE_ERRORS as error:
                failures[index] = error
        if failures:
            self._broken = True
            raise FragmentsFailed(failures)

    def _try_on_nodes(self, action: Callable[[int, Node], None], failures: dict[int, StoreError | None]) -> None:
        for index, node in enumerate(self.nodes):
            if index not in failures:
                try:
                    action(index, node)
                except NODE_ERRORS as error:
                    failures[index] = error


def encode_tail(
    segment: Segment, entries: Sequence[DirectoryEntry], stripes: int, offset: int
) -> tuple[list[list[Buffer]], int]:
    """Directory and footer of a segment whose stripes end at `offset`: the buffers to
    append for each fragment index, and the size of the finished files."""
    fragments = segment.k + segment.m
    tail: list[list[Buffer]] = [[] for _ in range(fragments)]
    end, directory_stripes = offset, 0
    for data in encode_directory(entries):
        payloads = encode(data, segment.k, segment.m, segment.code)
        for index, payload in enumerate(payloads):
            number = stripes + directory_stripes
            header = encode_stripe_header(segment.segment_id, index, number, payload, len(data), DIRECTORY)
            tail[index] += [header, payload]
        end += STRIPE_HEADER_BYTES + len(payloads[0])
        directory_stripes += 1
    data_bytes = sum(entry.location.length for entry in entries)
    for index in range(fragments):
        footer = Footer(segment.segment_id, index, stripes, directory_stripes, len(entries), offset, data_bytes)
        tail[index].append(encode_footer(footer))
    return tail, end + FOOTER_BYTES
