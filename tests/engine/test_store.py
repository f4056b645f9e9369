"""The facade over real directories: what a door relies on."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from engine.changes import CreateBucket, Origin, PutVersion
from engine.errors import NoSuchBucket, SecretUnsealable, StoreInUse, UnknownFormat
from engine.store import Opening, Store, init_store, open_store
from engine.types import Access, Content, Manifest, Version

ORIGIN = Origin(requester="test")
pytestmark = pytest.mark.anyio


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_store(tmp_path / "data")
    return tmp_path / "data"


async def put(store: Store, key: str, content: bytes, bucket: str = "bucket") -> Version:
    with store.pins.hold():
        writer = store.open_writer()
        for start in range(0, len(content), 300_000):
            await writer.write(content[start : start + 300_000])
        result = await store.commit(PutVersion(bucket, key, await writer.finish(), etag="e"), ORIGIN)
    assert result.version is not None
    return result.version


async def get(store: Store, manifest: Manifest) -> bytes:
    return b"".join([bytes(piece) async for piece in store.read(manifest)])


SIZES = [0, 1, 4096, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 1024 * 1024 + 1, 9_000_000]


async def test_every_size_class_comes_back_and_survives_reopening(data: Path) -> None:
    contents = {f"k{size}": random.Random(size).randbytes(size) for size in SIZES}
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        for key, content in contents.items():
            version = await put(store, key, content)
            assert await get(store, version.manifest) == content
    async with open_store(data) as store:
        for key, content in contents.items():
            head = store.keymap.head("bucket", key)
            assert head is not None
            assert await get(store, head.manifest) == content
        assert await store.fsck() == []


async def test_equal_content_is_stored_once_across_buckets(data: Path) -> None:
    content = random.Random(1).randbytes(5_000_000)
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await store.commit(CreateBucket("other"), ORIGIN)
        await put(store, "a", content)
        before = store.keymap.counters()["stored_bytes"]
        await put(store, "b", content, bucket="other")
        assert store.keymap.counters()["stored_bytes"] == before


async def test_reads_with_two_nodes_moved_away(data: Path) -> None:
    content = random.Random(2).randbytes(6_000_000)
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await put(store, "big", content)
        await put(store, "small", content[:100])
    for number in (2, 5):
        os.rename(data / "nodes" / str(number), data / f"away{number}")
    async with open_store(data) as store:
        for key, expected in (("big", content), ("small", content[:100])):
            head = store.keymap.head("bucket", key)
            assert head is not None
            assert await get(store, head.manifest) == expected
        version = await put(store, "new", content[::-1])
        assert await get(store, version.manifest) == content[::-1]
        segments = [segment for segment in store.keymap.segments() if not segment.size]
        assert [(segment.k, segment.m) for segment in segments] == [(2, 2)]


async def test_the_index_is_disposable(data: Path) -> None:
    content = random.Random(3).randbytes(2_000_000)
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await put(store, "big", content)
        await put(store, "small", b"small")
        listed = store.keymap.list_objects("bucket")
    shutil.rmtree(data / "index")
    async with open_store(data) as store:
        assert store.keymap.list_objects("bucket") == listed
        head = store.keymap.head("bucket", "big")
        assert head is not None
        assert await get(store, head.manifest) == content


async def test_rewrite_equals_the_same_edits_on_bytes(data: Path) -> None:
    seed = int(os.environ.get("OBJFS_TEST_SEED", "7"))
    rng = random.Random(seed)
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        expected = bytearray(rng.randbytes(3_000_000))
        manifest = (await put(store, "file", bytes(expected))).manifest
        for round_number in range(25):
            size = rng.choice([len(expected), rng.randrange(4_000_000)])
            ranges = sorted({rng.randrange(size + 1) for _ in range(rng.randrange(8))})
            dirty = []
            for start, limit in zip(ranges, [*ranges[1:], size], strict=False):
                length = min(limit - start, rng.choice([1, 4096, 70_000, 500_000]))
                if length:
                    dirty.append((start, rng.randbytes(length)))
            expected = expected[:size] + bytes(max(size - len(expected), 0))
            for start, piece in dirty:
                expected[start : start + len(piece)] = piece
            with store.pins.hold():
                content: Content = await store.rewrite(manifest, size, dirty)
                version = (await store.commit(PutVersion("bucket", "file", content, etag="e"), ORIGIN)).version
            assert version is not None
            manifest = version.manifest
            assert await get(store, manifest) == expected, f"seed {seed} round {round_number}"


async def test_an_error_leaves_an_open_store_as_itself(data: Path) -> None:
    with pytest.raises(NoSuchBucket):
        async with open_store(data) as store:
            store.keymap.bucket("nowhere")


async def test_a_store_of_an_unknown_format_is_refused_and_left_as_it_is(data: Path) -> None:
    path = data / "store.json"
    newer = path.read_text().replace('"format": 1', '"format": 99')
    path.write_text(newer)
    with pytest.raises(UnknownFormat, match=r"store\.json has format 99"):
        async with open_store(data):
            pass
    assert path.read_text() == newer


async def test_a_damaged_keymap_is_set_aside_and_built_again(data: Path) -> None:
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await put(store, "key", b"content")
    keymap = data / "index" / "keymap.sqlite"
    keymap.write_bytes(b"no database" * 1000)
    async with open_store(data) as store:
        head = store.keymap.head("bucket", "key")
        assert head is not None and await get(store, head.manifest) == b"content"
        assert await store.fsck() == []


async def test_two_processes_cannot_own_one_store_and_the_second_joins(data: Path) -> None:
    async with open_store(data) as first:
        await first.commit(CreateBucket("bucket"), ORIGIN)
        with pytest.raises(StoreInUse, match="open in another process"):
            async with open_store(data, Opening.OWN):
                pass
        content = random.Random(4).randbytes(200_000)
        async with open_store(data) as second:
            await put(second, "joined", content)
        head = first.keymap.head("bucket", "joined")
        assert head is not None and await get(first, head.manifest) == content
    assert (await _segments(data)) == ["sealed"]


async def _segments(data: Path) -> list[str]:
    async with open_store(data) as store:
        return [str(segment.state) for segment in store.keymap.segments()]


async def test_users_are_kept_sealed_and_come_back_without_the_index(data: Path) -> None:
    async with open_store(data) as store:
        made = await store.users.add("ann", access=Access.READ)
        assert store.users.lookup(made.access_key) == made
    secret = made.secret_key.encode()
    assert not [path for path in data.rglob("*") if path.is_file() and secret in path.read_bytes()]
    shutil.rmtree(data / "index")
    async with open_store(data) as store:
        assert store.users.lookup(made.access_key) == made
    (data / "store.key").unlink()
    async with open_store(data) as store:
        with pytest.raises(SecretUnsealable, match=r"store\.key is missing"):
            store.users.lookup(made.access_key)
        assert store.users.lookup(store.users.root.access_key) is not None
