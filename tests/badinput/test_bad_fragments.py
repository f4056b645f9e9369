"""Fragment files that are damaged, cut, extended, swapped or another store's: what is read
is right or refused, up to m of them at once cost nothing, and opening again loses nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import Unreadable
from engine.segments.format import FILE_HEADER_BYTES, FOOTER_BYTES, STRIPE_HEADER_BYTES
from engine.store import Store, open_store
from tests.badinput.world import Image, cut, extend, flip, get, make_image, put, run, swap, zero

Damage = Callable[[Path], None]
FIRST_STRIPE = FILE_HEADER_BYTES
FIRST_PAYLOAD = FILE_HEADER_BYTES + STRIPE_HEADER_BYTES

# Every offset class: where in a file of `size` bytes. The largest segment has several stripes.
PLACES: dict[str, Callable[[int], int]] = {
    "magic": lambda size: 0,
    "version": lambda size: 8,
    "header length": lambda size: 10,
    "index": lambda size: 12,
    "k": lambda size: 14,
    "stripe bytes": lambda size: 20,
    "segment id": lambda size: 24,
    "store id": lambda size: 32,
    "code": lambda size: 72,
    "library": lambda size: 96,
    "header crc": lambda size: 124,
    "stripe magic": lambda size: FIRST_STRIPE,
    "stripe version": lambda size: FIRST_STRIPE + 4,
    "stripe number": lambda size: FIRST_STRIPE + 16,
    "fragment length": lambda size: FIRST_STRIPE + 20,
    "kind": lambda size: FIRST_STRIPE + 28,
    "payload sum": lambda size: FIRST_STRIPE + 32,
    "stripe crc": lambda size: FIRST_STRIPE + 44,
    "first payload": lambda size: FIRST_PAYLOAD,
    "payload": lambda size: FIRST_PAYLOAD + 2_000,
    "middle": lambda size: size // 2,
    "two thirds": lambda size: 2 * size // 3,
    "directory": lambda size: size - FOOTER_BYTES - 30,
    "footer": lambda size: size - FOOTER_BYTES,
    "footer version": lambda size: size - FOOTER_BYTES + 8,
    "footer offset": lambda size: size - FOOTER_BYTES + 40,
    "last byte": lambda size: size - 1,
}

COARSE = ("magic", "stripe magic", "payload", "middle", "directory", "footer", "last byte")
CASES = [(place, "flip") for place in PLACES] + [(place, kind) for kind in ("zero", "cut") for place in COARSE]


def with_indexes(image: Image, segment: str, indexes: tuple[int, ...]) -> list[Path]:
    return [path for path in image.fragments(segment) if int(path.suffix[1:]) in indexes]


def open_segment(image: Image) -> str:
    """The one without a footer."""
    (found,) = {path.stem for path in image.fragments() if path.read_bytes()[-FOOTER_BYTES:][:8] != b"objfsEND"}
    return found


@pytest.mark.parametrize(("place", "kind"), CASES)
def test_damage_to_m_fragments_of_every_segment_costs_nothing(image: Image, place: str, kind: str) -> None:
    """Data and parity, another pair in each segment; a second opening finds what the first left."""
    for number, segment in enumerate(image.segments()):
        for path in with_indexes(image, segment, [(0, 5), (1, 2), (3, 4)][number % 3]):
            offset = PLACES[place](path.stat().st_size)
            {"flip": flip, "zero": zero, "cut": cut}[kind](path, offset)
    image.check()
    image.check()


@pytest.mark.parametrize("length", [1, 64, 5_000])
def test_garbage_behind_the_end_of_every_fragment_costs_nothing(image: Image, length: int) -> None:
    for path in image.fragments():
        extend(path, b"\xa5" * length)
    image.check()
    image.check()


def test_fragments_that_are_empty_or_gone_cost_nothing(image: Image) -> None:
    for segment in image.segments():
        for path in with_indexes(image, segment, (2,)):
            cut(path, 0)
        for path in with_indexes(image, segment, (4,)):
            path.unlink()
    image.check()
    image.check()


def test_fragments_swapped_between_nodes_cost_nothing(image: Image) -> None:
    """Index 0 stands where index 1 belongs, and the other way round."""
    for segment in image.segments():
        one, other = with_indexes(image, segment, (0, 1))
        swap(one, other)
    image.check()


def test_fragments_under_another_index_on_their_own_node_cost_nothing(image: Image) -> None:
    for segment in image.segments():
        for path in with_indexes(image, segment, (1, 3)):
            path.rename(path.with_suffix(f".{int(path.suffix[1:]) + 1}x"))
            shutil.copy(path.with_suffix(f".{int(path.suffix[1:]) + 1}x"), path.with_suffix(".5"))
    image.check()


def test_fragments_swapped_between_segments_cost_nothing(image: Image) -> None:
    one, other = image.segments()[:2]
    for index in (0, 1):
        swap(*with_indexes(image, one, (index,)), *with_indexes(image, other, (index,)))
    image.check()


def test_a_whole_frame_of_another_chunk_at_the_same_place_is_read_around(closed: Image) -> None:
    """Two segments with one chunk each, of one length: whole frames stand at the same place
    in both, and only the chunk's name tells them apart."""
    before = set(closed.segments())
    added = {}
    for number in range(2):

        async def work(number: int = number) -> None:
            async with open_store(closed.data) as store:
                added[f"same/{number}"] = os.urandom(65_600)
                await put(store, f"same/{number}", added[f"same/{number}"])

        run(work)
    one, other = set(closed.segments()) - before
    for index in (0, 3):
        swap(*with_indexes(closed, one, (index,)), *with_indexes(closed, other, (index,)))
    contents = closed.contents
    closed.contents = contents | added
    try:
        closed.check()
    finally:
        closed.contents = contents


