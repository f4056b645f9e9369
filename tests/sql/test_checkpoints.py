"""SQL stays exact when checkpoints take the journal away; `journal` goes back as far as its archives."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.care.checkpoint import checkpoint
from engine.care.collect import collect
from engine.changes import CreateBucket, DeleteKey, Origin, PutVersion, Rename, SetBucketVersioning, SetTags
from engine.store import Opening, Store, init_store, open_store
from engine.tables.client import tables_service
from engine.tables.server import serve_tables
from engine.types import Versioning

pytestmark = pytest.mark.anyio
ORIGIN = Origin(requester="test")
STATE = ["inventory", "chunks", "chunk_references", "segments", "fragments", "protection", "space", "nodes", "buckets"]
HISTORY = ["journal", "store_journal"]


async def write(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    if not store.keymap.buckets():
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await store.commit(CreateBucket("versioned"), ORIGIN)
        await store.commit(SetBucketVersioning("versioned", Versioning.ENABLED), ORIGIN)
    for number in range(25):
        bucket, key = rng.choice(["bucket", "versioned"]), f"key {rng.randrange(12)}"
        there = store.keymap.head(bucket, key)
        with store.pins.hold():
            if there is None or there.delete_marker or rng.random() < 0.5:
                writer = store.open_writer()
                await writer.write(rng.randbytes(rng.choice([0, 9, 4_000, 150_000])))
                await store.commit(PutVersion(bucket, key, await writer.finish(), etag=str(number)), ORIGIN)
            elif rng.random() < 0.4:
                await store.commit(SetTags(bucket, key, {"n": str(number)}), ORIGIN)
            elif rng.random() < 0.6:
                await store.commit(Rename(bucket, key, bucket, f"key {rng.randrange(12)}"), ORIGIN)
            else:
                await store.commit(DeleteKey(bucket, key), ORIGIN)


async def rows(store: Store, relations: list[str]) -> dict[str, list[Any]]:
    found = {}
    for name in relations:
        some = (await store.query(f"FROM {name}")).to_pylist(maps_as_pydicts="strict")
        found[name] = sorted((list(row.items()) for row in some), key=repr)
    return found


def forget(data: Path) -> None:
    for left in (data / "index").glob("tables.duckdb*"):
        left.unlink()


async def test_the_whole_history_is_read_back_from_archives_and_journal(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init_store(data)
    async with open_store(data, Opening.OWN) as store:
        for turn in range(3):
            await write(store, turn)
            await rows(store, ["space"])  # the tables follow from turn to turn
            await checkpoint(store._parts, force=True)
            assert store.keymap.journal_first_lsn() > 25 * turn
        await write(store, 9)
        followed = await rows(store, STATE + HISTORY)
        forget(data)
        assert await rows(store, STATE + HISTORY) == followed
        assert len(followed["journal"]) > 75
        assert any(("record_type", "DROP_JOURNAL") in row for row in followed["store_journal"])


async def test_tables_the_journal_has_left_behind_are_loaded_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init_store(data)
    async with open_store(data, Opening.OWN) as store:
        await write(store, 1)
        await rows(store, ["space"])
        left_behind = (data / "index" / "tables.duckdb").read_bytes()
        await write(store, 2)
        await checkpoint(store._parts, force=True)
        await write(store, 3)
        expected = await rows(store, STATE + HISTORY)
        forget(data)
        (data / "index" / "tables.duckdb").write_bytes(left_behind)
        assert await rows(store, STATE + HISTORY) == expected


async def test_history_that_is_kept_no_more_is_not_made_up(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init_store(data)
    async with open_store(data, Opening.OWN) as store:
        async with anyio.create_task_group() as tasks:  # these tables see it all
            service = tables_service(store._parts, store.load_tree)
            await tasks.start(partial(serve_tables, service, data / "index"))
            await write(store, 1)
            await checkpoint(store._parts, force=True, retention_days=0)
            await write(store, 2)
            expected = await rows(store, STATE)
            whole = (await rows(store, ["journal"]))["journal"]
            tasks.cancel_scope.cancel()
        for archive in data.glob("nodes/*/journal/*.archive"):
            archive.unlink()
        first = store.keymap.journal_first_lsn()
        forget(data)
        assert await rows(store, STATE) == expected
        kept = (await rows(store, ["journal"]))["journal"]
        begins = f"{first:016x}"
        assert 0 < len(kept) < len(whole)
        assert min(dict(row)["sequence_number"] for row in kept) >= begins
        # deletes and puts are told as they were; what was published before is taken as it is now
        told = [row for row in whole if dict(row)["sequence_number"] >= begins]
        missing = [row for row in told if row not in kept]
        assert all(dict(row)["record_type"] != "DELETE" or dict(row)["is_delete_marker"] for row in missing)


async def test_what_a_collection_moved_and_deleted_is_so_in_the_tables(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init_store(data)
    async with open_store(data, Opening.OWN) as store:
        async with anyio.create_task_group() as tasks:
            service = tables_service(store._parts, store.load_tree)
            await tasks.start(partial(serve_tables, service, data / "index"))
            await write(store, 1)
            for bucket in ("bucket", "versioned"):
                for version in store.keymap.list_versions(bucket).versions[::2]:
                    await store.commit(DeleteKey(bucket, version.key, version_id=version.version_id), ORIGIN)
            (before,) = (await store.query("FROM space")).to_pylist()
            assert before["unreferenced_bytes"] > 100_000
            await store.index.request_seal()
            await store._parts.plane.seal()
            await collect(store._parts, compact=True)
            (after,) = (await store.query("FROM space")).to_pylist()
            assert after["stored_bytes"] < before["stored_bytes"]
            assert after["unreferenced_bytes"] < before["unreferenced_bytes"]
            assert after["logical_bytes"] == before["logical_bytes"]
            followed = await rows(store, STATE + HISTORY)
            tasks.cancel_scope.cancel()
        forget(data)
        assert await rows(store, STATE + HISTORY) == followed
        assert any(("record_type", "DELETE_SEGMENTS") in row for row in followed["store_journal"])
