"""Any k of n fragments give the data back, for every code in use."""

from __future__ import annotations

import itertools
import random

import pytest

from engine.coding import check_code, decode, decode_missing, encode, fragment_length
from engine.errors import StoreError


@pytest.mark.parametrize("k,m", [(4, 2), (3, 2), (2, 2), (1, 2), (1, 1), (5, 3), (4, 1), (2, 3)])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 1000, 70_001])
def test_every_loss_up_to_m_is_decoded(k: int, m: int, length: int) -> None:
    data = random.Random(length).randbytes(length)
    fragments = encode(data, k, m)
    assert {len(fragment) for fragment in fragments} == {fragment_length(length, k)}
    assert b"".join(fragments[:k])[:length] == data, "the code is systematic"
    for kept in itertools.combinations(range(k + m), k):
        lost = [index for index in range(k + m) if index not in kept]
        survivors = {index: fragments[index] for index in kept}
        assert decode(survivors, k, m)[:length] == data
        assert decode_missing(survivors, lost, k, m) == {index: fragments[index] for index in lost}


def test_more_than_k_fragments_decode_too() -> None:
    fragments = encode(b"some content here", 4, 2)
    assert decode(dict(enumerate(fragments)), 4, 2).rstrip(b"\0") == b"some content here"
    assert decode({i: fragments[i] for i in range(1, 6)}, 4, 2).rstrip(b"\0") == b"some content here"


def test_parity_is_what_it_always_was() -> None:
    """Stored fragments must decode for ever: a library that codes otherwise is found here."""
    assert [bytes(fragment).hex() for fragment in encode(bytes(range(8)), 4, 2)[4:]] == PARITY_4_2
    assert [bytes(fragment) for fragment in encode(b"copy", 1, 2)] == [b"copy"] * 3


PARITY_4_2 = ["1d3d", "5d7d"]


@pytest.mark.parametrize(
    "k,m,code", [(0, 2, "isa_l_rs_cauchy"), (4, 0, "isa_l_rs_cauchy"), (200, 57, "isa_l_rs_cauchy")]
)
def test_impossible_codes_are_refused(k: int, m: int, code: str) -> None:
    with pytest.raises(StoreError):
        check_code(k, m, code)


def test_codes_that_cannot_keep_their_promise_are_refused() -> None:
    with pytest.raises(StoreError, match="isa_l_rs_vand cannot"):
        check_code(8, 5, "isa_l_rs_vand")
    with pytest.raises(StoreError, match="not known"):
        check_code(4, 2, "rot13")
    check_code(4, 2)
