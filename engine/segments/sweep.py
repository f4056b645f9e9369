"""Sweep: one pass over the fragment files of a sealed segment, stripe by stripe, in step.

Reads every file in large pieces, the same range of each at a time, and verifies every
header and payload on its own. Says what is good and what is wrong where; judges nothing
and changes nothing. Blocking, for one worker thread at a time; memory is bounded by
WINDOW_BYTES and the stripes the caller keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msgspec import Struct

from engine import limits
from engine.coding import fragment_length
from engine.errors import FragmentCorrupt, NodeUnavailable, StoreError, UnknownFormat, WrongStore
from engine.interfaces import Node
from engine.segments.format import (
    DIRECTORY,
    FILE_HEADER_BYTES,
    FOOTER_BYTES,
    FRAMES,
    STRIPE_HEADER_BYTES,
    Footer,
    StripeHeader,
    decode_file_header,
    decode_footer,
    decode_stripe_header,
    fragment_name,
    stripe_pattern,
    verify_payload,
)
from engine.types import Segment, SegmentState

WINDOW_BYTES = 3 * 1024**2  # of all files together, at least two stripes of each: fits the processor's caches
SEARCH_BYTES = 1024**2


class SweptStripe(Struct):
    """A stripe as it lies in the files. `header` is what most of them say; fragments whose
    own header or payload says otherwise are in `bad`, with the reason. Nothing is known of
    a stretch without `header`: no file has a stripe's header there."""

    offset: int
    end: int
    header: StripeHeader | None
    good: dict[int, memoryview]
    bad: dict[int, str]


