"""S3's XML documents: answers written here, request bodies parsed in xml_requests.

Follows the schemas of the S3 API Reference. Pure functions that return the whole
document; this is the one module the operations need for XML.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from urllib.parse import quote

from msgspec import Struct

from engine.interfaces import ListPage, VersionsPage
from engine.types import Bucket, Checksum, ObjectPart, Part, Upload, Version, Versioning
from gateway import checksums
from gateway.errors import invalid_argument
from gateway.xml_requests import (
    BODY_BYTES_MAX,
    CompletedPart,
    ObjectToDelete,
    parse_complete_upload,
    parse_create_bucket,
    parse_delete,
    parse_tagging,
    parse_versioning,
)
from gateway.xml_text import NAMESPACE, XML_DECLARATION, escape

__all__ = [
    "BODY_BYTES_MAX",
    "NAMESPACE",
    "CompletedPart",
    "DeleteFailed",
    "Deleted",
    "ObjectToDelete",
    "complete_upload",
    "copy_object",
    "copy_part",
    "decode_token",
    "delete_result",
    "encode_token",
    "initiate_upload",
    "iso_time",
    "list_buckets",
    "list_objects",
    "list_objects_v2",
    "list_parts",
    "list_uploads",
    "list_versions",
    "location",
    "object_attributes",
    "parse_complete_upload",
    "parse_create_bucket",
    "parse_delete",
    "parse_tagging",
    "parse_versioning",
    "tagging",
    "versioning",
]

_DISPLAY_ETAG = "&quot;{}&quot;"


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


# -- pieces of answers ---------------------------------------------------------------


@lru_cache(maxsize=4096)
def _iso_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(second))


def iso_time(time_ns: int) -> str:
    """As S3 writes times in XML: whole seconds, the same moment as Last-Modified."""
    return _iso_second(time_ns // 1_000_000_000)


def _tag(name: str, value: str | int | bool | None) -> str:
    """<name>value</name>; nothing at all for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        value = "true" if value else "false"
    return f"<{name}>{escape(value) if isinstance(value, str) else value}</{name}>"


def _document(root: str, pieces: Iterable[str]) -> bytes:
    return f'{XML_DECLARATION}<{root} xmlns="{NAMESPACE}">{"".join(pieces)}</{root}>'.encode()


def _encoder(url: bool) -> Callable[[str], str]:
    return (lambda text: quote(text, safe="/")) if url else (lambda text: text)


def _etag_tag(etag: str) -> str:
    return f"<ETag>{_DISPLAY_ETAG.format(etag)}</ETag>"


def _owner(name: str, element: str = "Owner") -> str:
    return f"<{element}>{_tag('ID', name)}{_tag('DisplayName', name)}</{element}>"


def _checksum_tags(checksum: Checksum | None, *, with_type: bool = True) -> str:
    if checksum is None:
        return ""
    kind = _tag("ChecksumType", checksum.type) if with_type else ""
    return _tag(checksums.ELEMENTS[checksum.algorithm], checksum.value) + kind


def _listed_checksum(checksum: Checksum | None) -> str:
    if checksum is None:
        return ""
    return _tag("ChecksumAlgorithm", checksum.algorithm) + _tag("ChecksumType", checksum.type)


def _prefixes(prefixes: Sequence[str], encode: Callable[[str], str]) -> list[str]:
    return [f"<CommonPrefixes>{_tag('Prefix', encode(prefix))}</CommonPrefixes>" for prefix in prefixes]


# -- buckets and listings --------------------------------------------------------------


def list_buckets(
    buckets: Sequence[Bucket],
    *,
    owner: str,
    prefix: str | None = None,
    token: str | None = None,
    region: str | None = None,
) -> bytes:
    """`token` continues the listing; `region` is every bucket's, shown when not None."""
    entries = [
        f"<Bucket>{_tag('Name', bucket.name)}{_tag('CreationDate', iso_time(bucket.created_ns))}"
        f"{_tag('BucketRegion', region)}</Bucket>"
        for bucket in buckets
    ]
    return _document(
        "ListAllMyBucketsResult",
        [_owner(owner), "<Buckets>", *entries, "</Buckets>", _tag("ContinuationToken", token), _tag("Prefix", prefix)],
    )