def test_fragments_of_another_store_are_read_around(image: Image, tmp_path: Path) -> None:
    foreign = make_image(tmp_path)
    for segment, theirs in zip(image.segments(), [*foreign.segments(), *foreign.segments()], strict=False):
        for index in (0, 3):
            (mine,), (its,) = with_indexes(image, segment, (index,)), with_indexes(foreign, theirs, (index,))
            shutil.copy(its, mine)
    image.check()
    image.check()


@pytest.mark.parametrize("place", ["payload", "middle", "magic"])
def test_more_than_m_damaged_fragments_are_refused_by_name_and_kept(closed: Image, place: str) -> None:
    segment = closed.segments()[0]
    damaged = with_indexes(closed, segment, (0, 1, 2))
    for path in damaged:
        zero(path, PLACES[place](path.stat().st_size), 3_000)
    before = {path: path.read_bytes() for path in damaged}

    async def work() -> None:
        async with open_store(closed.data) as store:
            refused = await closed.right_or_refused(store)
            refusals = [refusal for key in closed.contents if (refusal := await refusal_of(store, key))]
            assert len(refusals) == refused > 0, "three fragments of a stripe are damaged"
            assert all(f"segment {segment}" in refusal and "of the 4 needed" in refusal for refusal in refusals)

    run(work)
    assert {path: path.read_bytes() for path in damaged} == before, "what can't be rebuilt is kept"


async def refusal_of(store: Store, key: str) -> str:
    try:
        await get(store, key)
    except Unreadable as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("place", "kind"), CASES)
def test_damage_under_an_open_store_is_never_served(killed: Image, place: str, kind: str) -> None:
    """Sealed segments while they are read; what this process has open is damaged too."""

    async def work() -> None:
        async with open_store(killed.data) as store:
            await killed.check_open(store)
            for segment in killed.segments():
                for path in with_indexes(killed, segment, (1, 4)):
                    offset = min(PLACES[place](path.stat().st_size), path.stat().st_size - 1)
                    {"flip": flip, "zero": zero, "cut": cut}[kind](path, offset)
            store._reader._cache = type(store._reader._cache)()  # what is decoded must be read again
            await killed.check_open(store)

    run(work)
    killed.check()


@pytest.mark.parametrize(("place", "kind"), CASES)
def test_an_open_segment_damaged_beyond_m_is_refused_never_wrong(killed: Image, place: str, kind: str) -> None:
    damaged = with_indexes(killed, open_segment(killed), (0, 2, 3))
    before = {path: path.read_bytes() for path in damaged}
    for path in damaged:
        {"flip": flip, "zero": zero, "cut": cut}[kind](path, PLACES[place](path.stat().st_size))
    stripes_hit = all(path.read_bytes()[FIRST_STRIPE:] != before[path][FIRST_STRIPE:] for path in damaged)

    async def refused_keys() -> set[str]:
        """Of all; what is read is right."""
        async with open_store(killed.data) as store:
            refused = {key for key in killed.contents if await refusal_of(store, key)}
            assert await killed.right_or_refused(store) == len(refused)
            return refused

    refused = run(refused_keys)
    assert refused <= {"third/70000", "third/300000", "third/2500000"}, "the rest lies elsewhere"
    assert bool(refused) == stripes_hit, "a file's header can be made anew, a stripe hit in three fragments cannot"
    assert run(refused_keys) == refused, "opening again neither loses more nor makes anything up"
