"""Rebuild: fragment files of a sealed segment written anew, from k others, in one pass.

Reads k fragment files in step, verifies each stripe's fragments and frames, computes what
is missing and writes it beside its place; where a source is damaged, other files make up
for it stripe by stripe. At the end the new files are synced, read back and compared, and
renamed into their place; what was damaged there is set aside before. Blocking, in steps of
one window, for one worker thread at a time. It trusts nothing but checksums.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import xxhash
from msgspec import Struct

from engine.coding import LIBRARY
from engine.crash_sites import CrashSite, reached
from engine.errors import FragmentCorrupt, FragmentMissing, StoreError, UnknownFormat, Unreadable
from engine.interfaces import Buffer, Node
from engine.recoding import recompute
from engine.segments.checking import check_frames
from engine.segments.format import (
    DIRECTORY,
    ENTRY_BYTES,
    FOOTER_BYTES,
    FRAMES,
    FileHeader,
    Footer,
    StripeHeader,
    decode_footer,
    encode_file_header,
    encode_footer,
    encode_stripe_header,
    fragment_name,
)
from engine.segments.reader import read_fragment
from engine.segments.sweep import Sweep, SweptStripe
from engine.types import Segment

SCRATCH = ".rebuild"  # ends the name of a fragment file that is being written anew
READ_BACK_BYTES = 4 * 1024**2

logger = logging.getLogger("objfs.segments")


class Target(Struct):
    """A fragment file being written. `aside` says why what stands in its place is kept."""

    index: int
    node: Node
    aside: str | None = None
    in_place: bool = True  # it replaces the file its node has, which may still hold good stripes
    bad_stretches: int | None = None  # of that file (None: there is none)
    holes: int = 0  # stripes that could not be rebuilt and are zeros
    written: int = 0

    @property
    def better(self) -> bool:
        """Whether the new file is worth putting in the place of the old one."""
        if not self.holes:
            return True
        return self.in_place and (self.bad_stretches is None or self.holes < self.bad_stretches)


class Rebuild:
    """`sources`: files that should be good, by fragment index. The targets' own old files
    are asked last."""

    def __init__(self, segment: Segment, targets: Sequence[Target], sources: Mapping[int, Node], store_id: str) -> None:
        self.segment = segment
        self.targets = list(targets)
        self._store_id = store_id
        first = dict(sorted(sources.items())[: segment.k])
        self._others = {index: node for index, node in sources.items() if index not in first}
        self._others |= {one.index: one.node for one in targets if one.in_place}
        self._sweep = Sweep(segment, first, store_id, self._others)
        self._digests = {one.index: xxhash.xxh3_64() for one in targets}
        self._frame_bytes = 0
        self._directory_stripes = 0
        self._directory_bytes = 0
        self._directory_offset: int | None = None

    @property
    def done(self) -> bool:
        return self._sweep.done

    @property
    def next_bytes(self) -> int:
        """How much the next step will read and write."""
        reading = self._sweep.next_bytes
        return reading + reading * len(self.targets) // max(len(self._sweep.nodes), 1)

    @property
    def damaged(self) -> dict[int, str]:
        """What was found wrong with the sources on the way, by fragment index."""
        return self._sweep.damaged

    def begin(self) -> None:
        segment = self.segment
        self._sweep.check_ends()
        for target in self.targets:
            scratch = self._scratch(target)
            delete_if_there(target.node, scratch)  # left by an earlier attempt
            target.node.create(scratch)
            header = FileHeader(
                self._store_id, segment.segment_id, target.index, segment.k, segment.m, segment.code, LIBRARY
            )
            self._write(target, [encode_file_header(header)])

    def step(self) -> None:
        """Rebuild the stripes of the next window."""
        buffers: dict[int, list[Buffer]] = {target.index: [] for target in self.targets}
        for stripe in self._sweep.next_window():
            self._rebuild_stripe(stripe, buffers)
        for target in self.targets:
            self._write(target, buffers[target.index])

    def finish(self) -> list[int]:
        """Put the files in their places, but for those no better than what is there. Returns
        the indexes that are whole now: all that have no holes. Raises FragmentCorrupt if
        what was written does not read back."""
        for target in self.targets:
            if not target.better:
                delete_if_there(target.node, self._scratch(target))
                continue
            scratch, name = self._scratch(target), fragment_name(self.segment.segment_id, target.index)
            self._write(target, [encode_footer(self._footer(target.index))])
            if target.written != self.segment.size:
                raise FragmentCorrupt(
                    f"{name} was rebuilt with {target.written} bytes, not {self.segment.size}; nothing was changed"
                )
            target.node.sync(scratch)
            self._read_back(target, scratch)
            reached(CrashSite.REBUILD_WRITTEN)
            if target.aside is not None and is_there(target.node, name):
                target.node.quarantine(name, f"{target.aside}; it was rebuilt from the other fragments")
                reached(CrashSite.REBUILD_QUARANTINED)
            target.node.rename(scratch, name)
            reached(CrashSite.REBUILD_RENAMED)
        return [target.index for target in self.targets if not target.holes]

    def abandon(self) -> None:
        """Take away what is half written, where its node is still there."""
        for target in self.targets:
            try:
                delete_if_there(target.node, self._scratch(target))
            except StoreError as error:
                logger.warning("%s stays behind: %s", self._scratch(target), error)

    # -- one stripe ------------------------------------------------------------

    def _rebuild_stripe(self, stripe: SweptStripe, buffers: dict[int, list[Buffer]]) -> None:
        if stripe.header is None or len(stripe.good) < self.segment.k:
            self._ask_others(stripe)
        if stripe.header is None:
            for target in self.targets:
                buffers[target.index].append(bytes(stripe.end - stripe.offset))
                target.holes += 1
            return
        header = stripe.header
        self._note(stripe.offset, header)
        made = self._fragments(stripe, header)
        for target in self.targets:
            payload = made.get(target.index)
            if payload is None:
                buffers[target.index].append(bytes(stripe.end - stripe.offset))
                target.holes += 1
            else:
                buffers[target.index] += [
                    encode_stripe_header(
                        self.segment.segment_id, target.index, header.number, payload, header.data_length, header.kind
                    ),
                    payload,
                ]

    def _fragments(self, stripe: SweptStripe, header: StripeHeader) -> Mapping[int, Buffer]:
        """The stripe's fragments that are wanted, as far as there are any."""
        segment, good = self.segment, stripe.good
        if len(good) < segment.k:
            return good  # a target's own old file may have its fragment; the rest are holes
        missing = [index for index in range(segment.k) if index not in good]
        wanted = sorted({*missing, *(target.index for target in self.targets)})
        made = recompute(good, wanted, segment.k, segment.m, segment.code)
        if header.kind == FRAMES:
            data = b"".join([good[index] if index in good else made[index] for index in range(segment.k)])
            self._check(stripe, header, memoryview(data)[: header.data_length])
        return made

    def _check(self, stripe: SweptStripe, header: StripeHeader, data: memoryview) -> None:
        try:
            for _ in check_frames(self.segment.segment_id, stripe.offset, header.fragment_length, data, hashing=False):
                pass
        except FragmentCorrupt as error:
            # It was damaged before it was coded, or all fragments lie alike: rebuilt as it is.
            logger.error("segment %016x stripe %d: %s", self.segment.segment_id, header.number, error)

    def _ask_others(self, stripe: SweptStripe) -> None:
        for index, node in self._others.items():
            if len(stripe.good) >= self.segment.k and stripe.header is not None:
                return
            if index in stripe.good or stripe.header is None:
                continue
            try:
                found = read_fragment(self.segment, index, stripe.offset, stripe.header.fragment_length, node)
            except StoreError:
                continue  # not good there either
            if (found.header.number, found.header.data_length) == (stripe.header.number, stripe.header.data_length):
                stripe.good[index] = memoryview(found.payload)

    def _note(self, offset: int, header: StripeHeader) -> None:
        if header.kind == DIRECTORY:
            if self._directory_offset is None:
                self._directory_offset = offset
            self._directory_stripes += 1
            self._directory_bytes += header.data_length
        else:
            self._frame_bytes += header.data_length

    def _footer(self, index: int) -> Footer:
        """As counted on the way; with stretches nothing is known of, as another file has it."""
        segment = self.segment
        known = self._sweep.footer or self._footer_of_others()
        if known is not None:
            return Footer(
                segment.segment_id,
                index,
                known.stripes,
                known.directory_stripes,
                known.chunks,
                known.directory_offset,
                known.data_bytes,
            )
        offset = self._sweep.end if self._directory_offset is None else self._directory_offset
        chunks = self._directory_bytes // ENTRY_BYTES
        return Footer(
            segment.segment_id, index, segment.stripes, self._directory_stripes, chunks, offset, self._frame_bytes
        )

    def _footer_of_others(self) -> Footer | None:
        for index, node in self._others.items():
            name = fragment_name(self.segment.segment_id, index)
            try:
                return decode_footer(node.read(name, self._sweep.end, FOOTER_BYTES), self.segment.segment_id, index)
            except UnknownFormat:
                raise
            except StoreError:
                continue  # not good there either
        return None

    # -- the files -------------------------------------------------------------

    def _scratch(self, target: Target) -> str:
        return fragment_name(self.segment.segment_id, target.index) + SCRATCH

    def _write(self, target: Target, buffers: Sequence[Buffer]) -> None:
        target.node.append(self._scratch(target), target.written, buffers)
        for buffer in buffers:
            self._digests[target.index].update(buffer)
            target.written += len(buffer)

    def _read_back(self, target: Target, scratch: str) -> None:
        digest, offset = xxhash.xxh3_64(), 0
        while offset < target.written:
            content = target.node.read(scratch, offset, READ_BACK_BYTES)
            if not content:
                break
            digest.update(content)
            offset += len(content)
        if digest.intdigest() != self._digests[target.index].intdigest():
            raise FragmentCorrupt(f"{scratch} on node {target.node.path} does not read back as it was written")


def rebuild_now(segment: Segment, targets: Sequence[Target], sources: Mapping[int, Node], store_id: str) -> list[int]:
    """Rebuild without a pause. Returns the indexes that are whole now. Raises Unreadable if
    no stripe could be rebuilt, and the target nodes' errors."""
    work = Rebuild(segment, targets, sources, store_id)
    try:
        work.begin()
        while not work.done:
            work.step()
        whole = work.finish()
    except StoreError:
        work.abandon()
        raise
    if not whole:
        raise Unreadable(f"segment {segment.segment_id:016x} has stripes that cannot be rebuilt; bring back its nodes")
    return whole


def is_there(node: Node, name: str) -> bool:
    try:
        node.size(name)
    except FragmentMissing:
        return False
    return True


def delete_if_there(node: Node, name: str) -> None:
    if is_there(node, name):
        node.delete(name)
