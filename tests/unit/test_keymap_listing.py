"""Listings of the keymap against a filter over all keys."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.changes import DeleteKey
from engine.types import Versioning
from tests.unit.keymap_world import World

letters = st.sampled_from(["a", "b", "/", "-", "0", "é", "\U0010ffff", "\ud7ff", "\ue000"])
key = st.text(letters, min_size=1, max_size=6)
some = st.text(letters, max_size=3)


def items(keys: set[str], prefix: str, delimiter: str, after: str) -> list[str]:
    """Keys and common prefixes, in order, as S3 defines them."""
    found = set()
    for name in keys:
        if name.startswith(prefix):
            at = name.find(delimiter, len(prefix)) if delimiter else -1
            found.add((name, name) if at < 0 else (name[: at + len(delimiter)], ""))
    return sorted(item for item, _ in found if item > after)


def world_of(keys: set[str], gone: set[str]) -> World:
    world = World()
    world.bucket(versioning=Versioning.ENABLED)
    for name in sorted(keys | gone):
        world.put(name)
    for name in sorted(gone - keys):
        world.do(DeleteKey("bucket", name))
    return world


@settings(max_examples=120, deadline=None)
@given(
    st.sets(key, max_size=14),
    st.sets(key, max_size=4),
    some,
    st.sampled_from(["", "/", "a", "-/"]),
    some,
    st.integers(1, 4),
)
def test_pages_of_objects_hold_what_a_filter_finds(
    keys: set[str], gone: set[str], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    reader = world_of(keys, gone).reader
    expected = items(keys, prefix, delimiter, after)
    found: list[str] = []
    place: str | None = after
    while place is not None:
        page = reader.list_objects("bucket", prefix, delimiter, place, limit)
        some_items = sorted([version.key for version in page.versions] + page.common_prefixes)
        assert len(some_items) <= limit
        assert page.next_after is None or len(some_items) == limit
        found += some_items
        place = page.next_after
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(key, max_size=14), st.sets(key, max_size=3), some, st.sampled_from(["", "/"]), st.integers(1, 4))
def test_pages_of_versions_hold_every_version_once(
    puts: list[str], gone: set[str], prefix: str, delimiter: str, limit: int
) -> None:
    world = World()
    world.bucket(versioning=Versioning.ENABLED)
    stacks: dict[str, list[str]] = {}
    for name in [*puts, *puts[:3]]:
        version = world.put(name).version
        assert version is not None
        stacks.setdefault(name, []).insert(0, version.version_id)
    for name in gone:
        marker = world.do(DeleteKey("bucket", name)).version
        assert marker is not None
        stacks.setdefault(name, []).insert(0, marker.version_id)
    expected = [
        (item, version_id)
        for item in items(set(stacks), prefix, delimiter, "")
        for version_id in (
            stacks[item] if item in stacks and not (delimiter and item[len(prefix) :].count("/")) else [""]
        )
    ]
    found: list[tuple[str, str]] = []
    key_marker, version_id_marker = "", ""
    while True:
        page = world.reader.list_versions("bucket", prefix, delimiter, key_marker, version_id_marker, limit)
        found += sorted(
            [(version.key, version.version_id) for version in page.versions]
            + [(shared, "") for shared in page.common_prefixes],
            key=lambda item: item[0],
        )
        if page.next_key is None:
            break
        key_marker, version_id_marker = page.next_key, page.next_version_id or ""
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(st.sets(key, max_size=14), st.sampled_from(["", "a/", "b/a/"]), st.integers(1, 3))
def test_directories_show_every_name_that_has_a_path_once(keys: set[str], parent: str, limit: int) -> None:
    reader = world_of(keys, set()).reader
    directories = {
        rest.split("/")[0] for name in keys if name.startswith(parent) and "/" in (rest := name[len(parent) :])
    }
    files = {name[len(parent) :] for name in keys if name.startswith(parent) and "/" not in name[len(parent) :]}
    expected = {(name, True) for name in directories} | {(name, False) for name in files - directories}
    expected -= {("", True), ("", False)}
    found: list[tuple[str, bool]] = []
    after = ""
    while page := reader.children("bucket", parent, after, limit):
        found += [(child.name, child.is_directory) for child in page]
        after = page[-1].name
    assert sorted(found) == sorted(expected)
    for name, is_directory in expected:
        child = reader.lookup("bucket", parent, name)
        assert child is not None and child.is_directory == is_directory
        marked = is_directory and parent + name + "/" in keys
        assert (child.version is not None) == (marked or not is_directory)


def test_listing_skips_a_common_prefix_without_reading_below_it() -> None:
    world = World()
    world.bucket()
    for number in range(3000):
        world.db.execute(
            """INSERT INTO keys (bucket_id, key, lsn, marker, version_id, last_modified_ns, size, etag, file_id,
            link_count, storage_class, owner) VALUES (1, ?, 1, 0, 'null', 0, 0, '', 0, 1, 'STANDARD', '')""",
            (f"deep/{number:05}",),
        )
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    world.db.set_progress_handler(count, 100)
    page = world.reader.list_objects("bucket", delimiter="/")
    world.db.set_progress_handler(None, 0)
    assert page.common_prefixes == ["deep/"] and steps < 20


def test_uploads_page_by_key_and_age() -> None:
    from engine.changes import CreateUpload

    world = World()
    world.bucket()
    ids = [world.do(CreateUpload("bucket", name)).upload_id for name in ("a", "a", "b", "c/d")]
    everything = world.reader.uploads("bucket")
    assert [upload.upload_id for upload in everything] == ids
    assert [u.upload_id for u in world.reader.uploads("bucket", after_key="a", after_upload_id=ids[0] or "")] == ids[1:]
    assert [u.upload_id for u in world.reader.uploads("bucket", after_key="a")] == ids[2:]
    assert [u.key for u in world.reader.uploads("bucket", prefix="c", limit=5)] == ["c/d"]
    assert len(world.reader.uploads("bucket", limit=2)) == 2
