"""One keymap value → one row of its table (schema.py). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from engine.quarantine import SetAside
from engine.types import (
    Attributes,
    Bucket,
    ChunkEntry,
    Entry,
    Location,
    Manifest,
    NodeEntry,
    Part,
    Segment,
    SegmentLocation,
    SliceEntry,
    TreeEntry,
    Upload,
    User,
    Version,
)

Row = tuple[Any, ...]
_NO_ATTRIBUTES = Attributes()
_NO_PAIRS: list[tuple[str, str]] = []  # one for all: most versions have none
LoadTree = Callable[[TreeEntry], Manifest | None]  # a node of a manifest's tree; None: it cannot be read


def microseconds(time_ns: int) -> int:
    return time_ns // 1000


def pairs(mapping: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(mapping.items()) if mapping else _NO_PAIRS


def segment_id_text(segment_id: int) -> str:
    return f"{segment_id:016x}"


def bucket_row(bucket: Bucket) -> Row:
    created = microseconds(bucket.created_ns)
    return (bucket.name, bucket.bucket_id, created, str(bucket.versioning), bucket.owner, pairs(bucket.tags))


def version_row(version: Version) -> Row:
    attributes = version.attributes or _NO_ATTRIBUTES
    checksum = version.checksum
    return (
        version.bucket,
        version.key,
        version.version_id,
        version.lsn,
        max(version.lsn, version.changed_lsn),
        version.is_latest,
        version.delete_marker,
        version.size,
        microseconds(version.last_modified_ns),
        version.etag,
        version.storage_class,
        version.is_multipart,
        len(version.parts),
        checksum.algorithm if checksum else None,
        checksum.type if checksum else None,
        checksum.value if checksum else None,
        version.owner,
        version.file_id,
        version.link_count,
        attributes.mode,
        attributes.uid,
        attributes.gid,
        pairs(version.headers),
        None if version.delete_marker else pairs(version.user_metadata),
        None if version.delete_marker else pairs(version.tags),
    )


def upload_row(upload: Upload) -> Row:
    return (
        upload.bucket,
        upload.key,
        upload.upload_id,
        microseconds(upload.initiated_ns),
        upload.storage_class,
        upload.checksum_algorithm,
        upload.checksum_type,
        upload.owner,
        pairs(upload.user_metadata),
        pairs(upload.tags),
    )


def part_row(part: Part) -> Row:
    return (
        part.upload_id,
        part.number,
        part.lsn,
        part.size,
        part.etag,
        microseconds(part.last_modified_ns),
        part.checksum.algorithm if part.checksum else None,
        part.checksum.value if part.checksum else None,
    )


def chunk_row(chunk_id: bytes, scope: int, length: int, location: Location) -> Row:
    head = (chunk_id.hex(), scope, length, location.length)
    if isinstance(location, SegmentLocation):
        segment_id = segment_id_text(location.segment_id)
        return (*head, False, segment_id, location.stripe_offset, location.fragment_length, location.offset)
    return (*head, True, None, None, None, None)


def reference_rows(owner: Row, manifest: Manifest, load: LoadTree) -> Iterator[Row]:
    """`owner` is (bucket, key, version id, upload id, part number). Holes and inline bytes
    refer to no chunk. A node of the tree stands before what it leads to, with no bytes of
    its own, or for it, if it cannot be read."""
    scope, ordinals = manifest.scope, count()

    def walk(entries: list[Entry], offset: int) -> Iterator[Row]:
        for entry in entries:
            length, ordinal = entry.length, next(ordinals)
            match entry:
                case ChunkEntry():
                    yield (*owner, ordinal, offset, length, entry.chunk_id.hex(), scope, 0, length, False)
                case SliceEntry():
                    named = (entry.chunk_id.hex(), scope, entry.offset, entry.chunk_length)
                    yield (*owner, ordinal, offset, length, *named, False)
                case TreeEntry():
                    node = load(entry)
                    stands_for = length if node is None else 0
                    named = (entry.chunk_id.hex(), scope, 0, entry.chunk_length)
                    yield (*owner, ordinal, offset, stands_for, *named, True)
                    if node is not None:
                        yield from walk(node.entries, offset)
            offset += length

    return walk(manifest.entries, 0)


def segment_row(segment: Segment) -> Row:
    segment_id = segment_id_text(segment.segment_id)
    code = (segment_id, segment.code, segment.k, segment.m, segment.owner, str(segment.state), segment.size)
    scrubbed = microseconds(segment.scrubbed_ns) if segment.scrubbed_ns else None
    return (*code, segment.stripes, bool(segment.condemned_lsn), scrubbed)


def fragment_rows(segment: Segment) -> Iterator[Row]:
    for index, node_id in enumerate(segment.node_ids):
        yield (segment_id_text(segment.segment_id), index, node_id, index in segment.fragments_lost)


def node_row(node: NodeEntry) -> Row:
    since = microseconds(node.since_ns) if node.since_ns else None
    return (node.node_id, node.path, node.domain, str(node.state), node.generation, since, node.drains_again)


def quarantine_row(one: SetAside) -> Row:
    at = microseconds(one.time_ns) if one.time_ns else None
    return (one.node_id, one.file, at, one.size, one.reason, one.path)


def user_row(user: User) -> Row:
    """Without the secret, sealed or not."""
    return (user.name, user.access_key, str(user.access), user.root, microseconds(user.created_ns))
