"""The index is disposable: it comes back from the nodes, by itself or when asked, with any
m of them missing; what is damaged is noticed, and a hole is never served."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from index_world import check, dump, fill, fill_with_everything, forget_index, node_files

from engine import pieces
from engine.care.checkpoint import checkpoint
from engine.care.rebuild import rebuild_index
from engine.crash_sites import CrashSite, watch
from engine.errors import JournalCorrupt, NodeUnavailable, StoreInUse, UnknownFormat
from engine.index import snapshots
from engine.keymap import soundness
from engine.keymap.schema import KeymapDamaged
from engine.keymap.soundness import check_now
from engine.store import init_store, open_store

pytestmark = pytest.mark.anyio
Rows = dict[str, list[tuple[object, ...]]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_store(tmp_path / "data")
    return tmp_path / "data"


async def make_full(data: Path) -> tuple[dict[str, bytes], Rows]:
    """Everything there is, half of it behind a checkpoint, closed cleanly."""
    async with open_store(data) as store:
        contents = await fill_with_everything(store)
        await checkpoint(store.parts, force=True)
        contents |= await fill(store, 2, small=10)
    return contents, dump(data)


async def test_rebuilding_gives_every_row_again_with_any_two_nodes_missing(data: Path) -> None:
    contents, rows = await make_full(data)
    assert {"keys", "history", "uploads", "parts", "users", "chunks", "segments", "counters"} <= set(rows)
    assert all(rows[table] for table in rows if table not in ("condemned", "deleted_segments", "segment_history")), {
        table: len(found) for table, found in rows.items()
    }
    for missing in itertools.combinations(range(1, 7), 2):
        for number in missing:
            os.rename(data / "nodes" / str(number), data / f"away{number}")
        result = await rebuild_index(data)
        assert dump(data) == rows, f"without nodes {missing}"
        assert result.snapshot_lsn > 0 and result.replayed_records > 10 and len(result.missing) == 2
        for number in missing:
            os.rename(data / f"away{number}", data / "nodes" / str(number))
    async with open_store(data) as store:
        await check(store, contents)


async def test_with_more_nodes_missing_the_index_is_not_rebuilt_and_stays(data: Path) -> None:
    _, rows = await make_full(data)
    for number in (1, 2, 3):
        os.rename(data / "nodes" / str(number), data / f"away{number}")
    with pytest.raises(NodeUnavailable, match="3 nodes are missing, the store survives 2"):
        await rebuild_index(data)
    assert dump(data) == rows


async def test_rebuilding_by_hand_says_what_it_did_and_shows_progress(data: Path) -> None:
    contents, rows = await make_full(data)
    told: list[str] = []
    result = await rebuild_index(data, report=lambda progress: told.append(progress.what))
    assert {"reading the snapshot", "replaying the journal"} <= set(told)
    assert result.objects == len(contents) + 0 and result.versions > result.objects
    assert Path(result.aside, "keymap.sqlite").exists()
    assert dump(data) == rows
    async with open_store(data) as store:
        await check(store, contents)
        with pytest.raises(StoreInUse, match="is open in another process"):
            await rebuild_index(data)


async def test_without_a_snapshot_the_whole_journal_is_replayed(data: Path) -> None:
    async with open_store(data) as store:
        await fill_with_everything(store)
        last = store.keymap.applied_lsn()
    rows = dump(data)
    result = await rebuild_index(data)
    assert result.snapshot_lsn == 0 and result.replayed_records == result.end_lsn >= last
    assert dump(data) == rows


# -- a keymap that is not what it was --------------------------------------------------


def pages_of(path: Path) -> dict[str, int]:
    """An offset in a page of each kind of the keymap."""
    db = sqlite3.connect(path)
    size = db.execute("PRAGMA page_size").fetchone()[0]
    found = {"header": 0, "format bytes": 18, "schema": size - 200, "end": path.stat().st_size - 8}
    free = db.execute("PRAGMA freelist_count").fetchone()[0]
    roots = [root for (root,) in db.execute("SELECT rootpage FROM sqlite_schema WHERE rootpage > 0")]
    db.close()
    content = path.read_bytes()
    for number in range(2, len(content) // size + 1):
        kind = content[(number - 1) * size]
        name = {2: "interior index", 5: "interior table", 10: "leaf index", 13: "leaf table"}.get(kind, "overflow")
        found.setdefault(f"{name} page", (number - 1) * size)
        found.setdefault(f"{name} cell", (number - 1) * size + size - 30)
    first_free = int.from_bytes(content[32:36], "big")
    if free and first_free:
        found["freelist"] = (first_free - 1) * size + 4
    found["root"] = (roots[-1] - 1) * size + 3
    return found


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def zero(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    length = len(content[offset : offset + 4096])
    if not any(content[offset : offset + length]):
        content[offset] = 1  # it was zeros already
    else:
        content[offset : offset + length] = bytes(length)
    path.write_bytes(content)


def truncate(path: Path, offset: int) -> None:
    os.truncate(path, offset)


def extend(path: Path, offset: int) -> None:
    with path.open("ab") as file:
        file.write(bytes(8192))


@pytest.mark.parametrize("harm", [flip, zero, truncate, extend])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_keymap_harmed_anywhere_is_set_aside_and_built_again(
    data: Path, harm: Callable[[Path, int], None]
) -> None:
    async with open_store(data) as store:
        await fill_with_everything(store)
        for number in range(500):
            await store.users.add(f"user{number:03}", access_key=f"key{number:03}")  # enough for interior pages
        await checkpoint(store.parts, force=True)
        for number in range(300):
            await store.users.remove(f"user{number:03}")
    rows = dump(data)
    index, saved = data / "index", data.parent / "saved"
    shutil.copytree(index, saved, ignore=shutil.ignore_patterns("*.sock"))
    offsets = pages_of(index / "keymap.sqlite")
    assert {"leaf index page", "leaf table page", "interior index page", "overflow page", "freelist"} <= set(offsets)
    for where, offset in offsets.items():
        shutil.rmtree(index)
        shutil.copytree(saved, index)
        harm(index / "keymap.sqlite", offset)
        async with open_store(data) as store:
            assert store.keymap.counters()["objects"] == dict(rows["counters"])["objects"], where
        assert (index / "keymap.sqlite.damaged").exists(), f"{harm.__name__} of {where} went unnoticed"
        found = dump(data)
        assert _without_nodes(found) == _without_nodes(rows), where


def _without_nodes(rows: Rows) -> Rows:
    return {table: found for table, found in rows.items() if table != "nodes"}


async def test_a_large_keymap_is_checked_while_it_is_served(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, rows = await make_full(data)
    keymap = data / "index" / "keymap.sqlite"
    monkeypatch.setattr(soundness, "CHECK_AT_ONCE_BYTES", 0)
    async with open_store(data) as store:
        await check(store, contents)
    flip(keymap, keymap.stat().st_size - 20)
    with pytest.raises(KeymapDamaged, match="it is rebuilt when the store is opened again"):
        async with open_store(data) as store:
            await _forever()
    async with open_store(data) as store:
        await check(store, contents)
    assert dump(data) == rows


async def test_damage_met_while_serving_is_told_to_the_next_open(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, rows = await make_full(data)

    def malformed(*arguments: object, **named: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as harmed:
        harmed.setattr("engine.index.local.decide", malformed)
        with pytest.raises(BaseException) as raised:
            async with open_store(data) as store:
                await fill(store, 9, small=1)
    assert "malformed" in "".join(traceback.format_exception(raised.value))
    async with open_store(data) as store:
        await check(store, contents)
    assert (data / "index" / "keymap.sqlite.damaged").exists()
    assert _without_nodes(dump(data)) == _without_nodes(rows)


async def _forever() -> None:
    import anyio

    with anyio.fail_after(30):
        await anyio.sleep_forever()


async def test_a_keymap_of_an_older_time_is_not_carried_over_a_gap(data: Path) -> None:
    """DATA/index out of a backup, from before the journal was dropped."""
    async with open_store(data) as store:
        contents = await fill(store, 1, small=5)
    shutil.copytree(data / "index", data.parent / "old", ignore=shutil.ignore_patterns("*.sock"))
    async with open_store(data) as store:
        contents |= await fill(store, 2, small=5)
        await checkpoint(store.parts, force=True)
        contents |= await fill(store, 3, small=5)
    rows = dump(data)
    forget_index(data)
    shutil.copytree(data.parent / "old", data / "index")
    async with open_store(data) as store:
        await check(store, contents)
    assert dump(data) == rows


async def test_a_keymap_that_ends_where_the_journal_was_dropped_is_built_again(data: Path) -> None:
    """Whether its last record is the journal's cannot be told any more; the snapshot's is."""
    async with open_store(data) as store:
        contents = await fill(store, 1, small=5)
        await checkpoint(store.parts, force=True)
    shutil.copytree(data / "index", data.parent / "old", ignore=shutil.ignore_patterns("*.sock"))
    async with open_store(data) as store:
        applied = store.keymap.applied_lsn()
        assert (await checkpoint(store.parts, force=True)).snapshot_lsn == applied
        contents |= await fill(store, 2, small=5)
    rows = dump(data)
    forget_index(data)
    shutil.copytree(data.parent / "old", data / "index")
    async with open_store(data) as store:
        await check(store, contents)
    assert dump(data) == rows


# -- snapshots that are not what they were ---------------------------------------------


def harms(size: int) -> list[tuple[str, Callable[[bytearray], bytearray]]]:
    def flipping(at: int) -> Callable[[bytearray], bytearray]:
        def harm(content: bytearray) -> bytearray:
            content[at] ^= 4
            return content

        return harm

    places = (0, 9, 14, 40, 150, 220, size // 2, size - 61, size - 30, size - 2)
    cut = [(f"cut at {at}", lambda content, at=at: content[:at]) for at in (0, 10, 200, size // 2, size - 1)]
    return [
        *((f"flipped at {at}", flipping(at)) for at in places),
        *cut,
        ("extended", lambda content: content + b"\0"),
        ("zeroed", lambda content: bytearray(len(content))),
    ]


async def test_a_snapshot_damaged_on_all_nodes_but_one_is_read_from_that_one(data: Path) -> None:
    _, rows = await make_full(data)
    copies = node_files(data, "index/*.snapshot")
    whole = copies[0].read_bytes()
    for what, harm in harms(len(whole)):
        for path in copies[:-1]:
            path.write_bytes(bytes(harm(bytearray(whole))))
        copies[-1].write_bytes(whole)
        await rebuild_index(data)
        assert dump(data) == rows, what


async def test_with_every_snapshot_damaged_and_the_journal_dropped_opening_is_refused(data: Path) -> None:
    contents, rows = await make_full(data)
    copies = node_files(data, "index/*.snapshot")
    whole = copies[0].read_bytes()
    harmed = bytearray(whole)
    harmed[len(whole) // 2] ^= 1
    for path in copies:
        path.write_bytes(harmed)
    forget_index(data)
    with pytest.raises(JournalCorrupt, match="every copy of an index snapshot is damaged"):
        async with open_store(data):
            pass
    copies[1].write_bytes(whole)
    async with open_store(data) as store:
        await check(store, contents)
    assert dump(data) == rows


async def test_an_older_snapshot_serves_as_far_as_the_journal_reaches_back(data: Path) -> None:
    class Stopped(BaseException):
        pass

    def stop(site: CrashSite) -> None:
        if site is CrashSite.JOURNAL_ARCHIVED:
            raise Stopped

    contents, _ = await make_full(data)
    async with open_store(data) as store:
        with pytest.raises(Stopped), watch(stop):
            await checkpoint(store.parts, force=True)
        contents |= await fill(store, 3, small=5)
    rows = dump(data)
    newest = max(path.name for path in node_files(data, "index/*.snapshot"))
    for path in node_files(data, f"index/{newest}"):
        path.write_bytes(path.read_bytes()[:-1])
    result = await rebuild_index(data)
    assert snapshots.snapshot_name(result.snapshot_lsn) != f"index/{newest}" and result.snapshot_lsn > 0
    assert dump(data) == rows
    async with open_store(data) as store:
        await check(store, contents)


@pytest.mark.parametrize("what", ["piece file", "keymap"])
async def test_a_snapshot_of_a_newer_format_is_refused_by_name(
    data: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(data) as store:
        await fill(store, 1, small=3)
        with monkeypatch.context() as newer:
            newer.setattr(*((pieces, "VERSION", 9) if what == "piece file" else (snapshots, "FORMAT", 99)))
            await checkpoint(store.parts, force=True)
    before = [path.read_bytes() for path in node_files(data, "index/*")]
    forget_index(data)
    with pytest.raises(UnknownFormat, match=r"snapshot.* has (piece file format 9|keymap format 99)"):
        async with open_store(data):
            pass
    assert [path.read_bytes() for path in node_files(data, "index/*")] == before


async def test_a_snapshot_of_another_store_is_left_out(data: Path, tmp_path: Path) -> None:
    contents, rows = await make_full(data)
    other = tmp_path / "other"
    init_store(other)
    async with open_store(other) as store:
        await fill(store, 9, small=3)
        await checkpoint(store.parts, force=True)
    foreign = node_files(other, "index/*.snapshot")[0].read_bytes()
    copies = node_files(data, "index/*.snapshot")
    for path in copies[:-1]:
        path.write_bytes(foreign)
    newer = copies[0].with_name("00000000ffffffff.snapshot")  # as if it were the newest
    newer.write_bytes(foreign)
    await rebuild_index(data)
    assert dump(data) == rows
    async with open_store(data) as store:
        await check(store, contents)


async def test_a_rebuild_that_fails_leaves_the_former_index(data: Path) -> None:
    _, rows = await make_full(data)
    for path in node_files(data, "index/*.snapshot"):
        path.unlink()
    with pytest.raises(JournalCorrupt, match="the index cannot be rebuilt"):
        await rebuild_index(data)
    assert dump(data) == rows
    check_now(data / "index" / "keymap.sqlite")


async def test_random_bytes_in_place_of_any_copy_never_give_other_rows(data: Path) -> None:
    seed = int(os.environ.get("OBJFS_TEST_SEED", "11"))
    rng = random.Random(seed)
    _, rows = await make_full(data)
    copies = node_files(data, "index/*.snapshot")
    whole = copies[0].read_bytes()
    for round_number in range(20):
        for path in copies[:-1]:
            start = rng.randrange(len(whole))
            end = min(start + rng.choice([1, 8, 500, 5000]), len(whole))
            path.write_bytes(whole[:start] + rng.randbytes(end - start) + whole[end:])
        await rebuild_index(data)
        assert dump(data) == rows, f"seed {seed} round {round_number}"