class Sweep:
    """`nodes` by fragment index: the files to read. `others` are only asked where none of
    those has a stripe's header."""

    def __init__(
        self, segment: Segment, nodes: Mapping[int, Node], store_id: str, others: Mapping[int, Node] | None = None
    ) -> None:
        assert segment.state is SegmentState.SEALED, "an open segment is its writer's business"
        self.segment = segment
        self.nodes = dict(nodes)
        self.damaged: dict[int, str] = {}  # fragment index → the first thing found wrong with it
        self.absent: dict[int, str] = {}  # fragment index → why its node could not be read
        self.footer: Footer | None = None
        self.bytes_read = 0
        self.offset = FILE_HEADER_BYTES
        self._store_id = store_id
        self._others = others or {}
        self._number = 0
        self._sure = True  # whether the next stripe's number is known
        files = max(len(self.nodes), 1)
        largest = STRIPE_HEADER_BYTES + fragment_length(limits.STRIPE_BYTES_MAX, segment.k)
        self.window = max(WINDOW_BYTES // files, 2 * largest)

    @property
    def end(self) -> int:
        """Where the stripes end and the footer begins."""
        return self.segment.size - FOOTER_BYTES

    @property
    def done(self) -> bool:
        return self.offset >= self.end

    @property
    def next_bytes(self) -> int:
        """How much the next window will read, of all files."""
        return min(self.window, self.end - self.offset) * len(self.nodes)

    # -- the ends of the files -------------------------------------------------

    def check_ends(self) -> None:
        """File headers, sizes and footers."""
        for index, node in list(self.nodes.items()):
            try:
                node.check()
                self._check_ends(index, node)
            except StoreError as error:
                self._fail(index, error)

    def _check_ends(self, index: int, node: Node) -> None:
        segment, name = self.segment, fragment_name(self.segment.segment_id, index)
        header = decode_file_header(node.read(name, 0, FILE_HEADER_BYTES))
        if (header.segment_id, header.index) != (segment.segment_id, index):
            raise FragmentCorrupt(f"the file is fragment {header.index} of segment {header.segment_id:016x}")
        if header.store_id != self._store_id:
            raise WrongStore(f"the file belongs to store {header.store_id}")
        if (header.k, header.m, header.code) != (segment.k, segment.m, segment.code):
            raise FragmentCorrupt(f"the file says it is coded {header.k}+{header.m} {header.code}")
        size = node.size(name)
        self.bytes_read += FILE_HEADER_BYTES + FOOTER_BYTES
        if size != segment.size:
            self.damaged.setdefault(index, f"the file is {size} bytes long, not {segment.size}")
        footer = decode_footer(node.read(name, self.end, FOOTER_BYTES), segment.segment_id, index)
        if footer.stripes != segment.stripes:
            raise FragmentCorrupt(f"the footer counts {footer.stripes} stripes, not {segment.stripes}")
        self.footer = self.footer or footer

    # -- the stripes between them ----------------------------------------------

    def next_window(self) -> list[SweptStripe]:
        """The next stripes, in order."""
        start = self.offset
        contents = {index: self._read(index, start) for index in list(self.nodes)}
        views = {index: memoryview(content) for index, content in contents.items() if content is not None}
        stripes: list[SweptStripe] = []
        limit = min(start + self.window, self.end)
        while self.offset < limit:
            stripe = self._stripe_at(views, start, limit)
            if stripe is None:
                break  # it goes on behind this window
            stripes.append(stripe)
            self.offset = stripe.end
            for index, reason in stripe.bad.items():
                self.damaged.setdefault(index, f"at {stripe.offset}: {reason}")
        assert stripes or self.offset > start, "a window holds at least one stripe"
        return stripes

    def _read(self, index: int, offset: int) -> bytes | None:
        length = min(self.window, self.end - offset)
        try:
            content = self.nodes[index].read(fragment_name(self.segment.segment_id, index), offset, length)
        except StoreError as error:
            self._fail(index, error)
            return None
        self.bytes_read += len(content)
        return content

    def _stripe_at(self, views: Mapping[int, memoryview], start: int, limit: int) -> SweptStripe | None:
        at = self.offset - start
        headers: dict[int, StripeHeader] = {}
        bad: dict[int, str] = {}
        if self.offset + STRIPE_HEADER_BYTES > limit and limit < self.end:
            return None
        for index, view in views.items():
            try:
                header = decode_stripe_header(view[at : at + STRIPE_HEADER_BYTES], self.segment.segment_id, index)
                self._check_shape(header)
                headers[index] = header
            except UnknownFormat:
                raise
            except StoreError as error:
                bad[index] = str(error)
        if not headers:
            return self._gap(bad)
        counts = Counter(_shape(header) for header in headers.values())
        shape = max(counts, key=lambda one: (one[0] != FRAMES, counts[one]))
        found = next(header for header in headers.values() if _shape(header) == shape)
        end = self.offset + STRIPE_HEADER_BYTES + found.fragment_length
        if end > limit and limit < self.end:
            return None
        good: dict[int, memoryview] = {}
        for index, header in headers.items():
            payload = views[index][at + STRIPE_HEADER_BYTES : at + STRIPE_HEADER_BYTES + found.fragment_length]
            if _shape(header) != shape:
                bad[index] = f"found stripe {header.number} in the place of stripe {found.number}"
            elif not verify_payload(header, payload):
                bad[index] = f"the payload of stripe {found.number} is damaged"
            else:
                good[index] = payload
        self._number, self._sure = found.number + 1, True
        return SweptStripe(self.offset, end, found, good, bad)

    def _check_shape(self, header: StripeHeader) -> None:
        """What a header of this segment at this place can say at all."""
        if (self._sure and header.number != self._number) or header.number < self._number:
            raise FragmentCorrupt(f"found stripe {header.number} in the place of stripe {self._number}")
        kind = FRAMES if header.number < self.segment.stripes else DIRECTORY
        end = self.offset + STRIPE_HEADER_BYTES + header.fragment_length
        fits = header.fragment_length == fragment_length(header.data_length, self.segment.k) and end <= self.end
        if header.kind != kind or not fits:
            raise FragmentCorrupt(f"the header of stripe {header.number} does not fit the segment")

    def _gap(self, bad: dict[int, str]) -> SweptStripe:
        """No file knows what should be here: go on where one has a stripe again."""
        for index, node in self._others.items():
            header = self._header_of(index, node)
            if header is not None:
                self._number, self._sure = header.number + 1, True
                end = self.offset + STRIPE_HEADER_BYTES + header.fragment_length
                return SweptStripe(self.offset, end, header, {}, bad)
        found = [
            position
            for index, node in [*self.nodes.items(), *self._others.items()]
            if (position := search_stripe(self.segment, index, node, self.offset + 1)) is not None
        ]
        self._sure = False
        return SweptStripe(self.offset, min([*found, self.end]), None, {}, bad)

    def _header_of(self, index: int, node: Node) -> StripeHeader | None:
        name = fragment_name(self.segment.segment_id, index)
        try:
            content = node.read(name, self.offset, STRIPE_HEADER_BYTES)
            header = decode_stripe_header(content, self.segment.segment_id, index)
            self._check_shape(header)
        except UnknownFormat:
            raise
        except StoreError:
            return None
        return header

    def _fail(self, index: int, error: StoreError) -> None:
        """The file can't be read on: is it the file or its node?"""
        if isinstance(error, UnknownFormat):
            raise error
        node = self.nodes[index]
        try:
            node.check()
        except StoreError as gone:
            self.absent[index] = str(gone)
            del self.nodes[index]
            return
        self.damaged.setdefault(index, str(error))
        if isinstance(error, NodeUnavailable):
            return  # a bad sector: what lies behind it may be good
        if not self._exists(node, index):
            del self.nodes[index]

    def _exists(self, node: Node, index: int) -> bool:
        try:
            node.size(fragment_name(self.segment.segment_id, index))
        except StoreError:
            return False
        return True


def search_stripe(segment: Segment, index: int, node: Node, offset: int) -> int | None:
    """The first offset from `offset` on at which the file has a valid stripe header."""
    name, pattern = fragment_name(segment.segment_id, index), stripe_pattern(segment.segment_id, index)
    while True:
        try:
            content = node.read(name, offset, SEARCH_BYTES + STRIPE_HEADER_BYTES)
        except StoreError:
            return None
        position = content.find(pattern)
        while position >= 0:
            try:
                decode_stripe_header(content[position : position + STRIPE_HEADER_BYTES], segment.segment_id, index)
                return offset + position
            except FragmentCorrupt:
                position = content.find(pattern, position + 1)
        if len(content) <= STRIPE_HEADER_BYTES:
            return None
        offset += max(len(content) - STRIPE_HEADER_BYTES, 1)


def _shape(header: StripeHeader) -> tuple[int, int, int, int]:
    return header.kind, header.number, header.fragment_length, header.data_length