def location(region: str) -> bytes:
    """us-east-1 is an empty element, as in S3."""
    return _document("LocationConstraint", ["" if region == "us-east-1" else escape(region)])


def _contents(page: ListPage, encode: Callable[[str], str], owner: str | None) -> list[str]:
    owner_tag = _owner(owner) if owner is not None else ""
    return [
        f"<Contents><Key>{escape(encode(version.key))}</Key>"
        f"<LastModified>{iso_time(version.last_modified_ns)}</LastModified>{_etag_tag(version.etag)}"
        f"{_listed_checksum(version.checksum)}<Size>{version.size}</Size>{owner_tag}"
        f"{_tag('StorageClass', version.storage_class)}</Contents>"
        for version in page.versions
    ]


def list_objects(
    page: ListPage,
    *,
    bucket: str,
    prefix: str,
    delimiter: str,
    marker: str,
    max_keys: int,
    url: bool,
    owner: str,
) -> bytes:
    """Version 1. NextMarker is there only with a delimiter, as in S3: without one the
    last key is the next marker."""
    encode = _encoder(url)
    following = page.next_after if delimiter else None
    return _document(
        "ListBucketResult",
        [
            _tag("Name", bucket),
            _tag("Prefix", encode(prefix)),
            _tag("Marker", encode(marker)),
            _tag("NextMarker", encode(following) if following is not None else None),
            _tag("MaxKeys", max_keys),
            _tag("Delimiter", encode(delimiter) if delimiter else None),
            _tag("EncodingType", "url" if url else None),
            _tag("IsTruncated", page.next_after is not None),
            *_contents(page, encode, owner),
            *_prefixes(page.common_prefixes, encode),
        ],
    )


def list_objects_v2(
    page: ListPage,
    *,
    bucket: str,
    prefix: str,
    delimiter: str,
    max_keys: int,
    url: bool,
    start_after: str | None,
    token: str | None,
    owner: str | None,
) -> bytes:
    """Version 2. `token` is the request's; `owner` is None unless fetch-owner was asked."""
    encode = _encoder(url)
    following = encode_token(page.next_after) if page.next_after is not None else None
    return _document(
        "ListBucketResult",
        [
            _tag("Name", bucket),
            _tag("Prefix", encode(prefix)),
            _tag("StartAfter", encode(start_after) if start_after is not None else None),
            _tag("ContinuationToken", token),
            _tag("NextContinuationToken", following),
            _tag("KeyCount", len(page.versions) + len(page.common_prefixes)),
            _tag("MaxKeys", max_keys),
            _tag("Delimiter", encode(delimiter) if delimiter else None),
            _tag("EncodingType", "url" if url else None),
            _tag("IsTruncated", page.next_after is not None),
            *_contents(page, encode, owner),
            *_prefixes(page.common_prefixes, encode),
        ],
    )


def encode_token(after: str) -> str:
    """A continuation token: opaque to clients, and safe in URLs and XML."""
    return base64.urlsafe_b64encode(b"1" + after.encode()).decode()


def decode_token(token: str) -> str:
    """What encode_token was given. Raises InvalidArgument."""
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        if raw[:1] != b"1":
            raise ValueError("another release's token")
        return raw[1:].decode()
    except (binascii.Error, ValueError):
        raise invalid_argument("The continuation token provided is incorrect", "continuation-token", token) from None


def list_versions(
    page: VersionsPage,
    *,
    bucket: str,
    prefix: str,
    delimiter: str,
    key_marker: str,
    version_id_marker: str,
    max_keys: int,
    url: bool,
    owner: str,
) -> bytes:
    encode = _encoder(url)
    following = encode(page.next_key) if page.next_key is not None else None
    return _document(
        "ListVersionsResult",
        [
            _tag("Name", bucket),
            _tag("Prefix", encode(prefix)),
            _tag("KeyMarker", encode(key_marker)),
            _tag("VersionIdMarker", version_id_marker),
            _tag("NextKeyMarker", following),
            _tag("NextVersionIdMarker", page.next_version_id),
            _tag("MaxKeys", max_keys),
            _tag("Delimiter", encode(delimiter) if delimiter else None),
            _tag("EncodingType", "url" if url else None),
            _tag("IsTruncated", page.next_key is not None),
            *(_listed_version(version, encode, owner) for version in page.versions),
            *_prefixes(page.common_prefixes, encode),
        ],
    )


