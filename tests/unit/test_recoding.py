"""ISA-L called directly gives the bytes pyeclib gives, for every loss a code survives."""

from __future__ import annotations

import itertools
import random

import pytest

from engine import recoding
from engine.coding import CODES, encode


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 2), (4, 2), (3, 3), (8, 3)])
def test_every_loss_is_made_up_for(k: int, m: int, code: str) -> None:
    data = random.Random(k * 16 + m).randbytes(10_007)
    whole = {index: bytes(fragment) for index, fragment in enumerate(encode(data, k, m, code))}
    for kept in itertools.combinations(range(k + m), k):
        missing = [index for index in whole if index not in kept]
        made = recoding.recompute({index: whole[index] for index in kept}, missing, k, m, code)
        assert {index: bytes(made[index]) for index in missing} == {index: whole[index] for index in missing}


def test_without_isa_l_pyeclib_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {index: bytes(fragment) for index, fragment in enumerate(encode(b"content" * 1000, 4, 2))}
    monkeypatch.setattr(recoding, "_library", lambda: None)
    made = recoding.recompute({index: whole[index] for index in (0, 2, 4, 5)}, [1, 3], 4, 2)
    assert {index: bytes(fragment) for index, fragment in made.items()} == {1: whole[1], 3: whole[3]}


def test_isa_l_is_found_in_the_wheel_pyeclib_comes_in() -> None:
    assert recoding._library() is not None
