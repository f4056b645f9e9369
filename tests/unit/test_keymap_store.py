"""The keymap's file, chunks, segments, uploads, buckets, users, nodes and answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from engine.changes import (
    AbortUpload,
    CommitResult,
    CompleteUpload,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteUser,
    MoveChunks,
    OpenSegment,
    PartChoice,
    PutPart,
    PutUser,
    SealSegment,
    SetBucketVersioning,
    SetNode,
)
from engine.errors import (
    AlreadyExists,
    BucketExists,
    BucketNotEmpty,
    IndexUnavailable,
    InvalidBucketName,
    InvalidPart,
    NoSuchBucket,
    NoSuchUpload,
    NoSuchUser,
    PreconditionFailed,
    WritesStopped,
)
from engine.keymap import answers
from engine.keymap.apply import idempotent, recount, remember
from engine.keymap.chunks import move_riding, place_chunks
from engine.keymap.reader import SqliteKeymap
from engine.keymap.schema import KeymapDamaged, get_state, open_writer, set_state
from engine.types import (
    ChunkEntry,
    Content,
    InlineEntry,
    JournalLocation,
    Manifest,
    NewChunk,
    NodeState,
    SegmentLocation,
    User,
    Versioning,
)
from tests.unit.keymap_world import World, put


def test_the_file_keeps_its_state_and_readers_see_what_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "keymap.sqlite"
    reader = SqliteKeymap(path)
    with pytest.raises(IndexUnavailable):
        reader.buckets()
    world = World(path)
    world.bucket()
    world.put("a", b"1")
    set_state(world.db, 2, world.lsn)
    assert [version.key for version in reader.list_objects("bucket").versions] == ["a"]
    assert reader.applied_lsn() == 2
    world.db.execute("BEGIN IMMEDIATE")
    world.db.execute("DELETE FROM keys")
    assert reader.head("bucket", "a") is not None and world.reader.head("bucket", "a") is None
    world.db.execute("ROLLBACK")
    world.db.close()
    reader.reopen()
    again = open_writer(path, "store")
    assert get_state(again) == (2, 2) and reader.head("bucket", "a") is not None
    again.close()
    reader.close()


def test_another_thread_reads_a_snapshot_or_nothing(tmp_path: Path) -> None:
    """When one thread closes the file while another reads, SQLite ends the process."""
    path = tmp_path / "keymap.sqlite"
    world = World(path)
    world.bucket()
    reader = SqliteKeymap(path)
    assert len(reader.buckets()) == 1
    with ThreadPoolExecutor(1) as other:
        for act in (reader.buckets, reader.reopen, reader.close):
            with pytest.raises(RuntimeError, match="hand a snapshot"):
                other.submit(act).result()
        with reader.snapshot() as snapshot:
            assert len(other.submit(snapshot.buckets).result()) == 1
    reader.close()
    world.db.close()


def test_a_file_that_is_no_keymap_of_this_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keymap.sqlite"
    open_writer(path, "store").close()
    with pytest.raises(KeymapDamaged, match="belongs to store"):
        open_writer(path, "other")
    db = open_writer(path, "store")
    db.execute("UPDATE meta SET value = 9 WHERE name = 'format'")
    db.close()
    with pytest.raises(KeymapDamaged, match="format 9"):
        open_writer(path, "store")
    for content in (b"no database at all" * 1000, path.read_bytes()[:100] + b"\xff" * 9000):
        path.write_bytes(content)
        with pytest.raises(KeymapDamaged):
            open_writer(path, "store")


# -- chunks ------------------------------------------------------------------------


def place(segment_id: int, offset: int, length: int = 50) -> SegmentLocation:
    return SegmentLocation(segment_id, offset, 100, 0, length)


def stored(name: bytes, location: SegmentLocation | None = None, frame: bytes | None = None) -> Content:
    chunk = NewChunk(name * 32, 80, location, frame)
    return Content(Manifest([ChunkEntry(chunk.chunk_id, 80)]), [chunk])


def world_with_segment() -> World:
    world = World()
    world.bucket()
    world.do(OpenSegment(1, 1, 1, ["n1", "n2"], "me"))
    return world


def write(world: World, content: Content) -> CommitResult:
    return world.do(msgspec.structs.replace(put("a"), content=content))


def test_chunks_are_counted_once_and_keep_their_first_place() -> None:
    world = world_with_segment()
    write(world, stored(b"x", place(1, 0)))
    write(world, stored(b"x", place(1, 200)))
    counters = world.reader.counters()
    assert (counters["chunks"], counters["chunk_bytes"], counters["stored_bytes"]) == (1, 80, 50)
    assert world.reader.locations([b"x" * 32, b"y" * 32]) == {b"x" * 32: place(1, 0)}


def test_content_below_a_seal_is_refused() -> None:
    world = world_with_segment()
    with pytest.raises(WritesStopped, match="not known"):
        write(world, stored(b"x", place(2, 0)))
    world.do(SealSegment(1, 300, stripes=3))
    write(world, stored(b"x", place(1, 200)))
    with pytest.raises(WritesStopped, match="sealed meanwhile"):
        write(world, stored(b"y", place(1, 201)))
    with pytest.raises(WritesStopped):
        world.do(SealSegment(1, 400))
    with pytest.raises(WritesStopped):
        world.do(OpenSegment(1, 1, 1, [], "me"))


def test_content_in_what_recovery_cut_is_refused_though_the_directory_lies_there_now() -> None:
    world = world_with_segment()
    world.do(SealSegment(1, 3000, stripes=3, frames_end=300))
    write(world, stored(b"x", place(1, 200)))
    with pytest.raises(WritesStopped, match="sealed meanwhile"):
        write(world, stored(b"y", place(1, 300)))


def test_riding_chunks_are_placed_moved_and_may_go_to_a_segment() -> None:
    world = world_with_segment()
    write(world, stored(b"x", frame=b"f" * 60))
    assert world.reader.locations([b"x" * 32]) == {}
    first, second = JournalLocation(1, 1, 10, 60), JournalLocation(2, 1, 99, 60)
    place_chunks(world.db, {b"x" * 32: first})
    place_chunks(world.db, {b"x" * 32: second})
    assert world.reader.locations([b"x" * 32]) == {b"x" * 32: first}
    move_riding(world.db, {b"x" * 32: second})
    assert world.reader.locations([b"x" * 32]) == {b"x" * 32: second}
    world.do(MoveChunks([NewChunk(b"x" * 32, 80, place(1, 0))]))
    move_riding(world.db, {b"x" * 32: first})
    assert world.reader.locations([b"x" * 32]) == {b"x" * 32: place(1, 0)}
    world.do(MoveChunks([NewChunk(b"x" * 32, 80, place(1, 300))], before=[place(1, 100)]))
    assert world.reader.locations([b"x" * 32]) == {b"x" * 32: place(1, 0)}
    assert world.reader.counters()["stored_bytes"] == 50


# -- uploads -------------------------------------------------------------------------


def inline(content: bytes) -> Content:
    return Content(Manifest([InlineEntry(content)]))


def test_a_completion_takes_the_parts_it_read_and_ends_the_upload() -> None:
    world = World()
    world.bucket()
    created = world.do(CreateUpload("bucket", "a", headers={"content-type": "x/y"}, tags={"t": "1"}))
    upload_id = created.upload_id or ""
    old = world.do(PutPart("bucket", "a", upload_id, 1, inline(b"old"), b"1" * 16)).part
    new = world.do(PutPart("bucket", "a", upload_id, 1, inline(b"new"), b"2" * 16)).part
    assert old is not None and new is not None and world.reader.parts(upload_id) == [new]
    complete = CompleteUpload("bucket", "a", upload_id, [PartChoice(1, old.lsn)], inline(b"new"), "e-1", [])
    with pytest.raises(InvalidPart):
        world.do(complete)
    with pytest.raises(BucketNotEmpty):
        world.do(DeleteBucket("bucket"))
    version = world.do(msgspec.structs.replace(complete, choices=[PartChoice(1, new.lsn)])).version
    assert version is not None and version.headers == {"content-type": "x/y"} and version.tags == {"t": "1"}
    assert world.text("a") == b"new" and world.reader.parts(upload_id) == []
    with pytest.raises(NoSuchUpload):
        world.reader.upload("bucket", "a", upload_id)
    with pytest.raises(NoSuchUpload):
        world.do(PutPart("bucket", "a", upload_id, 1, inline(b""), b""))


def test_an_aborted_upload_leaves_nothing() -> None:
    world = World()
    world.bucket()
    upload_id = world.do(CreateUpload("bucket", "a")).upload_id or ""
    world.do(PutPart("bucket", "a", upload_id, 1, inline(b"x"), b"1" * 16))
    with pytest.raises(NoSuchUpload):
        world.do(AbortUpload("bucket", "b", upload_id))
    world.do(AbortUpload("bucket", "a", upload_id))
    assert world.reader.uploads("bucket") == [] and world.reader.parts(upload_id) == []
    world.do(DeleteBucket("bucket"))


# -- buckets, users, nodes, answers -----------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ab", "A-b", "a..b", "-ab", "ab-", "1.2.3.4", "x" * 64, "a_b", "xn--a", "a-s3alias", "abc\n"]
)
def test_bucket_names_follow_s3(name: str) -> None:
    with pytest.raises(InvalidBucketName):
        World().do(CreateBucket(name))


def test_buckets_come_and_go_under_new_ids() -> None:
    world = World()
    world.bucket()
    first = world.reader.bucket("bucket").bucket_id
    with pytest.raises(BucketExists):
        world.do(CreateBucket("bucket"))
    world.do(DeleteBucket("bucket"))
    with pytest.raises(NoSuchBucket):
        world.reader.head("bucket", "a")
    world.bucket()
    assert world.reader.bucket("bucket").bucket_id > first
    world.do(SetBucketVersioning("bucket", Versioning.ENABLED))
    with pytest.raises(PreconditionFailed):
        world.do(SetBucketVersioning("bucket", Versioning.UNVERSIONED))


def test_users_and_nodes() -> None:
    world = World()
    user = User("ada", "KEY", b"sealed")
    world.do(PutUser(user))
    for taken in (User("ada", "OTHER", b""), User("eve", "KEY", b"")):
        with pytest.raises(AlreadyExists):
            world.do(PutUser(taken))
    assert world.reader.user_by_access_key("KEY") == user and world.reader.user_by_access_key("NO") is None
    world.do(DeleteUser("ada"))
    with pytest.raises(NoSuchUser):
        world.do(DeleteUser("ada"))
    world.do(SetNode("n1", "/x"))
    world.do(SetNode("n1", "/x", state=NodeState.LOST))
    assert [node.state for node in world.reader.nodes()] == [NodeState.LOST]


def test_a_draining_node_that_went_away_is_known_to_drain_until_it_is_used_again() -> None:
    world = World()

    def become(state: NodeState, generation: int = 1) -> bool:
        world.do(SetNode("n1", "/x", state=state, generation=generation))
        (node,) = world.reader.nodes()
        assert node.state is state
        return node.drains_again

    away = (NodeState.LOST, NodeState.STALE, NodeState.LOST, NodeState.REBUILDING)
    assert [become(state) for state in (NodeState.HEALTHY, *away)] == [False] * 5
    assert [become(state) for state in (NodeState.DRAINING, *away, NodeState.DRAINING)] == [False, *[True] * 4, False]
    assert [become(state) for state in (NodeState.LOST, NodeState.HEALTHY, NodeState.LOST)] == [True, False, False]
    assert [become(state) for state in (NodeState.DRAINING, NodeState.LOST)] == [False, True]
    assert [become(state, 2) for state in (NodeState.REBUILDING, NodeState.STALE)] == [False, False], "it was replaced"


def test_a_node_row_of_an_earlier_release_is_read() -> None:
    world = World()
    row = {"node_id": "n1", "path": "/x", "state": "draining", "since_ns": 7}
    world.db.execute("INSERT INTO nodes (node_id, body) VALUES ('n1', ?)", (msgspec.msgpack.encode(row),))
    world.do(SetNode("n1", "/x", state=NodeState.LOST))
    (node,) = world.reader.nodes()
    assert node.drains_again and node.path == "/x"


def test_answers_are_remembered_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWERS_MAX", 100)
    world = World()
    world.bucket()
    result = world.put("a", b"content")
    remember(world.db, "request", result)
    assert idempotent(world.db, "request") == result and idempotent(world.db, "other") is None
    for lsn in range(3, 400):
        remember(world.db, f"r{lsn}", CommitResult(lsn, 0))
    assert idempotent(world.db, "request") is None and idempotent(world.db, "r399") is not None


def test_recount_tells_a_counter_that_is_wrong() -> None:
    world = World()
    world.bucket()
    world.db.execute("INSERT INTO counters VALUES ('objects', 3)")
    assert recount(world.db) == ["counter objects says 3, the keymap holds 0"]
