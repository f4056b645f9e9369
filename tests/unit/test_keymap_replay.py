"""Replaying the accepted changes makes the same keymap, and every counter is right."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.changes import (
    Change,
    Condition,
    DeleteKey,
    Door,
    Link,
    Rename,
    SetAttributes,
    SetBucketVersioning,
    SetTags,
)
from engine.errors import StoreError
from engine.types import Attributes, Versioning
from tests.unit.keymap_world import World, put

TABLES = ("buckets", "keys", "history", "counters")
files = st.sampled_from(["a", "b", "d/x", "d/y", "d/e/z", "e//q"])
directories = st.sampled_from(["d/", "d/e/", "e/", "f/"])
names = st.one_of(files, directories)
buckets = st.sampled_from(["bucket", "other"])

changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(put, names, st.sampled_from([b"", b"1", b"22"]), buckets, new_file=st.booleans()),
    st.builds(put, files, st.just(b"333"), buckets, file_id=st.integers(3, 12), replaces_lsn=st.integers(3, 12)),
    st.builds(put, names, bucket=buckets, condition=st.just(Condition(absent_path=True))),
    st.builds(DeleteKey, buckets, names, keep_parent=st.booleans(), must_exist=st.booleans()),
    st.builds(DeleteKey, buckets, names, version_id=st.just("null"), new_file=st.booleans()),
    st.builds(Rename, buckets, files, buckets, files, exchange=st.booleans(), no_replace=st.booleans()),
    st.builds(Rename, buckets, directories, buckets, directories, exchange=st.booleans()),
    st.builds(Rename, buckets, names, buckets, names, exchange=st.just(True)),
    st.builds(Link, buckets, files, buckets, files),
    st.builds(SetAttributes, buckets, names, st.just(Attributes(mode=0o600))),
    st.builds(SetTags, buckets, names, st.just({"k": "v"})),
    st.builds(SetBucketVersioning, buckets, st.sampled_from([Versioning.ENABLED, Versioning.SUSPENDED])),
)


def rows(world: World) -> list[object]:
    return [world.db.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(changes, st.sampled_from([Door.S3, Door.MOUNT])), max_size=30))
def test_replay_makes_the_same_keymap(steps: list[tuple[Change, Door]]) -> None:
    first, again = World(), World()
    for world in (first, again):
        world.bucket()
        world.bucket("other")
    accepted = []
    for change, door in steps:
        try:
            first.do(change, door)  # recounts after each change
        except StoreError:
            continue
        accepted.append((change, door))
    for change, door in accepted:
        again.do(change, door)
    assert rows(again) == rows(first)
