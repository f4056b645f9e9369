"""Cut points depend on the content alone; chunks join to the content."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine import limits
from engine.chunking import WORK_BYTES, Chunker

CONTENT = random.Random(7).randbytes(5 * 1024 * 1024)


def chunk_lengths(content: bytes, cuts: list[int]) -> list[int]:
    chunker = Chunker()
    edges = [0, *sorted(cuts), len(content)]
    chunks = []
    for start, end in itertools.pairwise(edges):
        chunks += chunker.feed(content[start:end])
        assert chunker._waiting < WORK_BYTES
    chunks += chunker.finish()
    assert b"".join(chunks) == content
    return [len(chunk) for chunk in chunks]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(CONTENT)), max_size=30), st.integers(0, len(CONTENT)))
def test_cut_points_do_not_depend_on_how_bytes_are_fed(cuts: list[int], length: int) -> None:
    content = CONTENT[:length]
    assert chunk_lengths(content, [min(cut, length) for cut in cuts]) == chunk_lengths(content, [])


def test_small_feeds_give_the_same_chunks() -> None:
    assert chunk_lengths(CONTENT, list(range(0, len(CONTENT), 1000))) == chunk_lengths(CONTENT, [])


def test_sizes_stay_within_limits_and_zeros_reach_the_maximum() -> None:
    lengths = chunk_lengths(CONTENT, [])
    assert all(limits.CHUNK_BYTES_MIN <= length <= limits.CHUNK_BYTES_MAX for length in lengths[:-1])
    zeros = chunk_lengths(bytes(3 * limits.CHUNK_BYTES_MAX), [])
    assert zeros == [limits.CHUNK_BYTES_MAX] * 3


def test_an_empty_stream_has_no_chunk() -> None:
    assert Chunker().finish() == []


def test_an_insertion_moves_few_cuts() -> None:
    before = {bytes(chunk) for chunk in _chunks(CONTENT)}
    after = {bytes(chunk) for chunk in _chunks(CONTENT[:1000] + b"inserted" + CONTENT[1000:])}
    assert len(after - before) <= 3


def _chunks(content: bytes) -> list[object]:
    chunker = Chunker()
    return [*chunker.feed(content), *chunker.finish()]
