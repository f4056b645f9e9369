"""Bytes of fragment files: file header, stripe headers, chunk directory, footer. Pure
functions; offsets and crash rules in FORMAT.md. Knows nothing of nodes or files.

    fragment file  = file header, stripe fragment*, [directory stripe fragment*, footer]
    stripe fragment = stripe header, payload of `fragment_length` bytes

All numbers are little-endian. Offsets are the same in every fragment file of a segment.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash
from msgspec import Struct

from engine import limits
from engine.errors import FragmentCorrupt, UnknownFormat
from engine.interfaces import Buffer
from engine.types import SegmentLocation

VERSION = 1
FILE_MAGIC = b"objfsSEG"
STRIPE_MAGIC = b"oStr"
FOOTER_MAGIC = b"objfsEND"
FRAMES = 0  # kinds of stripe
DIRECTORY = 1

# magic, version, header length, fragment index, k, m, reserved, stripe bytes max, segment id,
# store id, code, library, CRC-32 of all before it
_FILE = struct.Struct("<8sHHHHHHIQ40s24s28sI")
# magic, version, fragment index, segment id, stripe number, fragment length, data length,
# kind, XXH3 of the payload, reserved, CRC-32
_STRIPE = struct.Struct("<4sHHQIIIIQII")
# magic, version, fragment index, reserved, segment id, stripes, directory stripes, chunks,
# reserved, directory offset, data bytes, reserved, CRC-32
_FOOTER = struct.Struct("<8sHHIQIIIIQQII")
# chunk id, scope, fragment length, stripe offset, offset in the stripe, frame length
_ENTRY = struct.Struct("<32sIIQII")

FILE_HEADER_BYTES = _FILE.size
STRIPE_HEADER_BYTES = _STRIPE.size
FOOTER_BYTES = _FOOTER.size
ENTRY_BYTES = _ENTRY.size
DIRECTORY_STRIPE_ENTRIES = limits.STRIPE_BYTES_MAX // ENTRY_BYTES

assert (FILE_HEADER_BYTES, STRIPE_HEADER_BYTES, FOOTER_BYTES, ENTRY_BYTES) == (128, 48, 64, 56)


class FileHeader(Struct, frozen=True):
    store_id: str
    segment_id: int
    index: int
    k: int
    m: int
    code: str
    library: str
    stripe_bytes_max: int = limits.STRIPE_BYTES_MAX


class StripeHeader(Struct, frozen=True):
    segment_id: int
    index: int
    number: int
    fragment_length: int
    data_length: int
    kind: int
    xxh3: int


class Footer(Struct, frozen=True):
    segment_id: int
    index: int
    stripes: int  # of frames
    directory_stripes: int
    chunks: int
    directory_offset: int
    data_bytes: int  # of all frames


class DirectoryEntry(Struct, frozen=True):
    chunk_id: bytes
    scope: int
    location: SegmentLocation


def fragment_name(segment_id: int, index: int) -> str:
    """The fragment file's name on its node."""
    name = f"{segment_id:016x}"
    return f"segments/{name[-2:]}/{name}.{index}"


# -- file header ---------------------------------------------------------------


def encode_file_header(header: FileHeader) -> bytes:
    texts = (header.store_id.encode(), header.code.encode(), header.library.encode())
    assert all(len(text) <= room for text, room in zip(texts, (40, 24, 28), strict=True))
    return _seal(
        _FILE.pack(
            FILE_MAGIC,
            VERSION,
            FILE_HEADER_BYTES,
            header.index,
            header.k,
            header.m,
            0,
            header.stripe_bytes_max,
            header.segment_id,
            *texts,
            0,
        )
    )


def decode_file_header(content: Buffer) -> FileHeader:
    """Raises FragmentCorrupt, UnknownFormat."""
    fields = _unseal(_FILE, content, FILE_MAGIC, "fragment file header")
    _, _, length, index, k, m, _, stripe_bytes_max, segment_id, store_id, code, library, _ = fields
    if length != FILE_HEADER_BYTES:
        raise UnknownFormat(f"fragment file header of {length} bytes: written by a newer release")
    texts = [text.rstrip(b"\0").decode() for text in (store_id, code, library)]
    return FileHeader(texts[0], segment_id, index, k, m, texts[1], texts[2], stripe_bytes_max)


# -- stripes -------------------------------------------------------------------


