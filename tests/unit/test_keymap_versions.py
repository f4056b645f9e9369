"""S3's versioning and conditional writes, as the keymap decides them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.changes import Condition, DeleteKey, Door, SetBucketVersioning, SetTags
from engine.errors import AlreadyExists, InvalidName, NoSuchBucket, NoSuchKey, NoSuchVersion, PreconditionFailed
from engine.types import Attributes, Versioning
from tests.unit.keymap_world import ABSENT, World

Stack = list[tuple[str, bytes | None]]  # newest first: version id, content (None: delete marker)


def model_put(stack: Stack, versioning: Versioning, version_id: str, content: bytes | None) -> None:
    if versioning is Versioning.UNVERSIONED:
        stack.clear()
    elif versioning is Versioning.SUSPENDED:
        stack[:] = [version for version in stack if version[0] != "null"]
    stack.insert(0, (version_id, content))


step = st.tuples(
    st.sampled_from(["put", "put", "delete", "delete version", "enable", "suspend"]),
    st.sampled_from(["a", "b"]),
    st.integers(0, 5),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(step, max_size=25))
def test_versions_are_what_a_list_per_key_says(steps: list[tuple[str, str, int]]) -> None:
    world = World()
    world.bucket()
    versioning = Versioning.UNVERSIONED
    model: dict[str, Stack] = {"a": [], "b": []}
    for what, key, number in steps:
        stack = model[key]
        if what == "put":
            version = world.put(key, content := str(world.lsn).encode()).version
            assert version is not None
            model_put(stack, versioning, version.version_id, content)
        elif what == "delete":
            marker = world.do(DeleteKey("bucket", key)).version
            if versioning is Versioning.UNVERSIONED:
                assert marker is None
                stack.clear()
            else:
                assert marker is not None and marker.delete_marker
                model_put(stack, versioning, marker.version_id, None)
        elif what == "delete version":
            if stack:
                version_id, content_or_marker = stack.pop(number % len(stack))
                result = world.do(DeleteKey("bucket", key, version_id=version_id))
                assert result.removed and result.removed_marker == (content_or_marker is None)
        else:
            versioning = Versioning.ENABLED if what == "enable" else Versioning.SUSPENDED
            world.do(SetBucketVersioning("bucket", versioning))
        page = world.reader.list_versions("bucket")
        assert [(v.key, v.version_id, v.delete_marker, v.is_latest) for v in page.versions] == [
            (key, version_id, content is None, place == 0)
            for key in "ab"
            for place, (version_id, content) in enumerate(model[key])
        ]
        for key, stack in model.items():
            assert world.text(key) == (stack[0][1] if stack else None)
            for version_id, held in stack:
                found = world.reader.version("bucket", key, version_id)
                assert found is not None and found.etag == ("" if held is None else f"etag-{held.decode()}")
        assert world.listed() == [key for key in "ab" if model[key] and model[key][0][1] is not None]


def test_version_ids_are_null_until_versioning_is_enabled() -> None:
    world = World()
    world.bucket()
    first = world.put("a").version
    world.do(SetBucketVersioning("bucket", Versioning.ENABLED))
    second = world.put("a").version
    assert first is not None and second is not None
    assert first.version_id == "null" and len(second.version_id) == 32


@pytest.mark.parametrize("versioning", [Versioning.UNVERSIONED, Versioning.ENABLED])
def test_conditions_are_decided_on_the_current_version(versioning: Versioning) -> None:
    world = World()
    world.bucket(versioning=versioning)
    with pytest.raises(NoSuchKey):
        world.put("a", condition=Condition(if_match=["x"]))
    world.put("a", b"1", condition=Condition(if_none_match=["*"]))
    with pytest.raises(PreconditionFailed, match="If-None-Match"):
        world.put("a", condition=Condition(if_none_match=["*"]))
    with pytest.raises(PreconditionFailed, match="If-Match"):
        world.put("a", condition=Condition(if_match=["other"]))
    version = world.put("a", b"2", condition=Condition(if_match=["etag-1"])).version
    assert version is not None
    with pytest.raises(PreconditionFailed):
        world.do(DeleteKey("bucket", "a", condition=Condition(expected_lsn=version.lsn - 1)))
    with pytest.raises(PreconditionFailed):
        world.do(DeleteKey("bucket", "a", condition=Condition(if_match_size=5)))
    same_second = Condition(if_match_last_modified_ns=version.last_modified_ns + 5, if_match_size=1)
    world.do(DeleteKey("bucket", "a", condition=same_second))
    world.put("a", b"3", condition=Condition(if_none_match=["*"], expected_lsn=0))


def test_exclusive_creation_sees_files_directories_and_what_is_below() -> None:
    world = World()
    world.bucket()
    world.put("d/e")
    for key in ("d", "d/", "d/e", "d/e/"):
        with pytest.raises(AlreadyExists):
            world.put(key, condition=ABSENT)
    world.put("d-", condition=ABSENT)


def test_deletes_of_what_is_not_there() -> None:
    world = World()
    world.bucket()
    assert not world.do(DeleteKey("bucket", "a")).removed
    with pytest.raises(NoSuchKey):
        world.do(DeleteKey("bucket", "a", must_exist=True))
    with pytest.raises(NoSuchVersion):
        world.do(DeleteKey("bucket", "a", version_id="null", must_exist=True))
    with pytest.raises(NoSuchBucket):
        world.do(DeleteKey("other", "a"))


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "\udc80"])
def test_keys_no_door_accepts_are_refused(key: str) -> None:
    world = World()
    world.bucket()
    with pytest.raises(InvalidName):
        world.put(key)


def test_a_mounts_open_file_replaces_its_own_version_only() -> None:
    world = World()
    world.bucket(versioning=Versioning.ENABLED)
    created = world.put("a", b"", door=Door.MOUNT).version
    assert created is not None
    first = world.put("a", b"1", door=Door.MOUNT, file_id=created.file_id, replaces_lsn=created.lsn).version
    assert [v.etag for v in world.reader.list_versions("bucket").versions] == ["etag-1"]
    assert first is not None
    world.put("a", b"s3")
    world.put("a", b"2", door=Door.MOUNT, file_id=created.file_id, replaces_lsn=first.lsn)
    assert [v.etag for v in world.reader.list_versions("bucket").versions] == ["etag-2", "etag-s3", "etag-1"]


def test_metadata_and_attributes_stay_where_the_writer_leaves_them() -> None:
    world = World()
    world.bucket()
    attributes = Attributes(mode=0o120777, uid=5, mtime_ns=7, link_target=b"x")
    old = world.put("a", b"1", headers={"content-type": "x/y"}, tags={"t": "1"}, attributes=attributes).version
    assert old is not None
    kept = world.put("a", b"2", door=Door.MOUNT, keep_metadata=True).version
    assert kept is not None and kept.headers == old.headers and kept.tags == old.tags
    assert kept.attributes == attributes and kept.file_id == old.file_id
    over = world.put("a", b"3").version
    assert over is not None and over.headers == {} and over.attributes == Attributes(uid=5)


def test_tags_are_set_in_place() -> None:
    world = World()
    world.bucket(versioning=Versioning.ENABLED)
    old, new = world.put("a", b"1").version, world.put("a", b"2").version
    assert old is not None and new is not None
    world.do(SetTags("bucket", "a", {"x": "1"}, version_id=old.version_id))
    world.do(SetTags("bucket", "a", {"x": "2"}))
    found = world.reader.list_versions("bucket").versions
    assert [(version.tags, version.lsn) for version in found] == [({"x": "2"}, new.lsn), ({"x": "1"}, old.lsn)]
    with pytest.raises(NoSuchVersion):
        world.do(SetTags("bucket", "a", {}, version_id="null"))
