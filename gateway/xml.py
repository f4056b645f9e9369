"""S3's XML documents: request bodies parsed, answers written.

Follows the schemas of the S3 API Reference. Pure functions: parsers take the whole body
and raise MalformedXML, emitters return the whole document. No DTD, entity or external
reference is ever processed; unknown elements are refused, never ignored, because what
they ask for would not be done.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from urllib.parse import quote
from xml.parsers import expat

from msgspec import Struct

from engine import limits
from engine.interfaces import ListPage, VersionsPage
from engine.types import Bucket, Checksum, ObjectPart, Part, Upload, Version, Versioning
from gateway import checksums
from gateway.conditions import parse_timestamp
from gateway.errors import S3Error, invalid_argument
from gateway.xml_text import XML_DECLARATION, escape

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
BODY_BYTES_MAX = 8 * 1024**2  # 1,000 keys of 1,024 bytes, every byte escaped; 10,000 parts with checksums
DEPTH_MAX = 8
ELEMENTS_MAX = 100_000  # 10,000 parts of eight elements
_DISPLAY_ETAG = "&quot;{}&quot;"


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


# -- parsing -----------------------------------------------------------------------


class _Element:
    __slots__ = ("children", "name", "pieces")

    def __init__(self, name: str) -> None:
        self.name = name
        self.children: list[_Element] = []
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        """The text of a leaf."""
        if self.children:
            raise S3Error("MalformedXML")
        return "".join(self.pieces)

    def fields(self, *allowed: str) -> dict[str, str]:
        """Children that are leaves, each at most once, none but the allowed."""
        values: dict[str, str] = {}
        for child in self.children:
            if child.name not in allowed or child.name in values:
                raise S3Error("MalformedXML")
            values[child.name] = child.text
        return values


class _TreeBuilder:
    """Collects expat's events; refuses what a request body never needs."""

    def __init__(self) -> None:
        self.root: _Element | None = None
        self._open: list[_Element] = []
        self._count = 0

    def start(self, qualified: str, attributes: dict[str, str]) -> None:
        namespace, _, name = qualified.rpartition("\n")
        self._count += 1
        if namespace not in ("", NAMESPACE) or len(self._open) >= DEPTH_MAX or self._count > ELEMENTS_MAX:
            raise S3Error("MalformedXML")
        if any(not attribute.startswith("http://www.w3.org/2001/XMLSchema-instance\n") for attribute in attributes):
            raise S3Error("MalformedXML")
        element = _Element(name)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _qualified: str) -> None:
        element = self._open.pop()
        if element.children and "".join(element.pieces).strip():
            raise S3Error("MalformedXML")

    def text(self, data: str) -> None:
        self._open[-1].pieces.append(data)

    def refuse(self, *_ignored: object) -> None:
        raise S3Error("MalformedXML")


def _parse(body: bytes, root: str) -> _Element:
    if len(body) > BODY_BYTES_MAX:
        raise S3Error("MalformedXML")
    builder = _TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="\n")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    parser.ExternalEntityRefHandler = None
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError):  # the latter two: an unknown encoding
        raise S3Error("MalformedXML") from None
    if builder.root is None or builder.root.name != root:
        raise S3Error("MalformedXML")
    return builder.root


def parse_create_bucket(body: bytes) -> str | None:
    """The LocationConstraint; None if there is none or the body is empty."""
    if not body.strip():
        return None
    root = _parse(body, "CreateBucketConfiguration")
    for child in root.children:
        if child.name in ("Location", "Bucket", "Tags"):
            raise S3Error("NotImplemented", f"{child.name} in CreateBucketConfiguration is not implemented.")
    return root.fields("LocationConstraint").get("LocationConstraint", "").strip() or None


