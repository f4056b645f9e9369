"""The tree over the keys: renames, hard links, attributes, directories."""

from __future__ import annotations

import msgspec
import pytest

from engine.changes import (
    CompleteUpload,
    CreateUpload,
    DeleteBucket,
    DeleteKey,
    Door,
    Link,
    PartChoice,
    PutPart,
    Rename,
    SetAttributes,
    Touched,
)
from engine.errors import (
    AlreadyExists,
    BucketNotEmpty,
    DirectoryNotEmpty,
    InvalidName,
    IsADirectory,
    NoSuchKey,
    NotADirectory,
)
from engine.types import Attributes, Version, Versioning
from tests.unit.keymap_world import World, put

BOTH = pytest.mark.parametrize("versioning", [Versioning.UNVERSIONED, Versioning.ENABLED, Versioning.SUSPENDED])


def world_with(*keys: str, versioning: Versioning = Versioning.UNVERSIONED) -> World:
    world = World()
    world.bucket(versioning=versioning)
    for key in keys:
        world.put(key, key.encode(), door=Door.MOUNT)
    return world


def rename(source: str, target: str, **how: bool) -> Rename:
    return Rename("bucket", source, "bucket", target, **how)


def head(world: World, key: str) -> Version:
    version = world.reader.head("bucket", key)
    assert version is not None and not version.delete_marker
    return version


@BOTH
def test_a_file_moves_with_its_file_id_and_replaces_the_target(versioning: Versioning) -> None:
    world = world_with("a", "b", versioning=versioning)
    file_id = head(world, "a").file_id
    decision = world.decide(rename("a", "b"), Door.MOUNT)
    assert {(name.bucket, name.key) for name in decision.touched} == {("bucket", "a"), ("bucket", "b")}
    assert world.listed() == ["b"] and world.text("b") == b"a" and head(world, "b").file_id == file_id
    assert world.reader.names(file_id) == [("bucket", "b")]


def test_a_versioned_rename_leaves_history_and_a_marker() -> None:
    world = world_with("a", versioning=Versioning.ENABLED)
    old = head(world, "a")
    world.mount(rename("a", "b"))
    listed = world.reader.list_versions("bucket").versions
    assert [(version.key, version.delete_marker) for version in listed] == [("a", True), ("a", False), ("b", False)]
    world.do(DeleteKey("bucket", "a", version_id=listed[0].version_id))
    assert world.listed() == ["a", "b"] and world.text("a") == b"a"
    assert head(world, "a").file_id != old.file_id == head(world, "b").file_id  # two files now


@BOTH
def test_a_directory_moves_whole(versioning: Versioning) -> None:
    world = world_with("d/", "d/a", "d/e/b", "d/e\0/c", "d-", versioning=versioning)
    ids = {key: head(world, key).file_id for key in world.listed()}
    world.mount(rename("d/", "new/"))
    assert world.listed() == ["d-", "new/", "new/a", "new/e\0/c", "new/e/b"]
    assert all(head(world, key).file_id == ids[key.replace("new/", "d/")] for key in world.listed())
    assert world.text("new/e/b") == b"d/e/b" and world.reader.hidden_keys() == 1


def test_renames_between_buckets_follow_each_buckets_versioning() -> None:
    world = world_with("d/a", "d/b")
    world.bucket("other", Versioning.ENABLED)
    world.mount(Rename("bucket", "d/", "other", "d/"))
    assert world.listed() == []
    assert world.listed("other") == ["d/a", "d/b"]
    world.mount(Rename("other", "d/a", "bucket", "a"))
    assert world.listed() == ["a"] and world.listed("other") == ["d/b"]
    assert len(world.reader.list_versions("other").versions) == 3


