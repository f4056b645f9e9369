"""GetObject and HeadObject."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec import Struct

from engine.types import Bucket, Checksum, Version
from gateway import conditions
from gateway.errors import S3Error, invalid_argument
from gateway.operations.common import (
    CONTENT_TYPE_DEFAULT,
    Context,
    checksum_headers,
    find_version,
    quoted,
    version_headers,
)
from gateway.ranges import ByteRange, parse_range
from gateway.request import Request
from gateway.responses import Response

_OVERRIDES = {
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
    "response-content-language": "Content-Language",
    "response-content-type": "Content-Type",
    "response-expires": "Expires",
}
_HEADER_NAMES = {
    "cache-control": "Cache-Control",
    "content-disposition": "Content-Disposition",
    "content-encoding": "Content-Encoding",
    "content-language": "Content-Language",
    "content-type": "Content-Type",
    "expires": "Expires",
}
_AT_ONCE_BYTES = 256 * 1024  # sent as one body: streams cost a small object more than its bytes


class Selection(Struct, frozen=True):
    """The bytes to answer with: all of a version, a range (206), or one part (206)."""

    offset: int
    length: int
    range: ByteRange | None
    checksum: Checksum | None
    parts_count: int | None = None


async def get_object(context: Context, request: Request) -> Response:
    bucket, version = await _readable(context, request)
    selection = _select(request, version)
    response = _answer(request, bucket, version, selection)
    if 0 < selection.length <= _AT_ONCE_BYTES:
        response.body = bytes(await context.store.read_range(version.manifest, selection.offset, selection.length))
    elif selection.length:
        response.body = await _started(context.store.read(version.manifest, selection.offset, selection.length))
    return response


async def head_object(context: Context, request: Request) -> Response:
    bucket, version = await _readable(context, request)
    return _answer(request, bucket, version, _select(request, version))


async def _readable(context: Context, request: Request) -> tuple[Bucket, Version]:
    bucket, version = await find_version(context, request.at_bucket, request.at_key, request.query.get("versionId"))
    conditions.evaluate_read(request.headers, etag=version.etag, last_modified_ns=version.last_modified_ns)
    return bucket, version


async def _started(pieces: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
    """The stream, with its first piece read already: what cannot be read at all is then
    an error answer and not a connection cut after a 200."""
    first = await anext(pieces)
    return _chain(first, pieces)


async def _chain(first: memoryview, rest: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()  # type: ignore[attr-defined]


def _select(request: Request, version: Version) -> Selection:
    header = request.headers.get("range")
    part_number = request.query.get("partNumber")
    if part_number is not None:
        if header is not None:
            raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
        return _select_part(part_number, version)
    if header is not None and _range_applies(request, version):
        selected = parse_range(header, version.size)
        if selected is not None:
            checksum = version.checksum if selected.length == version.size else None
            return Selection(selected.start, selected.length, selected, checksum)
    return Selection(0, version.size, None, version.checksum)


def _range_applies(request: Request, version: Version) -> bool:
    """If-Range (RFC 9110 §13.1.5): an ETag or a date the range was made for."""
    condition = request.headers.get("if-range")
    if condition is None:
        return True
    if condition.startswith('"'):
        return condition.strip('"') == version.etag
    return conditions.parse_http_date(condition) == version.last_modified_ns // 10**9 * 10**9


def _select_part(text: str, version: Version) -> Selection:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 10_000):
        raise invalid_argument("Part number must be an integer between 1 and 10000, inclusive", "partNumber", text)
    number = int(text)
    if not version.is_multipart:
        if number != 1:
            raise S3Error("InvalidPartNumber", PartNumberRequested=text, ActualPartCount="1")
        whole = ByteRange(0, version.size, version.size) if version.size else None
        return Selection(0, version.size, whole, version.checksum)
    offset = 0
    for part in version.parts:
        if part.number == number:
            selected = ByteRange(offset, part.size, version.size) if part.size else None
            return Selection(offset, part.size, selected, part.checksum, len(version.parts))
        offset += part.size
    raise S3Error("InvalidPartNumber", PartNumberRequested=text, ActualPartCount=str(len(version.parts)))


def _answer(request: Request, bucket: Bucket, version: Version, selection: Selection) -> Response:
    headers = {
        "Last-Modified": conditions.http_date(version.last_modified_ns),
        "ETag": quoted(version.etag),
        "Accept-Ranges": "bytes",
        **version_headers(bucket, version),
    }
    for name, shown in _HEADER_NAMES.items():
        if name in version.headers:
            headers[shown] = version.headers[name]
    headers.setdefault("Content-Type", CONTENT_TYPE_DEFAULT)
    for name, value in version.user_metadata.items():
        headers[f"x-amz-meta-{name}"] = value
    if version.tags:
        headers["x-amz-tagging-count"] = str(len(version.tags))
    if version.storage_class != "STANDARD":
        headers["x-amz-storage-class"] = version.storage_class
    if selection.range is not None:
        headers["Content-Range"] = selection.range.content_range
    if selection.parts_count is not None:
        headers["x-amz-mp-parts-count"] = str(selection.parts_count)
    if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        headers |= checksum_headers(selection.checksum)
    headers |= _overrides(request)
    return Response(206 if selection.range is not None else 200, headers, length=selection.length)


def _overrides(request: Request) -> dict[str, str]:
    headers = {}
    for name, shown in _OVERRIDES.items():
        value = request.query.get(name)
        if value is None:
            continue
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
            raise invalid_argument("Header value cannot contain control characters", name, value)
        headers[shown] = value
    return headers