def parse_delete(body: bytes) -> tuple[list[ObjectToDelete], bool]:
    """(objects, quiet) of DeleteObjects, at most 1,000."""
    objects: list[ObjectToDelete] = []
    quiet = False
    for child in _parse(body, "Delete").children:
        if child.name == "Object":
            objects.append(_object_to_delete(child))
        elif child.name == "Quiet":
            quiet = _boolean(child.text)
        else:
            raise S3Error("MalformedXML")
    if not 1 <= len(objects) <= limits.DELETE_KEYS_MAX:
        raise S3Error("MalformedXML")
    return objects, quiet


def _object_to_delete(element: _Element) -> ObjectToDelete:
    fields = element.fields("Key", "VersionId", "ETag", "LastModifiedTime", "Size")
    key = fields.get("Key")
    if not key:
        raise S3Error("MalformedXML")
    modified = fields.get("LastModifiedTime")
    modified_ns = parse_timestamp(modified.strip()) if modified is not None else None
    if modified is not None and modified_ns is None:
        raise S3Error("MalformedXML")
    etag = fields.get("ETag")
    return ObjectToDelete(
        key=key,
        version_id=fields.get("VersionId") or None,
        etag=_etag(etag) if etag is not None else None,
        last_modified_ns=modified_ns,
        size=_integer(fields["Size"]) if "Size" in fields else None,
    )


def parse_complete_upload(body: bytes) -> list[CompletedPart]:
    """The parts, in ascending order. Raises MalformedXML, InvalidPartOrder."""
    parts: list[CompletedPart] = []
    for child in _parse(body, "CompleteMultipartUpload").children:
        if child.name != "Part":
            raise S3Error("MalformedXML")
        fields = child.fields("PartNumber", "ETag", *checksums.ELEMENTS.values())
        if "PartNumber" not in fields or "ETag" not in fields:
            raise S3Error("MalformedXML")
        sums = {name: fields[tag].strip() for name, tag in checksums.ELEMENTS.items() if tag in fields}
        parts.append(CompletedPart(_integer(fields["PartNumber"]), _etag(fields["ETag"]), sums))
    if not 1 <= len(parts) <= limits.PARTS_MAX:
        raise S3Error("MalformedXML")
    for part in parts:
        if not 1 <= part.number <= limits.PART_NUMBER_MAX:
            raise invalid_argument(
                f"PartNumber must be >= 1 and <= {limits.PART_NUMBER_MAX}", "partNumber", str(part.number)
            )
    if any(later.number <= earlier.number for earlier, later in pairwise(parts)):
        raise S3Error("InvalidPartOrder")
    return parts


def parse_tagging(body: bytes) -> list[tuple[str, str]]:
    """Keys and values as sent; names.check_tags judges them."""
    root = _parse(body, "Tagging")
    if len(root.children) != 1 or root.children[0].name != "TagSet":
        raise S3Error("MalformedXML")
    tags = []
    for child in root.children[0].children:
        if child.name != "Tag":
            raise S3Error("MalformedXML")
        fields = child.fields("Key", "Value")
        if len(fields) != 2:
            raise S3Error("MalformedXML")
        tags.append((fields["Key"], fields["Value"]))
    return tags


def parse_versioning(body: bytes) -> Versioning:
    """ENABLED or SUSPENDED. Raises IllegalVersioningConfigurationException without
    Status, NotImplemented for MFA delete."""
    fields = _parse(body, "VersioningConfiguration").fields("Status", "MfaDelete")
    if fields.get("MfaDelete", "Disabled") != "Disabled":
        raise S3Error("NotImplemented", "MFA delete is not implemented.")
    if "Status" not in fields:
        raise S3Error("IllegalVersioningConfigurationException")
    if fields["Status"] not in (Versioning.ENABLED, Versioning.SUSPENDED):
        raise S3Error("MalformedXML")
    return Versioning(fields["Status"])


def _etag(text: str) -> str:
    return text.strip().removeprefix('"').removesuffix('"')


def _integer(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise S3Error("MalformedXML")
    return int(digits)


def _boolean(text: str) -> bool:
    value = text.strip().lower()
    if value not in ("true", "false", "1", "0"):
        raise S3Error("MalformedXML")
    return value in ("true", "1")


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