@BOTH
def test_refused_renames(versioning: Versioning) -> None:
    world = world_with("a", "d/x", "empty/", "full/x", versioning=versioning)
    refusals = [
        (NoSuchKey, rename("none", "b")),
        (NoSuchKey, rename("none/", "b/")),
        (IsADirectory, rename("a", "full")),
        (IsADirectory, rename("a", "empty")),
        (NotADirectory, rename("d/", "a/")),
        (DirectoryNotEmpty, rename("d/", "full/")),
        (AlreadyExists, rename("d/", "empty/", no_replace=True)),
        (AlreadyExists, rename("d/", "a/", no_replace=True)),
        (AlreadyExists, rename("a", "empty", no_replace=True)),
        (InvalidName, rename("d/", "d/e/")),
        (InvalidName, rename("a", "b/")),
        (InvalidName, rename("d/", "y" * 1023 + "/")),
        (NoSuchKey, rename("a", "none", exchange=True)),
        (InvalidName, rename("d/", "d/x", exchange=True)),
    ]
    for error, change in refusals:
        with pytest.raises(error):
            world.mount(change)


@BOTH
def test_a_directory_replaces_an_empty_one(versioning: Versioning) -> None:
    world = world_with("d/", "d/x", "plain/y", "empty/", "empty2/", versioning=versioning)
    marker = head(world, "d/").file_id
    world.mount(rename("d/", "empty/"))
    world.mount(rename("plain/", "empty2/"))
    assert world.listed() == ["empty/", "empty/x", "empty2/y"]
    assert head(world, "empty/").file_id == marker


@BOTH
def test_exchange_swaps_files_and_directories(versioning: Versioning) -> None:
    world = world_with("a", "b", "d/x", "e/x", "e/y", versioning=versioning)
    world.mount(rename("a", "b", exchange=True))
    assert (world.text("a"), world.text("b")) == (b"b", b"a")
    world.mount(rename("d/", "e/", exchange=True))
    assert world.listed() == ["a", "b", "d/x", "d/y", "e/x"] and world.text("d/x") == b"e/x"
    world.mount(rename("a", "d/", exchange=True))
    assert world.listed() == ["a/x", "a/y", "b", "d", "e/x"] and world.text("d") == b"b"


def test_the_last_child_to_leave_through_the_mount_leaves_its_directory() -> None:
    world = world_with("d/x", "e/f/y")
    world.do(DeleteKey("bucket", "d/x", must_exist=True, keep_parent=True), Door.MOUNT)
    world.mount(rename("e/f/", "g/"))
    assert world.listed() == ["d/", "e/", "g/y"]
    assert head(world, "d/").attributes is None
    world.mount(DeleteKey("bucket", "d/", must_exist=True, empty_directory=True, keep_parent=True))
    world.do(DeleteKey("bucket", "g/y"))
    assert world.listed() == ["e/"]


def test_rmdir_wants_an_empty_directory() -> None:
    world = world_with("d/x", "d/")
    with pytest.raises(DirectoryNotEmpty):
        world.mount(DeleteKey("bucket", "d/", must_exist=True, empty_directory=True))
    with pytest.raises(BucketNotEmpty):
        world.mount(DeleteBucket("bucket"))


# -- hard links ------------------------------------------------------------------


def linked(versioning: Versioning = Versioning.UNVERSIONED) -> World:
    world = world_with("a", versioning=versioning)
    result = world.decide(Link("bucket", "a", "bucket", "d/b"), Door.MOUNT)
    assert result.result.version is not None and result.result.version.link_count == 2
    assert {name.key for name in result.touched} == {"a", "d/b"}
    return world


@BOTH
def test_links_share_file_id_bytes_and_writes_of_the_mount(versioning: Versioning) -> None:
    world = linked(versioning)
    file_id = head(world, "a").file_id
    assert head(world, "d/b").file_id == file_id and head(world, "a").link_count == 2
    before = world.reader.counters()
    assert before["objects"] == 2 and before["logical_bytes"] == 1
    decision = world.decide(put("d/b", b"new", file_id=file_id), Door.MOUNT)
    assert {name.key for name in decision.touched} == {"a", "d/b"}
    assert (world.text("a"), world.text("d/b")) == (b"new", b"new")
    version = decision.result.version
    assert version is not None and version.key == "d/b" and version.link_count == 2


