"""The mark alone, over an index in memory: what it takes for named, and when it refuses to say."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.care import marking as marking_module
from engine.care.marking import SCRATCH_NAME, Mark, marking
from engine.changes import (
    Change,
    CommitResult,
    CreateBucket,
    CreateUpload,
    DeleteKey,
    Origin,
    PutPart,
    PutVersion,
    SetBucketVersioning,
)
from engine.errors import CollectionStopped, FragmentCorrupt
from engine.frames import encode_frame
from engine.index.local import LocalIndex
from engine.index.opening import open_local_index
from engine.interfaces import FeedBatch
from engine.manifests import encode_manifest
from engine.nodes.memory import MemoryNode
from engine.opening import Parts
from engine.pins import Pins
from engine.types import ChunkEntry, Content, Entry, HoleEntry, Manifest, NewChunk, SliceEntry, TreeEntry, Versioning

pytestmark = pytest.mark.anyio


def chunk_id(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def chunk(text: bytes) -> NewChunk:
    return NewChunk(chunk_id(text), len(text), frame=encode_frame(chunk_id(text), text))


def flat(*texts: bytes) -> Content:
    return Content(Manifest([ChunkEntry(chunk_id(text), len(text)) for text in texts]), [chunk(text) for text in texts])


def node(*entries: Entry) -> tuple[TreeEntry, bytes]:
    """A node of a manifest's tree, and the chunk it is."""
    manifest = Manifest(list(entries))
    encoded = encode_manifest(manifest)
    return TreeEntry(chunk_id(encoded), len(encoded), manifest.length), encoded


@dataclass
class Lab:
    index: LocalIndex
    parts: Parts

    async def commit(self, change: Change) -> CommitResult:
        return await self.index.commit(change, Origin("test", os.urandom(8).hex()))

    async def put(self, key: str, content: Content) -> CommitResult:
        return await self.commit(PutVersion("bucket", key, content, etag="e"))

    async def named(self, mark: Mark) -> set[bytes]:
        """Ids of the keymap's chunks that are marked; the others are dead."""
        stored = [one for container in self.index.keymap.containers() for one in self.index.keymap.chunks_in(container)]
        named, dead = await mark.split(stored)
        assert sorted(one.chunk_id for one in [*named, *dead]) == sorted(one.chunk_id for one in stored)
        return {one.chunk_id for one in named}


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[Lab]:
    nodes = {f"node{number}": MemoryNode(f"node{number}") for number in (1, 2, 3)}
    async with open_local_index(tmp_path / "index", nodes, store_id="5a" * 16, m=1, missing={}) as index:
        # Every chunk rides in the journal: the data plane is never asked.
        lab = Lab(index, cast(Parts, SimpleNamespace(data=tmp_path, index=index, plane=None)))
        await lab.commit(CreateBucket("bucket"))
        yield lab


async def test_versions_old_and_new_and_parts_name_their_chunks(tmp_path: Path) -> None:
    async with opened(tmp_path) as lab:
        await lab.put("overwritten", flat(b"nobody's any more"))
        await lab.put("overwritten", flat(b"one", b"two"))
        await lab.put("deleted", flat(b"nobody's either", b"two"))
        await lab.commit(DeleteKey("bucket", "deleted"))
        await lab.commit(SetBucketVersioning("bucket", Versioning.ENABLED))
        await lab.put("kept", flat(b"old"))
        await lab.put("kept", flat(b"newer"))
        await lab.commit(DeleteKey("bucket", "kept"))
        upload = await lab.commit(CreateUpload("bucket", "large"))
        await lab.commit(PutPart("bucket", "large", str(upload.upload_id), 1, flat(b"part"), hashlib.md5().digest()))
        sliced = Manifest([HoleEntry(5), SliceEntry(chunk_id(b"cut"), 3, 1, 1)])
        await lab.put("sliced", Content(sliced, [chunk(b"cut")]))
        async with marking(lab.parts) as mark:
            expected = {chunk_id(text) for text in (b"one", b"two", b"old", b"newer", b"part", b"cut")}
            assert await lab.named(mark) == expected
            assert mark.lsn == lab.index.keymap.applied_lsn()


async def test_a_tree_names_its_nodes_and_all_they_lead_to(tmp_path: Path) -> None:
    async with opened(tmp_path) as lab:
        texts = [b"leaf %d" % number for number in range(3)]
        leaves = [ChunkEntry(chunk_id(text), len(text)) for text in texts]
        lower, lower_bytes = node(*leaves[:2])
        upper, upper_bytes = node(lower, leaves[2])
        new = [chunk(text) for text in (*texts, lower_bytes, upper_bytes)]
        await lab.put("tree", Content(Manifest([upper]), new))
        await lab.put("same node", Content(Manifest([lower])))
        await lab.put("gone", flat(b"dead"))
        await lab.commit(DeleteKey("bucket", "gone"))
        async with marking(lab.parts) as mark:
            assert await lab.named(mark) == {one.chunk_id for one in new}


