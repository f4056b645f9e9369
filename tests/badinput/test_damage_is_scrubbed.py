"""Damage, then scrub and repair: afterwards everything is whole again, so that any m other
nodes may go."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import pytest

from engine.care.repair import repair
from engine.care.scrub import scrub
from engine.store import Store, open_store
from tests.badinput.test_bad_fragments import COARSE, PLACES, with_indexes
from tests.badinput.world import Image, cut, extend, flip, run, swap, zero

KINDS = {"flip": flip, "zero": zero, "cut": cut}


def damage_fragments(image: Image, place: str, kind: str) -> None:
    for number, segment in enumerate(image.segments()):
        for path in with_indexes(image, segment, [(0, 5), (1, 2), (3, 4)][number % 3]):
            KINDS[kind](path, PLACES[place](path.stat().st_size))


async def scrubbed(store: Store) -> None:
    parts = store._parts
    await scrub(parts, bytes_per_second=None)
    with anyio.fail_after(60):
        while (await store.status())["under_redundancy"]:
            await repair(parts, bytes_per_second=None)
            await anyio.sleep(0.2)
    assert await store.fsck() == []


def whole_again(image: Image) -> None:
    """Scrub and repair; then the same data must be there with any of these pairs gone."""
    contents = image.contents

    async def work() -> None:
        async with open_store(image.data) as store:
            await image.check_open(store)
            await scrubbed(store)

    run(work)
    shutil.rmtree(image.data / "index")
    for pair in ((1, 2), (3, 4), (5, 6)):
        aside = [image.node(number).rename(image.data / f"aside{number}") for number in pair]
        image.check(whole=False)
        for number, path in zip(pair, aside, strict=True):
            path.rename(image.node(number))
    assert contents


@pytest.mark.parametrize("place", COARSE)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_fragments_are_whole_after_a_scrub(image: Image, place: str, kind: str) -> None:
    damage_fragments(image, place, kind)
    whole_again(image)


@pytest.mark.parametrize("kind", ["swapped nodes", "swapped segments", "extended", "gone"])
def test_misplaced_fragments_are_whole_after_a_scrub(image: Image, kind: str) -> None:
    segments = image.segments()
    for segment in segments:
        one, other = with_indexes(image, segment, (0, 4))
        match kind:
            case "swapped nodes":
                swap(one, other)
            case "extended":
                extend(one, b"x" * 5_000)
            case "gone":
                one.unlink()
                other.unlink()
    if kind == "swapped segments":
        for index in (1, 3):
            swap(*with_indexes(image, segments[0], (index,)), *with_indexes(image, segments[1], (index,)))
    whole_again(image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 48, 3_000, -200])
def test_damaged_journal_replicas_are_whole_after_a_scrub(image: Image, kind: str, place: int) -> None:
    for replicas in image.journals().values():
        for path in replicas[1:]:
            damage(path, kind, place)
    whole_again(image)
    replicas_agree(image)


def damage(path: Path, kind: str, place: int) -> None:
    KINDS[kind](path, place if place >= 0 else path.stat().st_size + place)


def replicas_agree(image: Image) -> None:
    """Three are the same and hold the most; a fourth may be left short."""
    for name, replicas in image.journals().items():
        contents = [path.read_bytes() for path in replicas]
        longest = max(contents, key=len)
        assert contents.count(longest) >= 3, f"{name} has fewer than three whole replicas"
        assert all(longest.startswith(content) for content in contents), f"{name} differs between its replicas"
