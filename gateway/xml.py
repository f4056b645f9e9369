"""S3's XML documents. Signatures first; the bodies follow. Emitters return bytes."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from engine.interfaces import ListPage, VersionsPage
from engine.types import Bucket, Part, Upload, Version, Versioning

BODY_BYTES_MAX = 2 * 1024**2  # DeleteObjects with 1,000 keys of 1,024 bytes, escaped


class ObjectToDelete(Struct, frozen=True):
    key: str
    version_id: str | None = None
    etag: str | None = None  # without quotes, or "*"
    last_modified_ns: int | None = None
    size: int | None = None


class CompletedPart(Struct, frozen=True):
    number: int
    etag: str  # without quotes
    checksums: dict[str, str] = {}  # algorithm → base64


class Deleted(Struct, frozen=True):
    key: str
    version_id: str | None = None
    delete_marker: bool = False
    delete_marker_version_id: str | None = None


class DeleteFailed(Struct, frozen=True):
    key: str
    code: str
    message: str
    version_id: str | None = None


# parsers: body → value; raise MalformedXML
def parse_create_bucket(body: bytes) -> str | None: ...  # LocationConstraint; empty body: None
def parse_delete(body: bytes) -> tuple[list[ObjectToDelete], bool]: ...  # (objects, quiet)
def parse_complete_upload(body: bytes) -> list[CompletedPart]: ...  # InvalidPartOrder too
def parse_tagging(body: bytes) -> list[tuple[str, str]]: ...  # not yet checked: names.check_tags
def parse_versioning(body: bytes) -> Versioning: ...


# emitters
def list_buckets(buckets: Sequence[Bucket], *, owner: str, prefix: str | None = None, token: str | None = None, region: str | None = None) -> bytes: ...
def location(region: str) -> bytes: ...  # us-east-1 → empty element
def list_objects(page: ListPage, *, bucket: str, prefix: str, delimiter: str, marker: str, max_keys: int, url: bool, owner: str) -> bytes: ...
def list_objects_v2(page: ListPage, *, bucket: str, prefix: str, delimiter: str, max_keys: int, url: bool, start_after: str | None, token: str | None, owner: str | None) -> bytes: ...  # NextContinuationToken made of page.next_after
def encode_token(after: str) -> str: ...
def decode_token(token: str) -> str: ...  # InvalidArgument
def list_versions(page: VersionsPage, *, bucket: str, prefix: str, delimiter: str, key_marker: str, version_id_marker: str, max_keys: int, url: bool, owner: str) -> bytes: ...
def initiate_upload(bucket: str, key: str, upload_id: str) -> bytes: ...
def complete_upload(version: Version, *, location: str) -> bytes: ...
def copy_object(version: Version) -> bytes: ...
def copy_part(part: Part) -> bytes: ...
def list_parts(upload: Upload, parts: Sequence[Part], *, marker: int, max_parts: int, truncated: bool, owner: str, url: bool = False) -> bytes: ...
def list_uploads(uploads: Sequence[Upload], common_prefixes: Sequence[str], *, bucket: str, prefix: str, delimiter: str, key_marker: str, upload_id_marker: str, max_uploads: int, next_key: str | None, next_upload_id: str | None, url: bool, owner: str) -> bytes: ...
def delete_result(deleted: Sequence[Deleted], failed: Sequence[DeleteFailed]) -> bytes: ...
def object_attributes(version: Version, wanted: frozenset[str], *, max_parts: int = 1000, part_marker: int = 0) -> bytes: ...
def tagging(tags: dict[str, str]) -> bytes: ...
def versioning(state: Versioning) -> bytes: ...
def iso_time(time_ns: int) -> str: ...  # 2026-11-21T05:12:27.000Z
