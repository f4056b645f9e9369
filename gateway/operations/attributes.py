"""GetObjectAttributes."""

from __future__ import annotations

from gateway import conditions, xml
from gateway.errors import invalid_argument
from gateway.operations.common import Context, find_version, version_headers
from gateway.request import Request
from gateway.responses import Response, xml_response

_ATTRIBUTES = frozenset({"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"})
_PARTS_MAX = 1000


def _number(request: Request, name: str, default: int, maximum: int) -> int:
    text = request.headers.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise invalid_argument(f"Argument {name} must be an integer between 0 and 2147483647", name, text)
    return min(int(text), maximum)


async def get_object_attributes(context: Context, request: Request) -> Response:
    listed = request.headers.get("x-amz-object-attributes", "")
    wanted = frozenset(name.strip() for name in listed.split(",") if name.strip())
    if not wanted or not wanted <= _ATTRIBUTES:
        raise invalid_argument("Invalid attribute name specified.", "x-amz-object-attributes", listed)
    bucket, version = await find_version(context, request.at_bucket, request.at_key, request.query.get("versionId"))
    conditions.evaluate_read(request.headers, etag=version.etag, last_modified_ns=version.last_modified_ns)
    body = xml.object_attributes(
        version,
        wanted,
        max_parts=_number(request, "x-amz-max-parts", _PARTS_MAX, _PARTS_MAX),
        part_marker=_number(request, "x-amz-part-number-marker", 0, 10_000),
    )
    headers = {"Last-Modified": conditions.http_date(version.last_modified_ns), **version_headers(bucket, version)}
    return xml_response(body, headers=headers)
