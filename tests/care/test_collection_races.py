"""Collection beside everything else: what an upload matched, what a reader reads and what a
copy names is never collected under them, and contradictions delete nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from test_collection import content_of, delete, get, opened, put, segment_bytes

from engine import limits
from engine.care import collect as collecting
from engine.care.collect import collect
from engine.care.lock import care_lock
from engine.care.sweep import sweep
from engine.changes import CreateUpload, Origin, PutPart, PutVersion
from engine.crash_sites import CrashSite, watch
from engine.errors import CollectionStopped, NodeUnavailable, NoSuchUpload
from engine.segments.format import FileHeader, encode_file_header, fragment_name
from engine.store import Store, init_store, open_store
from engine.types import Content

ORIGIN = Origin(requester="test")
pytestmark = pytest.mark.anyio


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_store(tmp_path / "data", k=2, m=1)
    return tmp_path / "data"


@asynccontextmanager
async def collecting_beside(store: Store, site: CrashSite, **options: Any) -> AsyncIterator[list[Any]]:
    """A collection runs beside the body from when it has reached `site`; the list holds its
    result afterwards."""
    reached, results = anyio.Event(), list[Any]()

    async def run() -> None:
        results.append(await collect(store.parts, **options))

    def notice(found: CrashSite) -> None:
        if found is site:
            reached.set()

    with watch(notice):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await reached.wait()
            yield results


async def written(store: Store, content: bytes) -> Content:
    """Content whose chunks are known already, ready to be committed. Under a pin."""
    writer = store.open_writer()
    await writer.write(content)
    found = await writer.finish()
    assert found.new_chunks == [], "everything should be matched"
    return found


@pytest.mark.parametrize("size", [1_500_000, 20_000])  # in segments, in the journal
async def test_what_an_upload_matched_is_not_collected_before_its_commit(data: Path, size: int) -> None:
    content = content_of(1, size)
    async with opened(data) as store:
        await put(store, "gone", content)
        await put(store, "noise", content_of(2, 40_000))
        await delete(store, "noise")
        await delete(store, "gone")
        pin = store.pins.take()
        matched = await written(store, content)
        async with collecting_beside(store, CrashSite.COLLECTION_MOVED):
            await anyio.sleep(0.2)
            await store.commit(PutVersion("bucket", "new", matched, etag="e"), ORIGIN)
            pin.end()
        assert await get(store, "new") == content
        await collect(store.parts, compact=True)
        assert await get(store, "new") == content
        assert await store.fsck() == []


async def test_nothing_new_is_matched_in_what_is_condemned(data: Path) -> None:
    content = content_of(1)
    async with opened(data) as store:
        await put(store, "gone", content)
        await delete(store, "gone")
        hold = store.pins.take()
        async with collecting_beside(store, CrashSite.COLLECTION_MOVED) as results:
            version = await put(store, "new", content)
            hold.end()
        assert results[0].segments == 1
        assert await get(store, "new") == content and version.size == len(content)
        assert await store.fsck() == []


async def test_a_stream_that_began_before_the_overwrite_reads_on(data: Path) -> None:
    content = content_of(1, 9_000_000)
    async with opened(data) as store:
        version = await put(store, "key", content)
        pin = store.pins.take()
        stream = store.read(version.manifest).__aiter__()
        pieces = [bytes(await stream.__anext__())]
        await put(store, "key", content_of(2))
        before = segment_bytes(data)
        async with collecting_beside(store, CrashSite.COLLECTION_MOVED, compact=True) as results:
            await anyio.sleep(0.3)
            assert not results and segment_bytes(data) >= before
            async for piece in stream:
                pieces.append(bytes(piece))
            pin.end()
        assert b"".join(pieces) == content
        assert results[0].freed_bytes > 9_000_000


async def test_a_copy_whose_source_is_deleted_meanwhile_has_its_content(data: Path) -> None:
    content = content_of(1)
    async with opened(data) as store:
        source = await put(store, "source", content)
        pin = store.pins.take()
        await delete(store, "source")
        async with collecting_beside(store, CrashSite.COLLECTION_MOVED):
            await store.commit(PutVersion("bucket", "copy", Content(source.manifest), etag="e"), ORIGIN)
            pin.end()
        assert await get(store, "copy") == content
        assert await store.fsck() == []


async def test_a_version_that_came_and_went_during_the_wait_keeps_its_reader(data: Path) -> None:
    """It is in no snapshot any more, yet somebody may have copied it since."""
    content = content_of(1)
    async with opened(data) as store:
        await put(store, "gone", content)
        await delete(store, "gone")
        pin = store.pins.take()
        matched = await written(store, content)
        async with collecting_beside(store, CrashSite.COLLECTION_MOVED):
            await store.commit(PutVersion("bucket", "short-lived", matched, etag="e"), ORIGIN)
            later = store.pins.take()
            version = store.keymap.head("bucket", "short-lived")
            assert version is not None
            await delete(store, "short-lived")
            pin.end()
        await store.commit(PutVersion("bucket", "copy", Content(version.manifest), etag="e"), ORIGIN)
        later.end()
        assert await get(store, "copy") == content
        assert await store.fsck() == []


def between_mark_and_deletion(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[object]]) -> list[int]:
    """Let something happen, once, after the second mark. Counts the marks."""
    genuine, marks = collecting._Collection._mark_again, list[int]()

    async def mark_again(self: Any, mark: Any, victims: Any) -> Any:
        found = await genuine(self, mark, victims)
        marks.append(found[0])
        if len(marks) == 1:
            await act()
        return found

    monkeypatch.setattr(collecting._Collection, "_mark_again", mark_again)
    return marks


async def test_a_commit_that_outlived_its_pin_is_kept_whole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of(1)
    async with opened(data) as store:
        await put(store, "gone", content)
        await delete(store, "gone")
        with store.pins.hold():
            matched = await written(store, content)
        marks = between_mark_and_deletion(
            monkeypatch, lambda: store.commit(PutVersion("bucket", "late", matched, etag="e"), ORIGIN)
        )
        await collect(store.parts)
        assert len(marks) >= 2, "the deletion was refused once"
        assert await get(store, "late") == content
        assert await store.fsck() == []


async def test_another_number_of_chunks_deletes_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = collecting._Collection._mark_again

    async def miscounted(self: Any, mark: Any, victims: Any) -> Any:
        as_of_lsn, left = await genuine(self, mark, victims)
        left[0].dead_chunks += 1
        return as_of_lsn, left

    monkeypatch.setattr(collecting._Collection, "_mark_again", miscounted)
    async with opened(data) as store:
        await put(store, "gone", content_of(1))
        await delete(store, "gone")
        await store.parts.plane.seal()
        before = segment_bytes(data)
        with pytest.raises(CollectionStopped, match="were found dead; nothing was deleted"):
            await collect(store.parts)
        assert segment_bytes(data) == before
        monkeypatch.undo()
        await collect(store.parts)
        assert segment_bytes(data) == 0


async def test_a_named_chunk_the_index_does_not_know_stops_everything(data: Path) -> None:
    async with opened(data) as store:
        await put(store, "kept", content_of(1))
        await put(store, "gone", content_of(2))
        await delete(store, "gone")
        await store.parts.plane.seal()
        before = segment_bytes(data)
        with sqlite3.connect(data / "index" / "keymap.sqlite") as db:
            version = store.keymap.head("bucket", "kept")
            assert version is not None
            lost = version.manifest.entries[0].chunk_id  # type: ignore[union-attr]
            db.execute("DELETE FROM chunks WHERE chunk_id = ?", (lost,))
        db.close()
        with pytest.raises(CollectionStopped, match="is named but the index does not know it; nothing was deleted"):
            await collect(store.parts, compact=True)
        assert segment_bytes(data) == before and store.keymap.condemned() == {}


async def test_an_unreadable_manifest_tree_stops_everything(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_ENTRIES_MAX", 3)
    async with opened(data) as store:
        await put(store, "tree", content_of(1, 5_000_000))
        await store.parts.plane.seal()
        await put(store, "gone", content_of(2))
        await delete(store, "gone")
        await store.parts.plane.seal()
        nodes = dict(store.parts.nodes.nodes)
        monkeypatch.setattr(store.parts.plane, "_nodes", {})
        before = segment_bytes(data)
        with pytest.raises(CollectionStopped, match="can't be read"):
            await collect(store.parts)
        assert segment_bytes(data) == before
        monkeypatch.setattr(store.parts.plane, "_nodes", nodes)
        await collect(store.parts, compact=True)
        assert await get(store, "tree") == content_of(1, 5_000_000)


async def test_trees_and_their_leaves_are_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_ENTRIES_MAX", 3)
    content = content_of(1, 8_000_000)
    async with opened(data) as store:
        await put(store, "noise", content_of(2, 3_000_000))
        await put(store, "tree", content)
        await delete(store, "noise")
        await collect(store.parts, compact=True)
        assert await get(store, "tree") == content
        await delete(store, "tree")
        await collect(store.parts)
        assert store.keymap.counters()["chunks"] == 0


async def test_a_request_that_never_ends_is_waited_for_so_long_only(data: Path) -> None:
    async with opened(data) as store:
        await put(store, "gone", content_of(1))
        await delete(store, "gone")
        with store.pins.hold():
            result = await collect(store.parts, wait_seconds=0.2)
            assert result.freed_bytes == 0 and result.spared == 1
            assert "is under way since" in result.reasons[0]
            assert store.keymap.condemned() == {}
        assert (await collect(store.parts)).segments == 1


async def test_uploads_keep_their_parts_until_they_are_abandoned(data: Path) -> None:
    content = content_of(1)
    async with opened(data) as store:
        upload_id = (await store.commit(CreateUpload("bucket", "key"), ORIGIN)).upload_id
        assert upload_id is not None
        with store.pins.hold():
            writer = store.open_writer()
            await writer.write(content)
            part = PutPart("bucket", "key", upload_id, 1, await writer.finish(), md5=b"m" * 16)
            await store.commit(part, ORIGIN)
        result = await collect(store.parts)
        assert result.uploads == {} and result.segments == 0
        (held,) = store.keymap.parts(upload_id)
        assert b"".join([bytes(piece) async for piece in store.read(held.manifest)]) == content
        said = await collect(store.parts, abandoned_after=0, dry_run=True)
        assert said.uploads == {"bucket": 1} and store.keymap.parts(upload_id)
        result = await collect(store.parts, abandoned_after=0)
        assert result.uploads == {"bucket": 1} and segment_bytes(data) == 0
        with pytest.raises(NoSuchUpload):
            store.keymap.upload("bucket", "key", upload_id)


async def test_collection_in_a_process_that_joined(data: Path) -> None:
    async with opened(data) as store:
        await put(store, "kept", content_of(1))
        await put(store, "gone", content_of(2))
        await delete(store, "gone")
        async with open_store(data) as beside:
            result = await collect(beside.parts, compact=True)
            assert result.freed_bytes > 2_000_000 and result.unsealed == []
            assert await get(store, "kept") == content_of(1)
            assert await get(beside, "kept") == content_of(1)
        assert await get(store, "kept") == content_of(1)
        assert await store.fsck() == []


async def test_a_place_that_is_deleted_after_it_was_looked_up_is_looked_up_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(data) as store:
        version = await put(store, "kept", content_of(1))
        await put(store, "gone", content_of(2))
        await delete(store, "gone")
        genuine, calls = store._reader._frames_at, list[int]()

        async def slowly(locations: Any) -> Any:
            calls.append(len(calls))
            if len(calls) == 1:
                result = await collect(store.parts, compact=True)
                assert result.segments == 1
            return await genuine(locations)

        monkeypatch.setattr(store._reader, "_frames_at", slowly)
        found = b"".join([bytes(piece) async for piece in store.read(version.manifest)])
        assert found == content_of(1) and len(calls) > 1


# -- the sweep -----------------------------------------------------------------


async def test_the_sweep_deletes_what_is_known_and_sets_aside_what_is_not(data: Path) -> None:
    async with opened(data) as store:
        await put(store, "gone", content_of(1))
        await put(store, "small", content_of(2, 100))
        await store.parts.plane.seal()
        (segment,) = store.keymap.segments()
        node = store.parts.nodes.nodes[segment.node_ids[1]]
        name = fragment_name(segment.segment_id, 1)
        content = node.read(name, 0, 1 << 30)
        await delete(store, "gone")
        await collect(store.parts)
        node.write_whole(name, content)  # as a node that was away brings it back
        node.write_whole(name + ".rebuild", b"scratch")
        strange, foreign = fragment_name(12345, 0), fragment_name(segment.segment_id, 0)
        header = FileHeader(store.parts.descriptor.store_id, 12345, 0, 2, 1, "isa_l_rs_cauchy", "x")
        node.write_whole(strange, encode_file_header(header))
        node.write_whole(foreign, encode_file_header(FileHeader("another", segment.segment_id, 0, 2, 1, "c", "x")))
        async with care_lock(data, "a sweep"):
            swept = await sweep(store.parts)
        assert (swept.files, swept.quarantined) == (2, 2)
        assert swept.freed_bytes == len(content) + len(b"scratch")
        assert segment_bytes(data) == 0
        reasons = [path.read_text() for path in data.glob("nodes/*/quarantine/*.reason")]
        assert len(reasons) == 2 and any("knows no such segment" in reason for reason in reasons)
        assert await get(store, "small") == content_of(2, 100)


async def test_a_file_with_a_bad_sector_keeps_no_other_from_being_swept(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(data) as store:
        for number in (1, 2):
            await put(store, f"gone{number}", content_of(number))
            await store.parts.plane.seal()
        node = store.parts.nodes.nodes["node1"]
        bad, good = sorted(node.list("segments/"))
        contents = {name: node.read(name, 0, 1 << 30) for name in (bad, good)}
        for number in (1, 2):
            await delete(store, f"gone{number}")
        await collect(store.parts)
        for name, content in contents.items():
            node.write_whole(name, content)
        genuine = node.read

        def read(name: str, offset: int, length: int) -> bytes:
            if name == bad:
                raise NodeUnavailable(f"node {node.path} fails at {name}: Input/output error")
            return genuine(name, offset, length)

        monkeypatch.setattr(node, "read", read)
        async with care_lock(data, "a sweep"):
            swept = await sweep(store.parts)
        assert (swept.files, swept.quarantined) == (1, 1)
        assert list(node.list("segments/")) == []


async def test_a_misplaced_fragment_goes_only_if_its_own_place_is_whole(data: Path) -> None:
    async with opened(data) as store:
        await put(store, "kept", content_of(1))
        await store.parts.plane.seal()
        (segment,) = store.keymap.segments()
        name = fragment_name(segment.segment_id, 0)
        home, other = (store.parts.nodes.nodes[segment.node_ids[index]] for index in (0, 1))
        content = home.read(name, 0, 1 << 30)
        other.write_whole(name, content)
        home.write_whole(name, content[:-10])
        async with care_lock(data, "a sweep"):
            assert (await sweep(store.parts)).files == 0
            home.write_whole(name, content)
            assert (await sweep(store.parts)).files == 1
        assert name not in list(other.list("segments/"))
        assert await get(store, "kept") == content_of(1)


async def test_a_node_that_was_away_is_swept_when_it_is_back(data: Path) -> None:
    async with opened(data) as store:
        await put(store, "gone", content_of(1))
        await put(store, "kept", content_of(2))
        await store.parts.plane.seal()
        (data / "nodes" / "2").rename(data / "away")
        with anyio.fail_after(30):
            while store.parts.nodes.nodes.keys() == {"node1", "node2", "node3"}:  # noqa: ASYNC110  # maintenance looks
                await anyio.sleep(0.05)
        await delete(store, "gone")
        await delete(store, "kept")
        await collect(store.parts)
        assert list((data / "away").glob("segments/*/*")) and segment_bytes(data) == 0
        (data / "away").rename(data / "nodes" / "2")
        with anyio.fail_after(30):
            while segment_bytes(data):  # noqa: ASYNC110  # maintenance sweeps
                await anyio.sleep(0.05)


async def test_a_keymap_that_is_being_rebuilt_is_no_judge_of_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(data) as store:
        with store.keymap.snapshot() as early:  # as a keymap in the middle of a replay
            await put(store, "kept", content_of(1))
            await store.parts.plane.seal()

            @contextmanager
            def behind() -> Iterator[Any]:
                yield early

            monkeypatch.setattr(store.keymap, "snapshot", behind)
            async with care_lock(data, "a sweep"):
                with pytest.raises(CollectionStopped, match="behind the journal"):
                    await sweep(store.parts)
            monkeypatch.undo()
        assert await get(store, "kept") == content_of(1)
        assert not list(data.glob("nodes/*/quarantine/*"))
