"""Names and what hangs on them: bucket names, keys, query parameters, metadata, tags.

Follows "Bucket naming rules", "Naming Amazon S3 objects", "Object metadata" and
"Categorizing your objects using tags" of the S3 User Guide. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.errors import HeaderParseError
from email.header import Header, decode_header
from urllib.parse import unquote_to_bytes

from engine import limits
from gateway.errors import S3Error, invalid_argument

METADATA_PREFIX = "x-amz-meta-"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_IP_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+", re.ASCII)
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
_BAD_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")
_TAG_TEXT = re.compile(r"[\w\s+\-=.:/@]*")
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=")


def is_bucket_name(name: str) -> bool:
    return (
        _BUCKET.fullmatch(name) is not None
        and ".." not in name
        and _IP_ADDRESS.fullmatch(name) is None
        and not name.startswith(_RESERVED_PREFIXES)
        and not name.endswith(_RESERVED_SUFFIXES)
    )


def check_bucket_name(name: str) -> None:
    """Raises InvalidBucketName. For creating a bucket: others simply do not exist."""
    if not is_bucket_name(name):
        raise S3Error("InvalidBucketName", BucketName=name)


def check_key(key: str) -> None:
    """Raises KeyTooLongError, or UserKeyMustBeSpecified when empty."""
    if not key:
        raise S3Error("UserKeyMustBeSpecified")
    size = len(key.encode())
    if size > limits.KEY_BYTES_MAX:
        raise S3Error("KeyTooLongError", Size=str(size), MaxSizeAllowed=str(limits.KEY_BYTES_MAX))


# -- URI encoding ----------------------------------------------------------------


def _decode(raw: bytes) -> str:
    if _BAD_ESCAPE.search(raw):
        raise S3Error("InvalidURI", URI=raw.decode("utf-8", "replace"))
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", URI=raw.decode("utf-8", "replace")) from None


def decode_key(raw: bytes) -> str:
    """A path component or key: percent-decoded once, a plus stays a plus. InvalidURI."""
    return _decode(raw)


def decode_query(query_string: bytes) -> list[tuple[str, str]]:
    """Names and values in order; a plus is a space, a name alone has the value "".
    Raises InvalidURI."""
    pairs = []
    for piece in query_string.replace(b"+", b"%20").split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            pairs.append((_decode(name), _decode(value)))
    return pairs


def parse_copy_source(header: str) -> tuple[str, str, str | None]:
    """(bucket, key, version id) of x-amz-copy-source, which is URL-encoded and may start
    with a slash. Raises InvalidArgument, InvalidURI."""
    path, question, query = header.partition("?")
    version_id: str | None = None
    if question:
        if not query.startswith("versionId=") or query == "versionId=":
            raise invalid_argument("Unsupported copy source parameter.", "x-amz-copy-source", header)
        version_id = _decode(query.removeprefix("versionId=").encode())
    decoded = _decode(path.replace("+", "%20").encode())
    bucket, slash, key = decoded.removeprefix("/").partition("/")
    if bucket.startswith("arn:"):
        raise S3Error("NotImplemented", "Access point ARNs are not implemented as a copy source.")
    if not bucket or not slash or not key:
        raise invalid_argument(
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey", "x-amz-copy-source", header
        )
    return bucket, key, version_id


# -- user metadata ----------------------------------------------------------------


def user_metadata(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Values of x-amz-meta-* under their lower-case names without the prefix; repeated
    headers are joined by commas. Raises MetadataTooLarge."""
    metadata: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name.startswith(METADATA_PREFIX):
            name = name.removeprefix(METADATA_PREFIX)
            value = decode_metadata_value(raw_value)
            metadata[name] = f"{metadata[name]},{value}" if name in metadata else value
    size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
    if size > limits.METADATA_BYTES_MAX:
        raise S3Error("MetadataTooLarge", Size=str(size), MaxSizeAllowed=str(limits.METADATA_BYTES_MAX))
    return metadata


def decode_metadata_value(raw: bytes) -> str:
    """A metadata value as text: RFC 2047 encoded words decoded, else UTF-8, else Latin-1."""
    stripped = raw.strip()
    try:
        text = stripped.decode()
    except UnicodeDecodeError:
        text = stripped.decode("latin-1")
    if not _ENCODED_WORD.search(text):
        return text
    try:
        pieces = decode_header(text)
        return "".join(
            piece if isinstance(piece, str) else piece.decode(charset or "ascii") for piece, charset in pieces
        )
    except (HeaderParseError, UnicodeDecodeError, LookupError, ValueError):
        return text  # looks encoded and is not: keep what the client sent


def encode_metadata_value(value: str) -> bytes:
    """A metadata value as header bytes: as RFC 2047 encoded words if it is not printable
    ASCII, or would be taken for such words when it comes back."""
    if value.isascii() and value.isprintable() and not _ENCODED_WORD.search(value):
        return value.encode()
    return Header(value, "utf-8", maxlinelen=0).encode(linesep="").replace("\n", "").encode("ascii")


# -- tags ----------------------------------------------------------------------------


def check_tags(tags: Iterable[tuple[str, str]], *, limit: int) -> dict[str, str]:
    """Tags as a mapping. Raises InvalidTag, and BadRequest for more than `limit`."""
    checked: dict[str, str] = {}
    for key, value in tags:
        if not key or len(key) > limits.TAG_KEY_CHARACTERS_MAX or not _TAG_TEXT.fullmatch(key):
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid", TagKey=key)
        if len(value) > limits.TAG_VALUE_CHARACTERS_MAX or not _TAG_TEXT.fullmatch(value):
            raise S3Error("InvalidTag", "The TagValue you have provided is invalid", TagKey=key, TagValue=value)
        if key.startswith("aws:"):
            raise S3Error("InvalidTag", "System tags cannot be added/updated by requester", TagKey=key)
        if key in checked:
            raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key", TagKey=key)
        checked[key] = value
    if len(checked) > limit:
        kind = "Object" if limit == limits.TAGS_OBJECT_MAX else "Bucket"
        raise S3Error("BadRequest", f"{kind} tags cannot be greater than {limit}")
    return checked


def parse_tagging_header(header: str | None) -> dict[str, str]:
    """x-amz-tagging of an object. Raises InvalidArgument, InvalidTag, BadRequest."""
    if not header:
        return {}
    try:
        pairs = decode_query(header.encode())
    except S3Error:
        pairs = []
    if not pairs or len({name for name, _ in pairs}) != len(pairs):
        raise invalid_argument(
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag "
            "name duplicates.",
            "x-amz-tagging",
            header,
        )
    return check_tags(pairs, limit=limits.TAGS_OBJECT_MAX)
