"""The promises, as checks of an open store against the model.

Each raises Violation with what differs. They read through the same doors' calls that
clients use; only the cache of decoded chunks is emptied first where bytes are compared.
"""

from __future__ import annotations

import random
from typing import Any

from engine.errors import StoreError
from engine.read_path import ChunkCache
from engine.store import Store
from engine.types import Version
from sim.model import Model, ModelVersion


class Violation(AssertionError):
    """A promise is broken."""


def expected_row(model: Model, version: ModelVersion, *, latest: bool) -> dict[str, Any]:
    return {
        "version_id": version.version_id,
        "lsn": version.lsn,
        "size": len(version.content),
        "etag": version.etag,
        "delete_marker": version.delete_marker,
        "file_id": version.file_id,
        "link_count": model.links(version) if latest else 1,
        "user_metadata": version.user_metadata,
        "tags": version.tags,
        "attributes": version.attributes,
        "owner": version.owner,
        "last_modified_ns": version.time_ns,
        "is_latest": latest,
    }


def check_listings(store: Store, model: Model, dice: random.Random) -> None:
    """Buckets, versions, listings and uploads are the model's."""
    found = {bucket.name: bucket for bucket in store.keymap.buckets()}
    if set(found) != set(model.buckets):
        raise Violation(f"buckets {sorted(found)}, expected {sorted(model.buckets)}")
    for name, bucket in model.buckets.items():
        for field in ("versioning", "tags", "attributes", "owner"):
            if getattr(found[name], field) != getattr(bucket, field):
                raise Violation(
                    f"bucket {name} has {field} {getattr(found[name], field)}, expected {getattr(bucket, field)}"
                )
        expected = {
            (key, version.version_id): expected_row(model, version, latest=position == 0)
            for key, versions in bucket.keys.items()
            for position, version in enumerate(versions)
        }
        listed = list_versions(store, name, dice.choice((1, 3, 1000)))
        rows = {
            place: {field: getattr(version, field) for field in row}
            for place, row in expected.items()
            if (version := listed.get(place)) is not None
        }
        _compare(f"versions of {name}", rows | {place: {} for place in listed if place not in expected}, expected)
        _check_keys(store, model, name, dice)
        _check_uploads(store, model, name)


def list_versions(store: Store, bucket: str, limit: int) -> dict[tuple[str, str], Version]:
    listed: dict[tuple[str, str], Version] = {}
    key, version_id = "", ""
    while True:
        page = store.keymap.list_versions(bucket, key_marker=key, version_id_marker=version_id, limit=limit)
        for version in page.versions:
            if (version.key, version.version_id) in listed:
                raise Violation(f"{bucket}/{version.key} {version.version_id} is listed twice")
            listed[version.key, version.version_id] = version
        if page.next_key is None:
            return listed
        key, version_id = page.next_key, page.next_version_id or ""


def _check_keys(store: Store, model: Model, name: str, dice: random.Random) -> None:
    expected = [version.key for version in model.buckets[name].below("")]
    listed: list[str] = []
    after: str | None = ""
    while after is not None:
        page = store.keymap.list_objects(name, after=after, limit=dice.choice((1, 4, 1000)))
        listed += [version.key for version in page.versions]
        after = page.next_after
    if listed != expected:
        raise Violation(f"bucket {name} lists {listed}, expected {expected}")


def _check_uploads(store: Store, model: Model, name: str) -> None:
    expected = {
        upload_id: (upload.key, {number: (lsn, len(content)) for number, (lsn, content) in upload.parts.items()})
        for upload_id, upload in model.buckets[name].uploads.items()
    }
    found = {
        upload.upload_id: (
            upload.key,
            {part.number: (part.lsn, part.size) for part in store.keymap.parts(upload.upload_id)},
        )
        for upload in store.keymap.uploads(name)
    }
    _compare(f"uploads of {name}", found, expected)


def _compare(what: str, found: dict[Any, Any], expected: dict[Any, Any]) -> None:
    if found != expected:
        lines = [
            f"  {place}: is {found.get(place)}, expected {expected.get(place)}"
            for place in sorted({*found, *expected}, key=str)
            if found.get(place) != expected.get(place)
        ]
        raise Violation(f"{what} differ:\n" + "\n".join(lines))


async def check_bytes(store: Store, model: Model, dice: random.Random, share: float) -> None:
    """Every version, or a share of them, and every part reads back byte for byte."""
    if dice.random() < 0.7:
        store._reader._cache = ChunkCache()
    for bucket, version in list(model.versions()):
        if version.delete_marker or dice.random() > share:
            continue
        name = f"{bucket}/{version.key} {version.version_id} of LSN {version.lsn}"
        found = store.keymap.version(bucket, version.key, version.version_id)
        if found is None:
            raise Violation(f"{name} is gone")
        start = dice.choice((0, dice.randint(0, len(version.content))))
        length = dice.choice((None, dice.randint(0, len(version.content))))
        expected = version.content[start:] if length is None else version.content[start : start + length]
        await _check_content(store, name, found.manifest, expected, start, length)
    for bucket_name, bucket in model.buckets.items():
        for upload_id, upload in bucket.uploads.items():
            for part in store.keymap.parts(upload_id):
                name = f"part {part.number} of {bucket_name}/{upload.key}"
                await _check_content(store, name, part.manifest, upload.parts[part.number][1], 0, None)


async def _check_content(
    store: Store, name: str, manifest: Any, expected: bytes, start: int, length: int | None
) -> None:
    try:
        with store.pins.hold():
            found = b"".join([bytes(piece) async for piece in store.read(manifest, start, length)])
    except StoreError as error:
        raise Violation(f"{name} can't be read: {type(error).__name__}: {error}") from error
    if found != expected:
        raise Violation(f"{name} reads {len(found)} bytes that are not the {len(expected)} written")


async def check_books(store: Store) -> None:
    """fsck finds nothing, and every counter equals its recount."""
    problems = await store.fsck()
    if problems:
        raise Violation("fsck says:\n" + "\n".join(problems))
