"""A collection that ends at any of its crash sites: the store opens, nothing that is named
is missing, and the next collection comes to the same end."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_collection import content_of, delete, get, node_bytes, opened, put, segment_bytes

from engine.care.collect import collect
from engine.crash_sites import CrashSite, watch
from engine.store import init_store

pytestmark = pytest.mark.anyio

SITES = [
    CrashSite.COLLECTION_CONDEMNED,
    CrashSite.COLLECTION_MOVED,
    CrashSite.COLLECTION_MARKED,
    CrashSite.SEGMENTS_DELETED,
    CrashSite.FRAGMENT_DELETED,
    CrashSite.JOURNAL_ROTATED,
    CrashSite.JOURNAL_ARCHIVED,
    CrashSite.JOURNAL_DROPPED,
    CrashSite.JOURNAL_PARTLY_DELETED,
]


class Ended(Exception):
    pass


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("times", [1, 2])
async def test_a_collection_that_ended_anywhere_is_taken_up_again(tmp_path: Path, site: CrashSite, times: int) -> None:
    data = tmp_path / "data"
    init_store(data, k=2, m=1)
    kept = {f"k{number}": content_of(number, size) for number, size in enumerate((900_000, 30_000, 1_200_000, 200))}
    left = times

    def end(reached: CrashSite) -> None:
        nonlocal left
        left -= reached is site
        if reached is site and left == 0:
            raise Ended

    async with opened(data) as store:
        for key, content in kept.items():
            await put(store, key, content)
            await put(store, key + "-gone", content_of(1000 + len(content), len(content)))
        await store.parts.plane.seal()
        await put(store, "dead", content_of(50))
        for key in [*(key + "-gone" for key in kept), "dead"]:
            await delete(store, key)
        with watch(end):
            try:
                await collect(store.parts, compact=True)
            except Ended:
                pass
            else:
                assert left > 0, "not reached so often"
    async with opened(data) as store:
        for key, content in kept.items():
            assert await get(store, key) == content
        await collect(store.parts, compact=True)
        for key, content in kept.items():
            assert await get(store, key) == content
        assert store.keymap.condemned() == {}
        assert await store.fsck() == []
        live = sum(map(len, kept.values()))
        assert segment_bytes(data) < live * 1.5 * 1.1 + 200_000, node_bytes(data)
        for key in kept:
            await delete(store, key)
        await collect(store.parts)
        assert segment_bytes(data) == 0 and store.keymap.counters()["chunks"] == 0
    assert not list(data.glob("nodes/*/quarantine/*"))