def encode_stripe_header(
    segment_id: int, index: int, number: int, payload: Buffer, data_length: int, kind: int
) -> bytes:
    return _seal(
        _STRIPE.pack(
            STRIPE_MAGIC,
            VERSION,
            index,
            segment_id,
            number,
            len(payload),
            data_length,
            kind,
            xxhash.xxh3_64_intdigest(payload),
            0,
            0,
        )
    )


def decode_stripe_header(content: Buffer, segment_id: int, index: int) -> StripeHeader:
    """The header at the start of `content`, of this segment and fragment. Raises
    FragmentCorrupt, UnknownFormat."""
    fields = _unseal(_STRIPE, content, STRIPE_MAGIC, "stripe header")
    _, _, found_index, found_segment, number, length, data_length, kind, xxh3, _, _ = fields
    if (found_segment, found_index) != (segment_id, index):
        raise FragmentCorrupt(f"found segment {found_segment:016x} fragment {found_index}: a stripe of another file")
    if kind not in (FRAMES, DIRECTORY):
        raise UnknownFormat(f"segment {segment_id:016x} has a stripe of kind {kind}: written by a newer release")
    return StripeHeader(found_segment, found_index, number, length, data_length, kind, xxh3)


def verify_payload(header: StripeHeader, payload: Buffer) -> bool:
    return len(payload) == header.fragment_length and xxhash.xxh3_64_intdigest(payload) == header.xxh3


def stripe_pattern(segment_id: int, index: int) -> bytes:
    """The bytes every stripe header of this fragment file starts with."""
    return _STRIPE.pack(STRIPE_MAGIC, VERSION, index, segment_id, 0, 0, 0, 0, 0, 0, 0)[:16]


# -- directory and footer ------------------------------------------------------


def encode_directory(entries: Iterable[DirectoryEntry]) -> Iterator[bytes]:
    """The data of the directory's stripes, in order. An empty directory has none."""
    packed = [
        _ENTRY.pack(
            entry.chunk_id,
            entry.scope,
            entry.location.fragment_length,
            entry.location.stripe_offset,
            entry.location.offset,
            entry.location.length,
        )
        for entry in entries
    ]
    for start in range(0, len(packed), DIRECTORY_STRIPE_ENTRIES):
        yield b"".join(packed[start : start + DIRECTORY_STRIPE_ENTRIES])


def decode_directory(segment_id: int, data: Buffer) -> list[DirectoryEntry]:
    """The entries of one directory stripe's data (cut to its data length)."""
    return [
        DirectoryEntry(chunk_id, scope, SegmentLocation(segment_id, stripe_offset, fragment_length, offset, length))
        for chunk_id, scope, fragment_length, stripe_offset, offset, length in _ENTRY.iter_unpack(data)
    ]


def encode_footer(footer: Footer) -> bytes:
    return _seal(
        _FOOTER.pack(
            FOOTER_MAGIC,
            VERSION,
            footer.index,
            0,
            footer.segment_id,
            footer.stripes,
            footer.directory_stripes,
            footer.chunks,
            0,
            footer.directory_offset,
            footer.data_bytes,
            0,
            0,
        )
    )


def decode_footer(content: Buffer, segment_id: int, index: int) -> Footer:
    """Raises FragmentCorrupt, UnknownFormat."""
    fields = _unseal(_FOOTER, content, FOOTER_MAGIC, "footer")
    _, _, found_index, _, found_segment, stripes, directory_stripes, chunks, _, offset, data_bytes, _, _ = fields
    if (found_segment, found_index) != (segment_id, index):
        raise FragmentCorrupt(f"found segment {found_segment:016x} fragment {found_index}: the footer of another file")
    return Footer(found_segment, found_index, stripes, directory_stripes, chunks, offset, data_bytes)


# -- checksums -----------------------------------------------------------------


def _seal(packed: bytes) -> bytes:
    """Fill in the CRC-32 that ends every structure."""
    return packed[:-4] + zlib.crc32(packed[:-4]).to_bytes(4, "little")


def _unseal(layout: struct.Struct, content: Buffer, magic: bytes, what: str) -> tuple[Any, ...]:
    view = memoryview(content)[: layout.size]
    if len(view) < layout.size:
        raise FragmentCorrupt(f"the {what} is cut short")
    fields = layout.unpack(view)
    if fields[0] != magic or fields[-1] != zlib.crc32(view[:-4]):
        raise FragmentCorrupt(f"the {what} is damaged")
    if fields[1] != VERSION:
        raise UnknownFormat(f"{what} of version {fields[1]}: written by a newer release")
    return fields
