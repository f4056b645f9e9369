"""Checkpoints over real directories: the journal starts anew and nothing is lost, wherever
they are interrupted and whatever node is away meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from crash_in_checkpoint import KILLED
from index_world import check, dump, fill, fill_with_everything, forget_index, get, node_files, put

from engine import limits
from engine.care.checkpoint import checkpoint, checkpoint_due, drop_journal_before
from engine.crash_sites import CrashSite
from engine.errors import CollectionStopped, Unreadable
from engine.journal import archive
from engine.keymap.schema import KeymapDamaged
from engine.store import Store, init_store, open_store
from engine.types import JournalLocation

pytestmark = pytest.mark.anyio


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_store(tmp_path / "data")
    return tmp_path / "data"


async def until(store: Store, holds: Callable[[dict[str, Any]], bool]) -> None:
    with anyio.fail_after(60):
        while not holds(await store.status()):  # noqa: ASYNC110 - states are looked at, nobody announces them
            await anyio.sleep(0.1)


async def test_a_checkpoint_starts_the_journal_anew_and_everything_stays(data: Path) -> None:
    async with open_store(data) as store:
        contents = await fill(store, 1)
        before = {path.name for path in node_files(data, "journal/*.journal")}
        riding = sum(store.keymap.journal_containers().values())
        last = store.keymap.applied_lsn()
        result = await checkpoint(store.parts, force=True)
        assert result.done and result.moved_bytes == riding > 0 and result.moved_chunks == 40
        assert result.snapshot_lsn >= last and result.archived_records == last and result.notes == []
        assert len(set(result.snapshot_nodes)) == 3
        assert store.keymap.journal_containers() == {}
        assert store.keymap.journal_first_lsn() == last + 1
        assert before.isdisjoint(path.name for path in node_files(data, "journal/*"))
        copies = [path.read_bytes() for path in node_files(data, "index/*.snapshot")]
        assert len(copies) == 3 and len(set(copies)) == 1
        await check(store, contents)
        contents |= await fill(store, 2)
        assert (await store.status())["under_redundancy"] == 0
    rows = dump(data)
    forget_index(data)
    async with open_store(data) as store:
        await check(store, contents)
    assert dump(data) == rows


async def test_the_next_checkpoint_keeps_two_snapshots_and_every_archive(data: Path) -> None:
    async with open_store(data) as store:
        contents: dict[str, bytes] = {}
        for seed in range(4):
            contents |= await fill(store, seed, small=5)
            result = await checkpoint(store.parts, force=True)
        names = {path.name for path in node_files(data, "index/*")}
        assert len(names) == 2 and f"{result.snapshot_lsn:016x}.snapshot" in names
        assert len({path.name for path in node_files(data, "journal/*.archive")}) == 4
        first = store.keymap.journal_first_lsn()
        records = list(archive.read_archives(store.parts.nodes.nodes, store.parts.descriptor.store_id))
        assert [record.lsn for record in records] == list(range(1, first))
        await check(store, contents)


async def test_a_file_that_claims_to_be_a_newer_snapshot_takes_nobodys_place(data: Path, tmp_path: Path) -> None:
    async with open_store(data) as store:
        contents = await fill(store, 1, small=5)
        await checkpoint(store.parts, force=True)
        bogus = [
            path.with_name(f"{number:016x}.snapshot")
            for path in node_files(data, "index/*")
            for number in (2**40, 2**41)
        ]
        for path in bogus:
            path.write_bytes(b"no snapshot")
        result = await checkpoint(store.parts, force=True)
        assert {path.name for path in node_files(data, "index/*")} >= {f"{result.snapshot_lsn:016x}.snapshot"}
        assert all(path.exists() for path in bogus), "nothing is deleted on doubt"
    forget_index(data)
    async with open_store(data) as store:
        await check(store, contents)


SITES = [
    (CrashSite.JOURNAL_ROTATED, 1),
    (CrashSite.JOURNAL_EPOCH_OPENED, 1),
    (CrashSite.STRIPES_SYNCED, 1),
    (CrashSite.COMMIT_ORDERED, 2),
    (CrashSite.SEAL_WRITTEN, 1),
    (CrashSite.CHECKPOINT_MOVED, 1),
    (CrashSite.SNAPSHOT_COPIED, 1),
    (CrashSite.PIECES_PARTLY_WRITTEN, 1),
    (CrashSite.PIECES_VERIFIED, 1),
    (CrashSite.PIECES_NAMED, 1),
    (CrashSite.PIECES_NAMED, 3),
    (CrashSite.PIECES_NAMED, 4),  # of the archive
    (CrashSite.JOURNAL_ARCHIVED, 1),
    (CrashSite.JOURNAL_DROPPED, 1),
    (CrashSite.JOURNAL_PARTLY_DELETED, 1),
    (CrashSite.JOURNAL_PARTLY_DELETED, 4),
    (CrashSite.SNAPSHOT_PARTLY_PRUNED, 1),
]


@pytest.mark.parametrize(("site", "times"), SITES, ids=[f"{site.name}-{times}" for site, times in SITES])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_crash_anywhere_in_a_checkpoint_loses_nothing(data: Path, site: CrashSite, times: int) -> None:
    async with open_store(data) as store:
        contents = await fill(store, 1)
        await checkpoint(store.parts, force=True)
        await checkpoint(store.parts, force=True)  # so that the next one has something to prune
        contents |= await fill(store, 2)
    script = Path(__file__).with_name("crash_in_checkpoint.py")
    command = [sys.executable, str(script), str(data), site.name, str(times)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = await anyio.run_process(command, check=False, env=environment, stderr=subprocess.STDOUT)
    assert ended.returncode == KILLED, ended.stdout.decode()
    rows = await _opens_and_checkpoints(data, contents)
    forget_index(data)
    async with open_store(data) as store:
        await check(store, contents)
    assert dump(data) == rows


async def _opens_and_checkpoints(data: Path, contents: dict[str, bytes]) -> dict[str, list[tuple[object, ...]]]:
    saved = data.parent / "saved"
    shutil.copytree(data, saved, ignore=shutil.ignore_patterns("index.sock"))
    forget_index(data)  # the crash, and the index lost with it
    async with open_store(data) as store:
        await check(store, contents)
    shutil.rmtree(data)
    os.rename(saved, data)  # the crash alone
    async with open_store(data) as store:
        await check(store, contents)
        contents |= await fill(store, 3, small=5)
        result = await checkpoint(store.parts, force=True)
        assert result.done and store.keymap.journal_containers() == {}
        assert not [path for path in node_files(data, "*/*") if path.name.endswith(".writing")]
        await check(store, contents)
    return dump(data)


async def test_a_checkpoint_beside_writers_and_from_a_process_that_joined(data: Path) -> None:
    contents: dict[str, bytes] = {}
    async with open_store(data) as store, open_store(data) as joined:
        contents |= await fill(store, 1, small=10)
        written: dict[str, bytes] = {}
        done = anyio.Event()

        async def write(name: str, through: Store) -> None:
            rng = random.Random(name)
            number = 0
            while not done.is_set():
                key, content = f"{name}/{number}", rng.randbytes(rng.randrange(1, 9000))
                await put(through, key, content)
                written[key] = content
                number += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, "a", store)
            tasks.start_soon(write, "b", joined)
            for _ in range(3):
                result = await checkpoint(joined.parts, force=True)
                assert result.done and result.snapshot_lsn >= joined.keymap.journal_first_lsn() - 1
            done.set()
        await check(joined, contents | written)
    forget_index(data)
    async with open_store(data) as store:
        await check(store, contents | written)


async def test_without_need_nothing_is_done(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(data) as store:
        await fill(store, 1, small=5)
        assert await checkpoint_due(store.parts) is None
        assert not (await checkpoint(store.parts)).done
        assert node_files(data, "index/*") == []
        monkeypatch.setattr(limits, "CHECKPOINT_RECORDS", 5)
        result = await checkpoint(store.parts)
        assert result.done and "records since the last index snapshot" in result.reason
        monkeypatch.setattr(limits, "CHECKPOINT_RECORDS", 1000)
        assert await checkpoint_due(store.parts) is None
        monkeypatch.setattr(limits, "CHECKPOINT_JOURNAL_BYTES", 50)
        assert await checkpoint_due(store.parts) is None, "a snapshot would cost more than the journal holds"
        monkeypatch.setattr(limits, "CHECKPOINT_SHARE", 10**9)
        assert "the journal holds" in str(await checkpoint_due(store.parts))
        monkeypatch.setattr(limits, "CHECKPOINT_JOURNAL_BYTES", 10**9)
        monkeypatch.setattr(limits, "CHECKPOINT_OLD_BYTES", 50)
        assert await checkpoint_due(store.parts) is None
        now = time.time()
        monkeypatch.setattr("engine.care.checkpoint.time.time", lambda: now + 7 * 3600)
        assert "the oldest of it for 7 hours" in str(await checkpoint_due(store.parts))


async def test_a_node_that_cannot_take_a_snapshot_is_passed_over(data: Path) -> None:
    for number in (1, 2, 3):
        (data / "nodes" / str(number) / "index").write_text("in the way")
    async with open_store(data) as store:
        contents = await fill(store, 1, small=5)
        result = await checkpoint(store.parts, force=True)
        assert sorted(result.snapshot_nodes) == ["node4", "node5", "node6"]
        await check(store, contents)


async def test_a_damaged_keymap_is_not_made_a_snapshot_and_keeps_the_journal(data: Path) -> None:
    async with open_store(data) as store:
        contents = await fill(store, 1, small=5)
        db = sqlite3.connect(data / "index" / "keymap.sqlite")
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_schema WHERE name = 'chunks_by_container'")  # pages nothing leads to
        db.commit()
        db.close()
        with pytest.raises(KeymapDamaged, match="restart to have it rebuilt"):
            await checkpoint(store.parts, force=True)
        assert store.keymap.journal_first_lsn() == 1
        assert node_files(data, "index/*") == [] and node_files(data, "journal/*.archive") == []
    async with open_store(data) as store:
        await check(store, contents)
        assert (data / "index" / "keymap.sqlite.damaged").exists()
        assert (await checkpoint(store.parts, force=True)).done


async def test_chunks_that_still_ride_keep_the_journal(data: Path) -> None:
    async with open_store(data) as store:
        contents = await fill(store, 1, small=5)
        files = node_files(data, "journal/*.journal")
        last = await store.index.rotate_journal()
        with pytest.raises(CollectionStopped, match="5 chunks lie in the journal where 0 were found dead"):
            await drop_journal_before(store.parts, last + 1, dead_chunks=0)
        assert set(files) <= set(node_files(data, "journal/*.journal"))
        assert store.keymap.journal_first_lsn() == 1
        await check(store, contents)


async def test_a_location_in_a_dropped_file_is_unreadable_not_wrong(data: Path) -> None:
    async with open_store(data) as store:
        await fill(store, 1, small=5)
        (container,) = store.keymap.journal_containers()
        location = store.keymap.chunks_in(container, 1)[0].location
        assert isinstance(location, JournalLocation)
        await store.index.read_frame(location)
        await checkpoint(store.parts, force=True)
        with pytest.raises(Unreadable):
            await store.index.read_frame(location)


async def test_a_subscriber_from_before_the_journal_is_told_so_first(data: Path) -> None:
    async with open_store(data) as store:
        await fill(store, 1, small=5)
        await checkpoint(store.parts, force=True)
    async with open_store(data) as store, open_store(data) as joined:  # the window of recent records begins anew
        last = store.keymap.applied_lsn()
        for index in (store.index, joined.index):
            feed = index.subscribe(subscriber_id="late", confirms=False, from_lsn=1)
            batch, _ = await anext(feed)
            assert batch.dropped and batch.records == [] and batch.last_lsn >= last
            await feed.aclose()  # type: ignore[attr-defined]
        feed = store.index.subscribe(subscriber_id="new", confirms=False, from_lsn=store.keymap.journal_first_lsn())
        batch, _ = await anext(feed)
        assert not batch.dropped and batch.records[0].lsn == store.keymap.journal_first_lsn()
        await feed.aclose()  # type: ignore[attr-defined]


async def test_an_old_disk_with_the_dropped_journal_comes_back_and_is_cleaned(data: Path) -> None:
    """Its journal files are neither replayed again nor missed, with the index and without."""
    async with open_store(data) as store:
        contents = await fill(store, 1)
    holder = node_files(data, "journal/*.journal")[0].parents[1]
    away = data.parent / "away"
    old = {path.relative_to(holder) for path in holder.glob("journal/*.journal")}
    os.rename(holder, away)
    async with open_store(data) as store:
        await checkpoint(store.parts, force=True)
        contents |= await fill(store, 2)
        await checkpoint(store.parts, force=True)
        contents |= await fill(store, 3, small=5)
    shutil.copytree(away, data.parent / "again")
    os.rename(away, holder)
    async with open_store(data) as store:
        await until(store, lambda status: status["health"] == "healthy")
        assert not any((holder / name).exists() for name in old)
        await check(store, contents)
    shutil.rmtree(holder)
    os.rename(data.parent / "again", holder)  # it is away and comes back once more, and the index is lost
    forget_index(data)
    async with open_store(data) as store:
        await check(store, contents)
        assert not any((holder / name).exists() for name in old)


async def test_snapshots_and_archives_come_back_to_full_protection_on_a_new_disk(data: Path) -> None:
    async with open_store(data) as store:
        contents = await fill_with_everything(store)
        result = await checkpoint(store.parts, force=True)
        node_id = result.snapshot_nodes[0]
        directory = data / "nodes" / node_id.removeprefix("node")
        shutil.rmtree(directory)
        await until(store, lambda status: [node for node in status["nodes"] if node["state"] == "lost"] != [])
        directory.mkdir()
        await store.replace_node(node_id)
        await until(store, lambda status: status["under_redundancy"] == 0)
        assert len({path.parents[1] for path in node_files(data, "index/*.snapshot")}) >= 3
        archives = node_files(data, "journal/*.archive")
        assert len(archives) >= 3 and len({path.read_bytes() for path in archives}) == 1
        await check(store, contents)


async def test_archives_expire_by_age_and_by_size(data: Path) -> None:
    async with open_store(data) as store:
        for seed in range(3):
            await fill(store, seed, small=5)
            await checkpoint(store.parts, force=True)
        await fill(store, 4, small=5)
        size = max(path.stat().st_size for path in node_files(data, "journal/*.archive"))
        await checkpoint(store.parts, force=True, archive_bytes_max=size * 5 // 2)
        assert len({path.name for path in node_files(data, "journal/*.archive")}) == 2
        await fill(store, 5, small=5)
        await checkpoint(store.parts, force=True, retention_days=0)
        assert node_files(data, "journal/*.archive") == []


async def test_a_damaged_archive_is_read_from_another_node(data: Path) -> None:
    async with open_store(data) as store:
        await fill(store, 1, small=5)
        await checkpoint(store.parts, force=True)
        last = store.keymap.journal_first_lsn() - 1
        nodes, store_id = store.parts.nodes.nodes, store.parts.descriptor.store_id
        paths = node_files(data, "journal/*.archive")
        whole = paths[0].read_bytes()
        paths[0].write_bytes(whole[: len(whole) // 2])
        paths[1].write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        assert [record.lsn for record in archive.read_archives(nodes, store_id)] == list(range(1, last + 1))
        assert [record.lsn for record in archive.read_archives(nodes, store_id, last - 3)] == [last - 2, last - 1, last]
        paths[2].write_bytes(b"")
        assert list(archive.read_archives(nodes, store_id)) == []
        assert await get(store, "s1/0000")
