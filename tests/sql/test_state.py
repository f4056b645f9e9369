"""Tables made from the keymap's state say what those that followed every record say."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from sql_lab import Lab, content_of, memory_nodes, opened
from sql_world import World

from engine.changes import CreateBucket, CreateUpload, PutPart, PutVersion, Record
from engine.errors import Unreadable
from engine.manifests import encode_manifest
from engine.tables.schema import TABLES, VIEWS
from engine.types import Content, Manifest, NodeState, TreeEntry

pytestmark = pytest.mark.anyio
SEEDS = int(os.environ.get("OBJFS_TEST_SEEDS", "3"))
STEPS = 200
HERE = (NodeState.HEALTHY, NodeState.DRAINING)
INTERNAL = ("tables_state", "journal_", "past_", "segment_states")
RELATIONS = [name for name in [*TABLES, *VIEWS] if not name.startswith(INTERNAL)]


class Holder:
    """The tables ask for trees before there is a world to have them."""

    def __init__(self) -> None:
        self.world: World | None = None

    async def load_tree(self, entry: TreeEntry) -> Any:
        assert self.world is not None
        return await self.world.load_tree(entry)


async def all_rows(lab: Lab) -> dict[str, list[Any]]:
    found = {}
    for name in RELATIONS:
        rows = await lab.rows(f"FROM {name}")
        found[name] = sorted((list(row.items()) for row in rows), key=repr)
    return found


async def assert_protection_is_right(world: World) -> None:
    """losses_left, live and dead bytes against a computation over the keymap."""
    keymap, lab = world.index.keymap, world.lab
    away = sum(node.state not in HERE for node in keymap.nodes())
    here = {node.node_id for node in keymap.nodes() if node.state in HERE}
    journal = max(2 - away, -1)
    left: dict[int, int] = {}
    for segment in keymap.segments():
        whole = [i for i, node in enumerate(segment.node_ids) if node in here and i not in segment.fragments_lost]
        left[segment.segment_id] = len(whole) - segment.k
    of_chunk: dict[bytes, tuple[int, int]] = {}
    full = {segment.segment_id: segment.m for segment in keymap.segments()}
    live: dict[int, int] = {}
    dead: dict[int, int] = {}
    unreferenced, named = 0, world.named()
    for container in keymap.containers():
        for chunk in keymap.chunks_in(container):
            of_chunk[chunk.chunk_id] = (left[container], full[container]) if container > 0 else (journal, 2)
            counts = live if chunk.chunk_id in named else dead
            counts[container] = counts.get(container, 0) + chunk.stored
            unreferenced += 0 if chunk.chunk_id in named else chunk.stored
    expected = {}
    with keymap.snapshot() as reader:
        for bucket in reader.buckets():
            for version in reader.all_versions(bucket.name):
                if not version.delete_marker:
                    chunks = [of_chunk[chunk_id] for chunk_id in world.chunks_of(version.manifest)]
                    losses = min((losses for losses, _ in chunks), default=journal)
                    at_risk = sum(losses < most for losses, most in chunks)
                    expected[(version.bucket, version.key, version.version_id)] = (losses, at_risk)
    rows = await lab.rows("FROM protection")
    assert {
        (row["bucket"], row["key"], row["version_id"]): (row["losses_left"], row["at_risk_chunks"]) for row in rows
    } == expected
    assert {row["chunk_id"]: row["losses_left"] for row in await lab.rows("FROM chunk_protection")} == {
        chunk_id.hex(): losses for chunk_id, (losses, _) in of_chunk.items()
    }
    assert {
        row["segment_id"]: (row["losses_left"], row["live_bytes"], row["dead_bytes"], row["is_condemned"])
        for row in await lab.rows("FROM segments")
    } == {
        f"{s.segment_id:016x}": (
            left[s.segment_id],
            live.get(s.segment_id, 0),
            dead.get(s.segment_id, 0),
            bool(s.condemned_lsn),
        )
        for s in keymap.segments()
    }
    (space,) = await lab.rows("FROM space")
    assert space["unreferenced_bytes"] == unreferenced
    with keymap.snapshot() as reader:
        assert space["unique_bytes"] == sum(c.length for c in reader.all_chunks() if c.chunk_id in named)
    counters = keymap.counters()
    assert (space["chunks"], space["stored_bytes"]) == (counters["chunks"], counters["stored_bytes"])


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_tables_from_the_keymap_equal_tables_that_followed_every_record(tmp_path: Path, seed: int) -> None:
    nodes, holder = memory_nodes(), Holder()
    kept: list[Record] = []

    async def archives(from_lsn: int) -> AsyncIterator[list[Record]]:
        yield [record for record in kept if record.lsn >= from_lsn]

    async with opened(tmp_path, nodes, m=2, load_tree=holder.load_tree) as lab:
        holder.world = world = World(lab, seed)
        await world.begin()
        for step in range(STEPS):
            change = await world.step()
            if world.rng.random() < 0.1:
                try:
                    await assert_protection_is_right(world)
                except AssertionError as error:
                    raise AssertionError(f"seed {seed}, step {step}, after {change}") from error
            if step == STEPS // 2:
                await world.drop_journal()
        await assert_protection_is_right(world)
        followed = await all_rows(lab)
        last = lab.index.keymap.applied_lsn()
        async for batch, _ in lab.index.subscribe(subscriber_id="test", confirms=False, from_lsn=1):
            kept += batch.records
            if batch.last_lsn == last:
                break
        assert lab.index.keymap.journal_first_lsn() > 1
    assert world.refused < STEPS * 0.7
    assert {row[1][1] for row in followed["store_journal"]} >= {"DROP_JOURNAL", "CONDEMN", "SET_NODE"}
    (tmp_path / "index" / "tables.duckdb").unlink()
    async with opened(tmp_path, nodes, m=2, load_tree=holder.load_tree, archives=archives) as lab:
        loaded = await all_rows(lab)
    for name in RELATIONS:
        assert loaded[name] == followed[name], name


async def test_a_manifest_that_could_not_be_read_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.tables.service.MEND_SECONDS", 0.05)
    leaf, other = content_of(b"leaf" * 50), content_of(b"other" * 50)
    node = Manifest([*leaf.manifest.entries, *other.manifest.entries])
    text = encode_manifest(node)
    (chunk,) = content_of(text).new_chunks
    tree = Manifest([TreeEntry(chunk.chunk_id, len(text), node.length)])
    readable = False

    async def load_tree(entry: TreeEntry) -> Manifest:
        if not readable:
            raise Unreadable("two nodes too many are away")
        return node

    select = "SELECT length, is_tree FROM chunk_references ORDER BY upload_id NULLS FIRST, ordinal"
    as_read = [(0, True), (200, False), (250, False)]
    async with opened(tmp_path, memory_nodes(), load_tree=load_tree) as lab:
        await lab.commit(CreateBucket("bbb"))
        content = Content(tree, [chunk, *leaf.new_chunks, *other.new_chunks])
        await lab.commit(PutVersion("bbb", "k", content, "etag"))
        upload_id = (await lab.commit(CreateUpload("bbb", "part"))).upload_id
        assert upload_id is not None
        await lab.commit(PutPart("bbb", "part", upload_id, 3, content, bytes(16)))
        assert [tuple(row.values()) for row in await lab.rows(select)] == [(node.length, True)] * 2
        readable = True
        with anyio.fail_after(20):
            while len(await lab.rows(select)) < 6:  # noqa: ASYNC110  # nothing tells but the rows
                await anyio.sleep(0.05)
        assert [tuple(row.values()) for row in await lab.rows(select)] == as_read * 2


async def test_tables_that_fall_out_of_the_feed_for_good_are_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, memory_nodes()) as lab:
        await lab.commit(CreateBucket("bbb"))
        assert len(await lab.rows("FROM buckets")) == 1
        subscribe, falls = lab.index.subscribe, []

        async def falling(*, subscriber_id: str, confirms: bool, from_lsn: int | None = None) -> AsyncIterator[Any]:
            async for batch, confirm in subscribe(subscriber_id=subscriber_id, confirms=confirms, from_lsn=from_lsn):
                if len(falls) < 8:
                    falls.append(batch.first_lsn)
                    yield msgspec.structs.replace(batch, records=[], touched=[], dropped=True), confirm
                    return
                yield batch, confirm

        monkeypatch.setattr(lab.index, "subscribe", falling)
        lab.service._session.cancel()  # the next session follows a feed that drops it
        for number in range(5):
            await lab.commit(CreateBucket(f"bucket{number}"))
            assert len(await lab.rows("FROM buckets")) == number + 2
        assert falls
