"""Frames round-trip, and no damage to them goes unnoticed."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import limits
from engine.errors import FragmentCorrupt, StoreError
from engine.frames import CODEC_NONE, CODEC_ZSTD, decode_frame, encode_frame, read_header, verify_frame


def name(plain: bytes) -> bytes:
    return hashlib.sha256(plain).digest()


@given(st.binary(max_size=5000), st.integers(0, 2**32 - 1))
def test_round_trip(plain: bytes, scope: int) -> None:
    frame = encode_frame(name(plain), plain, scope=scope)
    header = verify_frame(memoryview(frame))
    assert (header.plain_length, header.scope, header.frame_length) == (len(plain), scope, len(frame))
    assert decode_frame(memoryview(frame), name(plain)) == plain


@settings(max_examples=200)
@given(st.integers(0, 8 * (limits.FRAME_HEADER_BYTES + 100) - 1))
def test_any_flipped_bit_is_found(bit: int) -> None:
    plain = random.Random(1).randbytes(100)
    frame = bytearray(encode_frame(name(plain), plain))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FragmentCorrupt):
        decode_frame(frame, name(plain))


def test_what_compresses_is_compressed_and_noise_is_not() -> None:
    text = b"the same line again and again\n" * 10_000
    noise = random.Random(2).randbytes(300_000)
    assert read_header(encode_frame(name(text), text)).codec == CODEC_ZSTD
    assert len(encode_frame(name(text), text)) < len(text) // 10
    assert read_header(encode_frame(name(noise), noise)).codec == CODEC_NONE
    assert len(encode_frame(name(noise), noise)) == len(noise) + limits.FRAME_HEADER_BYTES


def test_another_chunk_or_a_cut_frame_is_refused() -> None:
    frame = encode_frame(name(b"one"), b"one")
    with pytest.raises(FragmentCorrupt, match="in the place of"):
        decode_frame(frame, name(b"two"))
    for length in (0, 50, len(frame) - 1):
        with pytest.raises(StoreError):
            verify_frame(frame[:length])
