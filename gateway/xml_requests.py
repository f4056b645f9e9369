"""S3's XML request bodies, parsed.

Pure functions: each takes a whole body and raises MalformedXML. No DTD, entity or
external reference is ever processed; unknown elements are refused, never ignored,
because what they ask for would not be done.
"""

from __future__ import annotations

from itertools import pairwise
from xml.parsers import expat

from msgspec import Struct

from engine import limits
from engine.types import Versioning
from gateway import checksums
from gateway.conditions import parse_timestamp
from gateway.errors import S3Error, invalid_argument
from gateway.xml_text import NAMESPACE

BODY_BYTES_MAX = 8 * 1024**2  # 1,000 keys of 1,024 bytes, every byte escaped; 10,000 parts with checksums
DEPTH_MAX = 8
ELEMENTS_MAX = 100_000  # 10,000 parts of eight elements


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