def _listed_version(version: Version, encode: Callable[[str], str], owner: str) -> str:
    name = (
        f"{_tag('Key', encode(version.key))}{_tag('VersionId', version.version_id)}"
        f"{_tag('IsLatest', version.is_latest)}{_tag('LastModified', iso_time(version.last_modified_ns))}"
    )
    if version.delete_marker:
        return f"<DeleteMarker>{name}{_owner(owner)}</DeleteMarker>"
    return (
        f"<Version>{name}{_etag_tag(version.etag)}{_listed_checksum(version.checksum)}"
        f"{_tag('Size', version.size)}{_owner(owner)}{_tag('StorageClass', version.storage_class)}</Version>"
    )


# -- objects -----------------------------------------------------------------------


def initiate_upload(bucket: str, key: str, upload_id: str) -> bytes:
    return _document(
        "InitiateMultipartUploadResult", [_tag("Bucket", bucket), _tag("Key", key), _tag("UploadId", upload_id)]
    )


def complete_upload(version: Version, *, location: str) -> bytes:
    return _document(
        "CompleteMultipartUploadResult",
        [
            _tag("Location", location),
            _tag("Bucket", version.bucket),
            _tag("Key", version.key),
            _etag_tag(version.etag),
            _checksum_tags(version.checksum),
        ],
    )


def copy_object(version: Version) -> bytes:
    return _document(
        "CopyObjectResult",
        [
            _etag_tag(version.etag),
            _tag("LastModified", iso_time(version.last_modified_ns)),
            _checksum_tags(version.checksum),
        ],
    )


def copy_part(part: Part) -> bytes:
    return _document(
        "CopyPartResult",
        [
            _etag_tag(part.etag),
            _tag("LastModified", iso_time(part.last_modified_ns)),
            _checksum_tags(part.checksum, with_type=False),
        ],
    )


def list_parts(
    upload: Upload,
    parts: Sequence[Part],
    *,
    marker: int,
    max_parts: int,
    truncated: bool,
    owner: str,
    url: bool = False,
) -> bytes:
    entries = [
        f"<Part>{_tag('PartNumber', part.number)}{_tag('LastModified', iso_time(part.last_modified_ns))}"
        f"{_etag_tag(part.etag)}{_tag('Size', part.size)}{_checksum_tags(part.checksum, with_type=False)}</Part>"
        for part in parts
    ]
    return _document(
        "ListPartsResult",
        [
            _tag("Bucket", upload.bucket),
            _tag("Key", _encoder(url)(upload.key)),
            _tag("UploadId", upload.upload_id),
            _owner(owner, "Initiator"),
            _owner(owner),
            _tag("StorageClass", upload.storage_class),
            _tag("PartNumberMarker", marker),
            _tag("NextPartNumberMarker", parts[-1].number if parts else marker),
            _tag("MaxParts", max_parts),
            _tag("EncodingType", "url" if url else None),
            _tag("IsTruncated", truncated),
            _tag("ChecksumAlgorithm", upload.checksum_algorithm),
            _tag("ChecksumType", upload.checksum_type),
            *entries,
        ],
    )


