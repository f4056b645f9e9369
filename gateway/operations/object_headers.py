"""What a client sets on an object it writes, read from the request's headers."""

from __future__ import annotations

from msgspec import Struct

from gateway import names
from gateway.operations.common import CONTENT_TYPE_DEFAULT
from gateway.request import Request

_KEPT = ("cache-control", "content-disposition", "content-language", "content-type", "expires")


class ObjectHeaders(Struct, frozen=True):
    headers: dict[str, str]
    user_metadata: dict[str, str]
    tags: dict[str, str]


def object_headers(request: Request) -> ObjectHeaders:
    """For PutObject, CreateMultipartUpload and CopyObject with REPLACE. Raises
    MetadataTooLarge, InvalidTag, InvalidArgument."""
    headers = {name: request.headers[name] for name in _KEPT if request.headers.get(name)}
    headers.setdefault("content-type", CONTENT_TYPE_DEFAULT)
    codings = [coding.strip() for coding in request.headers.get("content-encoding", "").split(",")]
    kept = [coding for coding in codings if coding and coding.lower() != "aws-chunked"]
    if kept:
        headers["content-encoding"] = ",".join(kept)
    return ObjectHeaders(
        headers,
        names.user_metadata(request.header_pairs),
        names.parse_tagging_header(request.headers.get("x-amz-tagging")),
    )