@BOTH
def test_s3_writes_and_deletes_touch_one_name_only(versioning: Versioning) -> None:
    world = linked(versioning)
    file_id = head(world, "a").file_id
    world.put("a", b"mine")
    assert world.text("d/b") == b"a" and head(world, "a").file_id != file_id
    assert (head(world, "a").link_count, head(world, "d/b").link_count) == (1, 1)
    world.mount(Link("bucket", "d/b", "bucket", "c"))
    world.do(DeleteKey("bucket", "d/b"))
    assert head(world, "c").link_count == 1 and world.reader.names(file_id) == [("bucket", "c")]


@BOTH
def test_a_new_file_takes_a_key_and_leaves_the_old_file_without_a_name(versioning: Versioning) -> None:
    world = World()
    world.bucket(versioning=versioning)
    attributes = Attributes(mode=0o100600, uid=5, mtime_ns=7)
    world.put("a", b"old", door=Door.MOUNT, attributes=attributes)
    old = head(world, "a")
    decision = world.decide(put("a", b"new", new_file=True))
    new = head(world, "a")
    assert new.file_id == new.lsn != old.file_id and new.attributes == Attributes(mode=0o100600, uid=5)
    assert decision.touched == [Touched("bucket", "a", new.file_id), Touched("bucket", "a", old.file_id)]
    assert world.reader.names(old.file_id) == [] and world.reader.names(new.file_id) == [("bucket", "a")]
    late = world.put("a", b"late", door=Door.MOUNT, file_id=old.file_id)
    assert late.version is None and world.text("a") == b"new", "who has the old file open reaches no key"


def test_a_completed_upload_is_a_new_file() -> None:
    world = world_with("a")
    old = head(world, "a").file_id
    upload_id = world.do(CreateUpload("bucket", "a")).upload_id
    assert upload_id is not None
    part = world.do(PutPart("bucket", "a", upload_id, 1, put("a", b"new").content, b"")).part
    assert part is not None
    choices = [PartChoice(1, part.lsn)]
    content = put("a", b"new").content
    world.do(CompleteUpload("bucket", "a", upload_id, choices, content, "e-1", [], new_file=True))
    assert world.text("a") == b"new" and head(world, "a").file_id == head(world, "a").lsn != old


def test_records_of_before_new_files_keep_the_file_id() -> None:
    """Replaying an older release's journal makes the keymap that release made."""
    world = world_with("a")
    old = head(world, "a").file_id
    record = msgspec.msgpack.encode(put("a", b"1", new_file=True))
    assert b"new_file" in record and b"new_file" not in msgspec.msgpack.encode(put("a", b"1"))
    world.put("a", b"1")
    assert head(world, "a").file_id == old


def test_a_version_that_is_the_newest_again_is_another_file_than_the_one_removed() -> None:
    world = World()
    world.bucket(versioning=Versioning.ENABLED)
    world.put("a", b"1")
    first = head(world, "a")
    world.put("a", b"2", door=Door.MOUNT, file_id=first.file_id)
    second = head(world, "a")
    assert second.file_id == first.file_id, "a write at the mount"
    world.do(DeleteKey("bucket", "a"))
    marker = world.reader.head("bucket", "a")
    assert marker is not None and marker.delete_marker
    world.do(DeleteKey("bucket", "a", version_id=marker.version_id, new_file=True))
    assert head(world, "a").file_id == second.file_id, "the version is back, and its file with it"
    world.do(DeleteKey("bucket", "a", version_id=second.version_id, new_file=True))
    assert world.text("a") == b"1" and head(world, "a").file_id not in (0, first.file_id)


def test_a_delete_marker_under_a_delete_marker_is_no_file() -> None:
    world = World()
    world.bucket(versioning=Versioning.ENABLED)
    world.do(DeleteKey("bucket", "a"))
    second = world.do(DeleteKey("bucket", "a")).version
    assert second is not None
    world.do(DeleteKey("bucket", "a", version_id=second.version_id, new_file=True))
    left = world.reader.head("bucket", "a")
    assert left is not None and left.delete_marker and left.file_id == 0