def list_uploads(
    uploads: Sequence[Upload],
    common_prefixes: Sequence[str],
    *,
    bucket: str,
    prefix: str,
    delimiter: str,
    key_marker: str,
    upload_id_marker: str,
    max_uploads: int,
    next_key: str | None,
    next_upload_id: str | None,
    url: bool,
    owner: str,
) -> bytes:
    """`next_key` is None when the listing is complete."""
    encode = _encoder(url)
    entries = [
        f"<Upload>{_tag('Key', encode(upload.key))}{_tag('UploadId', upload.upload_id)}"
        f"{_owner(owner, 'Initiator')}{_owner(owner)}{_tag('StorageClass', upload.storage_class)}"
        f"{_tag('Initiated', iso_time(upload.initiated_ns))}{_tag('ChecksumAlgorithm', upload.checksum_algorithm)}"
        f"{_tag('ChecksumType', upload.checksum_type)}</Upload>"
        for upload in uploads
    ]
    return _document(
        "ListMultipartUploadsResult",
        [
            _tag("Bucket", bucket),
            _tag("KeyMarker", encode(key_marker)),
            _tag("UploadIdMarker", upload_id_marker),
            _tag("NextKeyMarker", encode(next_key) if next_key is not None else None),
            _tag("NextUploadIdMarker", next_upload_id),
            _tag("Prefix", encode(prefix)),
            _tag("Delimiter", encode(delimiter) if delimiter else None),
            _tag("MaxUploads", max_uploads),
            _tag("EncodingType", "url" if url else None),
            _tag("IsTruncated", next_key is not None),
            *entries,
            *_prefixes(common_prefixes, encode),
        ],
    )


def delete_result(deleted: Sequence[Deleted], failed: Sequence[DeleteFailed]) -> bytes:
    pieces = [
        f"<Deleted>{_tag('Key', entry.key)}{_tag('VersionId', entry.version_id)}"
        f"{_tag('DeleteMarker', entry.delete_marker or None)}"
        f"{_tag('DeleteMarkerVersionId', entry.delete_marker_version_id)}</Deleted>"
        for entry in deleted
    ]
    pieces += [
        f"<Error>{_tag('Key', entry.key)}{_tag('VersionId', entry.version_id)}{_tag('Code', entry.code)}"
        f"{_tag('Message', entry.message)}</Error>"
        for entry in failed
    ]
    return _document("DeleteResult", pieces)


def object_attributes(
    version: Version, wanted: frozenset[str], *, max_parts: int = 1000, part_marker: int = 0
) -> bytes:
    """GetObjectAttributes. `wanted` of ETag, Checksum, ObjectParts, StorageClass,
    ObjectSize. The ETag stands without quotes here, as in S3."""
    pieces: list[str] = []
    if "ETag" in wanted:
        pieces.append(_tag("ETag", version.etag))
    if "Checksum" in wanted and version.checksum is not None:
        # Here S3 gives a composite value without its "-N".
        bare = Checksum(version.checksum.algorithm, version.checksum.value.partition("-")[0], version.checksum.type)
        pieces.append(f"<Checksum>{_checksum_tags(bare)}</Checksum>")
    if "ObjectParts" in wanted and version.is_multipart:
        pieces.append(_object_parts(version.parts, max_parts, part_marker))
    if "StorageClass" in wanted:
        pieces.append(_tag("StorageClass", version.storage_class))
    if "ObjectSize" in wanted:
        pieces.append(_tag("ObjectSize", version.size))
    return _document("GetObjectAttributesResponse", pieces)


def _object_parts(parts: Sequence[ObjectPart], max_parts: int, marker: int) -> str:
    """Single parts are listed only if they carry checksums, as in S3."""
    listed = [part for part in parts if part.number > marker and part.checksum is not None]
    page = listed[:max_parts]
    entries = "".join(
        f"<Part>{_tag('PartNumber', part.number)}{_tag('Size', part.size)}"
        f"{_checksum_tags(part.checksum, with_type=False)}</Part>"
        for part in page
    )
    return (
        f"<ObjectParts>{_tag('PartsCount', len(parts))}{_tag('PartNumberMarker', marker)}"
        f"{_tag('NextPartNumberMarker', page[-1].number if page else marker)}{_tag('MaxParts', max_parts)}"
        f"{_tag('IsTruncated', len(listed) > len(page))}{entries}</ObjectParts>"
    )


def tagging(tags: dict[str, str]) -> bytes:
    entries = [f"<Tag>{_tag('Key', key)}{_tag('Value', value)}</Tag>" for key, value in tags.items()]
    return _document("Tagging", ["<TagSet>", *entries, "</TagSet>"])


def versioning(state: Versioning) -> bytes:
    return _document("VersioningConfiguration", [_tag("Status", state.value or None)])