async def test_what_is_published_later_is_added_even_if_it_is_gone_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as lab:
        for number in range(3):
            await lab.put(f"gone {number}", flat(b"chunk %d" % number))
            await lab.commit(DeleteKey("bucket", f"gone {number}"))
        async with marking(lab.parts) as mark:
            assert await lab.named(mark) == set()
            begun = mark.lsn
            assert await mark.extend() == begun, "nothing happened"
            tree, encoded = node(ChunkEntry(chunk_id(b"chunk 2"), 7))
            await lab.put("again", Content(Manifest([ChunkEntry(chunk_id(b"chunk 0"), 7)])))
            await lab.put("in a tree", Content(Manifest([tree]), [chunk(encoded)]))
            await lab.commit(DeleteKey("bucket", "again"))
            last = await lab.commit(DeleteKey("bucket", "in a tree"))
            assert await lab.named(mark) == set(), "it does not follow by itself"
            assert await mark.extend() == last.lsn
            assert await lab.named(mark) == {chunk_id(b"chunk 0"), chunk_id(b"chunk 2"), tree.chunk_id}


async def test_what_a_process_holds_is_named_as_long_as_it_lives(tmp_path: Path) -> None:
    async with opened(tmp_path) as lab:
        for key in ("held", "let go"):
            await lab.put(key, flat(key.encode()))
            await lab.commit(DeleteKey("bucket", key))
        pins = Pins(tmp_path / "index", lambda: 0)
        pins.keep([chunk_id(b"held"), chunk_id(b"never stored")])
        async with marking(lab.parts) as mark:
            assert await lab.named(mark) == {chunk_id(b"held")}
        pins.close()
        async with marking(lab.parts) as mark:
            assert await lab.named(mark) == set()


async def test_pages_of_every_size_lead_to_the_same_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MANIFESTS_AT_ONCE", "TREES_AT_ONCE", "IDS_AT_ONCE"):
        monkeypatch.setattr(marking_module, limit, 2)
    async with opened(tmp_path) as lab:
        expected = set()
        for number in range(7):
            leaf = b"leaf %d" % number
            tree, encoded = node(ChunkEntry(chunk_id(leaf), len(leaf)))
            await lab.put(f"key {number}", Content(Manifest([tree]), [chunk(leaf), chunk(encoded)]))
            expected |= {chunk_id(leaf), tree.chunk_id}
        async with marking(lab.parts) as mark:
            assert await lab.named(mark) == expected


async def test_a_named_chunk_the_keymap_does_not_know_stops_collection(tmp_path: Path) -> None:
    async with opened(tmp_path) as lab:
        await lab.put("key", flat(b"there", b"lost"))
        with sqlite3.connect(tmp_path / "index" / "keymap.sqlite") as keymap:
            deleted = keymap.execute("DELETE FROM chunks WHERE chunk_id = ?", (chunk_id(b"lost"),)).rowcount
        keymap.close()
        assert deleted == 1
        with pytest.raises(CollectionStopped, match=f"chunk {chunk_id(b'lost').hex()} is named but the index does not"):
            async with marking(lab.parts):
                pytest.fail("it is not known what is named")
        assert not (tmp_path / "index" / SCRATCH_NAME).exists()


async def test_a_tree_that_cannot_be_read_stops_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as lab:
        tree, encoded = node(ChunkEntry(chunk_id(b"leaf"), 4))
        await lab.put("key", Content(Manifest([tree]), [chunk(b"leaf"), chunk(encoded)]))

        async def rotten(*_: object) -> bytes:
            raise FragmentCorrupt("it is rotten")

        monkeypatch.setattr(lab.index, "read_frame", rotten)
        with pytest.raises(CollectionStopped, match=r"can't be read .*rotten.*nothing was deleted; run objfs repair"):
            async with marking(lab.parts):
                pytest.fail("it is not known what the tree names")


async def test_a_journal_that_leaves_something_out_stops_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as lab:
        async with marking(lab.parts) as mark:
            for number in range(3):
                await lab.put(f"key {number}", flat(b"chunk %d" % number))
            true_feed = lab.index.subscribe

            async def gapped(**arguments: Any) -> AsyncIterator[tuple[FeedBatch, Any]]:
                async for batch, confirm in true_feed(**arguments):
                    records = [one for one in batch.records if one.lsn != arguments["from_lsn"]]
                    yield FeedBatch(batch.first_lsn, batch.last_lsn, records, batch.touched), confirm

            monkeypatch.setattr(lab.index, "subscribe", gapped)
            with pytest.raises(CollectionStopped, match="does not tell what happened between LSN"):
                await mark.extend()

            async def dropping(**arguments: Any) -> AsyncIterator[tuple[FeedBatch, Any]]:
                async for batch, confirm in true_feed(**arguments):
                    yield FeedBatch(batch.first_lsn, batch.last_lsn, [], [], dropped=True), confirm

            monkeypatch.setattr(lab.index, "subscribe", dropping)
            with pytest.raises(CollectionStopped, match="does not tell what happened after LSN"):
                await mark.extend()
            monkeypatch.setattr(lab.index, "subscribe", true_feed)
            assert await mark.extend() == lab.index.keymap.applied_lsn(), "what was missing can be asked for again"
            assert await lab.named(mark) == {chunk_id(b"chunk %d" % number) for number in range(3)}


async def test_the_scratch_of_a_killed_process_is_not_in_the_way_and_none_is_left(tmp_path: Path) -> None:
    async with opened(tmp_path) as lab:
        scratch = tmp_path / "index" / SCRATCH_NAME
        for suffix in ("", "-journal"):
            scratch.with_name(scratch.name + suffix).write_bytes(b"half a database")
        await lab.put("key", flat(b"text"))
        async with marking(lab.parts) as mark:
            assert await lab.named(mark) == {chunk_id(b"text")}
            assert scratch.exists()
        assert not list(scratch.parent.glob(f"{SCRATCH_NAME}*"))