def test_links_are_refused_where_a_name_is_taken() -> None:
    world = world_with("a", "b", "d/x")
    for target in ("b", "d"):
        with pytest.raises(AlreadyExists):
            world.mount(Link("bucket", "a", "bucket", target))
    with pytest.raises(NoSuchKey):
        world.mount(Link("bucket", "none", "bucket", "c"))
    with pytest.raises(IsADirectory):
        world.mount(Link("bucket", "d/", "bucket", "c"))


def test_renaming_one_name_onto_another_of_the_same_file_does_nothing() -> None:
    world = linked()
    world.mount(rename("a", "d/b"))
    assert world.listed() == ["a", "d/b"]


def test_renaming_onto_a_linked_name_leaves_the_other() -> None:
    world = linked()
    world.put("x", b"x", door=Door.MOUNT)
    world.mount(rename("x", "a"))
    assert head(world, "d/b").link_count == 1 and world.text("a") == b"x"
    world.mount(rename("d/b", "z"))
    assert world.text("z") == b"a"


def test_content_of_a_file_without_names_is_dropped() -> None:
    world = world_with("a")
    file_id = head(world, "a").file_id
    world.mount(DeleteKey("bucket", "a", must_exist=True))
    assert world.put("a", b"late", door=Door.MOUNT, file_id=file_id).version is None
    assert world.listed() == []


def test_writes_of_an_open_file_follow_its_rename() -> None:
    world = world_with("a")
    file_id = head(world, "a").file_id
    world.mount(rename("a", "b"))
    world.put("a", b"written", door=Door.MOUNT, file_id=file_id)
    assert world.listed() == ["b"] and world.text("b") == b"written"


# -- attributes --------------------------------------------------------------------


def test_attributes_merge_in_place_on_all_names() -> None:
    world = linked()
    before = head(world, "a")
    world.mount(SetAttributes("bucket", "a", Attributes(mode=0o100600, uid=1, xattrs={"user.a": b"1"})))
    world.mount(SetAttributes("bucket", "a", Attributes(uid=2, xattrs={"user.b": b"2"}), file_id=before.file_id))
    expected = Attributes(mode=0o100600, uid=2, xattrs={"user.a": b"1", "user.b": b"2"})
    assert head(world, "a").attributes == head(world, "d/b").attributes == expected
    world.mount(SetAttributes("bucket", "a", Attributes(), replace_xattrs=True))
    after = head(world, "d/b")
    assert after.attributes == Attributes(mode=0o100600, uid=2) and after.lsn == head(world, "d/b").lsn
    assert head(world, "a").lsn == before.lsn


def test_directories_get_a_marker_with_their_attributes_and_buckets_need_none() -> None:
    world = world_with("d/x")
    result = world.decide(SetAttributes("bucket", "d/", Attributes(mode=0o40700)), Door.MOUNT)
    assert result.touched == [Touched("bucket", "d/", head(world, "d/").file_id)]
    assert head(world, "d/").attributes == Attributes(mode=0o40700) and head(world, "d/").size == 0
    with pytest.raises(NoSuchKey):
        world.mount(SetAttributes("bucket", "none/", Attributes(mode=0)))
    world.mount(SetAttributes("bucket", "", Attributes(uid=9)))
    assert world.reader.bucket("bucket").attributes == Attributes(uid=9)


def test_keys_without_a_path_are_counted() -> None:
    world = world_with("a//b", "./x", "ok", "d/", "x" * 256, "/lead", "nul\0")
    assert world.reader.hidden_keys() == 5
    assert [child.name for child in world.reader.children("bucket", "")] == ["a", "d", "ok"]
    world.do(DeleteKey("bucket", "a//b"))
    assert world.reader.hidden_keys() == 4
