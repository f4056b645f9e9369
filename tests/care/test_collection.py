"""Collection and compaction over real directories: what nothing names goes, what anything
names or holds stays, and the bytes come back."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from engine.care.collect import collect
from engine.changes import CreateBucket, DeleteKey, Origin, PutVersion
from engine.store import Store, init_store, open_store
from engine.types import Version

ORIGIN = Origin(requester="test")
SEED = int(os.environ.get("OBJFS_TEST_SEED", "20"))
pytestmark = pytest.mark.anyio


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_store(tmp_path / "data", k=2, m=1)
    return tmp_path / "data"


@asynccontextmanager
async def opened(data: Path) -> AsyncIterator[Store]:
    async with open_store(data) as store:
        if not store.keymap.buckets():
            await store.commit(CreateBucket("bucket"), ORIGIN)
        yield store


async def put(store: Store, key: str, content: bytes, bucket: str = "bucket") -> Version:
    with store.pins.hold():
        writer = store.open_writer()
        for start in range(0, len(content), 300_000):
            await writer.write(content[start : start + 300_000])
        result = await store.commit(PutVersion(bucket, key, await writer.finish(), etag="e"), ORIGIN)
    assert result.version is not None
    return result.version


async def get(store: Store, key: str) -> bytes:
    version = store.keymap.head("bucket", key)
    assert version is not None
    return b"".join([bytes(piece) async for piece in store.read(version.manifest)])


async def delete(store: Store, key: str, bucket: str = "bucket") -> None:
    await store.commit(DeleteKey(bucket, key), ORIGIN)


def content_of(seed: int, size: int = 1_500_000) -> bytes:
    return random.Random(SEED * 1000 + seed).randbytes(size)


def segment_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("nodes/*/segments/*/*"))


async def test_deleting_everything_frees_every_segment(data: Path) -> None:
    async with opened(data) as store:
        for number in range(4):
            await put(store, f"k{number}", content_of(number))
        for number in range(4):
            await delete(store, f"k{number}")
        before = segment_bytes(data)
        result = await collect(store.parts)
        assert result.freed_bytes > 4 * 1_500_000 * 3 // 2
        assert result.freed_bytes >= before
        assert segment_bytes(data) == 0
        assert list(store.keymap.segments()) == []
        assert await store.fsck() == []
        again = await collect(store.parts)
        assert (again.freed_bytes, again.segments, again.chunks) == (0, 0, 0)


async def test_what_is_named_stays_readable(data: Path) -> None:
    async with opened(data) as store:
        for number in range(4):
            await put(store, f"k{number}", content_of(number))
        await delete(store, "k1")
        before = segment_bytes(data)
        await collect(store.parts)
        assert segment_bytes(data) >= before  # one segment holds all four: gc alone frees nothing
        await collect(store.parts, compact=True)
        assert segment_bytes(data) < before * 0.8
        for number in (0, 2, 3):
            assert await get(store, f"k{number}") == content_of(number)
        assert await store.fsck() == []


async def test_small_content_and_the_journal_go_too(data: Path) -> None:
    small = {f"s{number}": content_of(number, 20_000) for number in range(60)}
    async with opened(data) as store:
        empty = node_bytes(data)
        for key, content in small.items():
            await put(store, key, content)
        for number in range(0, 60, 2):
            await delete(store, f"s{number}")
        result = await collect(store.parts)
        assert result.journal_files and result.chunks == 30
        for number in range(1, 60, 2):
            assert await get(store, f"s{number}") == small[f"s{number}"]
        for number in range(1, 60, 2):
            await delete(store, f"s{number}")
        await collect(store.parts)
        assert store.keymap.counters()["chunks"] == 0
        assert node_bytes(data) < empty + 100_000
        again = await collect(store.parts)
        assert (again.freed_bytes, again.chunks) == (0, 0)
        assert await store.fsck() == []
    async with opened(data) as store:
        assert store.keymap.list_objects("bucket").versions == []
        await put(store, "after", small["s1"])
        assert await get(store, "after") == small["s1"]


async def test_a_dry_run_says_per_bucket_what_would_go_and_changes_nothing(data: Path) -> None:
    async with opened(data) as store:
        await store.commit(CreateBucket("other"), ORIGIN)
        await put(store, "gone", content_of(1))
        await put(store, "gone", content_of(2), bucket="other")
        await put(store, "gone too", content_of(3, 1000))
        for bucket, key in (("bucket", "gone"), ("bucket", "gone too"), ("other", "gone")):
            await delete(store, key, bucket=bucket)
        await store.parts.plane.seal()
        lsn, before = store.keymap.applied_lsn(), node_bytes(data)
        said = await collect(store.parts, dry_run=True)
        assert (store.keymap.applied_lsn(), node_bytes(data)) == (lsn, before)
        assert set(said.buckets) == {"bucket", "other"} and said.buckets["bucket"] > said.buckets["other"] > 1_500_000
        done = await collect(store.parts)
        assert done.buckets == said.buckets and done.chunks == said.chunks
        assert 0 <= done.freed_bytes - said.freed_bytes < 2000  # a record or two of the collection's own


def node_bytes(data: Path) -> int:
    """Of everything on the nodes but their reserve."""
    files = [path for path in data.glob("nodes/*/**/*") if path.is_file() and path.name != "reserve"]
    return sum(path.stat().st_size for path in files)


async def test_compaction_widens_what_was_cut_over_fewer_nodes(tmp_path: Path) -> None:
    data = tmp_path / "wide"
    init_store(data, k=4, m=2)
    contents = {f"k{number}": content_of(number) for number in range(4)}
    for number in (2, 5):
        (data / "nodes" / str(number)).rename(tmp_path / f"away{number}")
    async with opened(data) as store:
        for key, content in contents.items():
            await put(store, key, content)
    for number in (2, 5):
        (tmp_path / f"away{number}").rename(data / "nodes" / str(number))
    async with opened(data) as store:
        assert {segment.k for segment in store.keymap.segments()} == {2}
        before = segment_bytes(data)
        with anyio.fail_after(60):  # until the nodes that were away have what they missed
            while {(segment.k, segment.m) for segment in store.keymap.segments()} != {(4, 2)}:
                await collect(store.parts, compact=True)
                await anyio.sleep(0.2)
        assert segment_bytes(data) < before * 0.8  # 6/4 of the content instead of 4/2
        for key, content in contents.items():
            assert await get(store, key) == content
        assert await store.fsck() == []


async def test_compaction_leaves_what_is_full_and_what_it_could_not_shrink(data: Path) -> None:
    async with opened(data) as store:
        await put(store, "full", content_of(1, 6_000_000))
        await store.parts.plane.seal()
        await put(store, "tiny", content_of(2, 70_000))
        await store.parts.plane.seal()
        names = {segment.segment_id for segment in store.keymap.segments()}
        for _ in range(2):
            result = await collect(store.parts, compact=True)
            assert (result.segments, result.moved_bytes) == (0, 0)
        assert {segment.segment_id for segment in store.keymap.segments()} == names
