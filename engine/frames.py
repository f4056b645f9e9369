"""Frames: a chunk as it is stored. Pure functions over bytes; layout in FORMAT.md.

Knows nothing of where frames lie. Safe to call from any thread; compression and hashing
release the GIL for large buffers.
"""

from __future__ import annotations

import struct
import threading
import zlib
from typing import cast

import xxhash
import zstandard
from msgspec import Struct

from engine import limits
from engine.errors import FragmentCorrupt, UnknownFormat
from engine.interfaces import Buffer
from engine.types import CHUNK_ID_BYTES

MAGIC = b"oFrm"
VERSION = 1
CODEC_NONE = 0
CODEC_ZSTD = 1
CIPHER_NONE = 0
ZSTD_LEVEL = 1
PROBE_BYTES = 4096  # of the start and of the middle of a chunk worth probing
PROBE_CHUNK_BYTES = 4 * PROBE_BYTES  # smaller chunks are simply compressed
COMPRESS_BYTES_MIN = 64  # below this a zstd header eats what it saves

# magic, version, codec, cipher, flags, scope, key id, nonce, plain length, stored length,
# chunk id, XXH3 of the stored bytes, reserved, CRC-32 of all before it
_HEADER = struct.Struct("<4sBBBBII12sII32sQ16sI")
_CRC_OFFSET = _HEADER.size - 4
_NO_NONCE = bytes(12)
_RESERVED = bytes(16)
_local = threading.local()

assert _HEADER.size == limits.FRAME_HEADER_BYTES


class FrameHeader(Struct, frozen=True):
    chunk_id: bytes
    codec: int
    cipher: int
    scope: int
    key_id: int
    nonce: bytes
    plain_length: int
    stored_length: int
    xxh3: int

    @property
    def frame_length(self) -> int:
        return limits.FRAME_HEADER_BYTES + self.stored_length


def encode_frame(chunk_id: bytes, plain: Buffer, *, scope: int = 0) -> bytes:
    """The frame of a chunk; compressed where that saves enough."""
    assert len(chunk_id) == CHUNK_ID_BYTES and len(plain) <= limits.CHUNK_BYTES_MAX
    compressed = _compress(plain)
    codec, stored = (CODEC_NONE, plain) if compressed is None else (CODEC_ZSTD, compressed)
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        codec,
        CIPHER_NONE,
        0,
        scope,
        0,
        _NO_NONCE,
        len(plain),
        len(stored),
        chunk_id,
        xxhash.xxh3_64_intdigest(stored),
        _RESERVED,
        0,
    )[:_CRC_OFFSET]
    return b"".join((header, zlib.crc32(header).to_bytes(4, "little"), stored))


def read_header(frame: Buffer) -> FrameHeader:
    """The header at the start of `frame`, its CRC checked, the bytes behind it not.
    Raises FragmentCorrupt, UnknownFormat."""
    if len(frame) < _HEADER.size:
        raise FragmentCorrupt(f"a frame of {len(frame)} bytes is shorter than its header")
    header = memoryview(frame)[: _HEADER.size]
    (
        magic,
        version,
        codec,
        cipher,
        flags,
        scope,
        key_id,
        nonce,
        plain_length,
        stored_length,
        chunk_id,
        xxh3,
        _,
        crc,
    ) = _HEADER.unpack(header)
    if magic != MAGIC or crc != zlib.crc32(header[:_CRC_OFFSET]):
        raise FragmentCorrupt("a frame's header is damaged")
    if version != VERSION or codec not in (CODEC_NONE, CODEC_ZSTD) or cipher != CIPHER_NONE or flags:
        raise UnknownFormat(
            f"frame {chunk_id.hex()} has version {version}, codec {codec}, cipher {cipher}, flags {flags}: "
            "written by a newer release"
        )
    return FrameHeader(chunk_id, codec, cipher, scope, key_id, nonce, plain_length, stored_length, xxh3)


def verify_frame(frame: Buffer) -> FrameHeader:
    """Check a whole frame (header CRC, length, XXH3). Raises FragmentCorrupt, UnknownFormat."""
    header = read_header(frame)
    if len(frame) != header.frame_length:
        raise FragmentCorrupt(f"frame {header.chunk_id.hex()} is {len(frame)} bytes long, not {header.frame_length}")
    if xxhash.xxh3_64_intdigest(memoryview(frame)[_HEADER.size :]) != header.xxh3:
        raise FragmentCorrupt(f"frame {header.chunk_id.hex()} is damaged")
    return header


def decode_frame(frame: Buffer, chunk_id: bytes) -> bytes:
    """The plaintext of the frame, which must be that of `chunk_id`. Raises
    FragmentCorrupt, UnknownFormat."""
    header = verify_frame(frame)
    if header.chunk_id != chunk_id:
        raise FragmentCorrupt(f"found frame {header.chunk_id.hex()} in the place of {chunk_id.hex()}")
    stored = memoryview(frame)[_HEADER.size :]
    plain = bytes(stored) if header.codec == CODEC_NONE else _decompress(stored, header)
    if len(plain) != header.plain_length:
        raise FragmentCorrupt(f"frame {chunk_id.hex()} holds {len(plain)} bytes, not {header.plain_length}")
    return plain


def _compress(plain: Buffer) -> bytes | None:
    """`plain` compressed, or None when that does not save enough."""
    if len(plain) < COMPRESS_BYTES_MIN:
        return None
    compressor = _compressor()
    if len(plain) >= PROBE_CHUNK_BYTES:
        view = memoryview(plain)
        middle = len(plain) // 2
        probe = b"".join((view[:PROBE_BYTES], view[middle : middle + PROBE_BYTES]))
        if not _saves(len(compressor.compress(probe)), len(probe)):
            return None
    compressed = compressor.compress(plain)
    return compressed if _saves(len(compressed), len(plain)) else None


def _saves(compressed_length: int, plain_length: int) -> bool:
    return compressed_length <= plain_length * (1 - limits.COMPRESSION_SAVING_MIN)


def _compressor() -> zstandard.ZstdCompressor:
    # A compressor keeps its working memory; one per thread, as it is not safe to share.
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    return cast(zstandard.ZstdCompressor, compressor)


def _decompress(stored: memoryview, header: FrameHeader) -> bytes:
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    if zstandard.get_frame_parameters(stored).content_size != header.plain_length:
        raise FragmentCorrupt(f"frame {header.chunk_id.hex()} announces another length than its header")
    try:
        return cast(bytes, decompressor.decompress(stored, max_output_size=header.plain_length))
    except zstandard.ZstdError as error:
        raise FragmentCorrupt(f"frame {header.chunk_id.hex()} does not decompress: {error}") from error
