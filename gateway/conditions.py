"""Conditional requests: what must hold for a read, a copy's source, a write, a delete.

Follows RFC 9110 §13 (evaluation and precedence) and the S3 API Reference for its own
headers. Reads are decided here; writes become an engine Condition, which the index
decides in commit order. Pure functions over headers by lower-case name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache

from engine.changes import Condition
from gateway.errors import S3Error, invalid_argument

Headers = Mapping[str, str]

_SECOND_NS = 1_000_000_000
_ENTITY_TAG = re.compile(r'\s*(?:W/)?(?:"([^"]*)"|([^",\s]+))\s*(?:,|$)')


def parse_etags(header: str) -> list[str]:
    """The entity tags of a header without quotes; ["*"] for the wildcard. S3 takes tags
    without quotes too. Empty when there is none."""
    return [match[1] if match[1] is not None else match[2] for match in _ENTITY_TAG.finditer(header)]


def _matches(header: str, etag: str) -> bool:
    tags = parse_etags(header)
    return "*" in tags or etag in tags


def evaluate_read(headers: Headers, *, etag: str, last_modified_ns: int) -> None:
    """GET and HEAD. Raises NotModified (304, with ETag and Last-Modified) or
    PreconditionFailed (412). A condition on an ETag outranks the one on time."""
    failed = _failed_match(headers, "if-match", "if-unmodified-since", etag, last_modified_ns)
    if failed is not None:
        raise S3Error("PreconditionFailed", Condition=failed)
    if _unchanged(headers, "if-none-match", "if-modified-since", etag, last_modified_ns) is not None:
        raise S3Error("NotModified", headers={"ETag": f'"{etag}"', "Last-Modified": http_date(last_modified_ns)})


def evaluate_copy_source(headers: Headers, *, etag: str, last_modified_ns: int) -> None:
    """x-amz-copy-source-if-*. Raises PreconditionFailed."""
    prefix = "x-amz-copy-source-"
    failed = _failed_match(headers, f"{prefix}if-match", f"{prefix}if-unmodified-since", etag, last_modified_ns)
    if failed is None:
        failed = _unchanged(headers, f"{prefix}if-none-match", f"{prefix}if-modified-since", etag, last_modified_ns)
    if failed is not None:
        raise S3Error("PreconditionFailed", Condition=failed)


def _failed_match(headers: Headers, match: str, unmodified: str, etag: str, modified_ns: int) -> str | None:
    """The condition that demands this version and does not get it."""
    if match in headers:
        return None if _matches(headers[match], etag) else _title(match)
    since = parse_http_date(headers[unmodified]) if unmodified in headers else None
    if since is not None and modified_ns // _SECOND_NS > since // _SECOND_NS:
        return _title(unmodified)
    return None


def _unchanged(headers: Headers, none_match: str, modified: str, etag: str, modified_ns: int) -> str | None:
    """The condition that demands another version and finds the same."""
    if none_match in headers:
        return _title(none_match) if _matches(headers[none_match], etag) else None
    since = parse_http_date(headers[modified]) if modified in headers else None
    if since is not None and modified_ns // _SECOND_NS <= since // _SECOND_NS:
        return _title(modified)
    return None


def _title(name: str) -> str:
    return name if name.startswith("x-amz-") else "-".join(word.capitalize() for word in name.split("-"))


# -- writes ----------------------------------------------------------------------


def put_condition(headers: Headers) -> Condition | None:
    """PutObject, CopyObject, CompleteMultipartUpload. Raises NotImplemented for what S3
    does not evaluate on writes (If-None-Match with a tag, conditions on time)."""
    _refuse(headers, "if-modified-since", "if-unmodified-since")
    none_match = headers.get("if-none-match")
    match = headers.get("if-match")
    if none_match is not None and (parse_etags(none_match) != ["*"] or match is not None):
        raise _not_implemented("If-None-Match")
    if none_match is not None:
        return Condition(if_none_match=["*"])
    return Condition(if_match=_required_tags(match)) if match is not None else None


def delete_condition(headers: Headers) -> Condition | None:
    """DeleteObject: If-Match, x-amz-if-match-size, x-amz-if-match-last-modified-time."""
    _refuse(headers, "if-none-match", "if-modified-since", "if-unmodified-since")
    match = headers.get("if-match")
    size = headers.get("x-amz-if-match-size")
    modified = headers.get("x-amz-if-match-last-modified-time")
    if match is None and size is None and modified is None:
        return None
    if size is not None and not re.fullmatch(r"\d{1,19}", size, re.ASCII):
        raise invalid_argument("The size to match must be a number", "x-amz-if-match-size", size)
    modified_ns = parse_timestamp(modified) if modified is not None else None
    if modified is not None and modified_ns is None:
        raise invalid_argument("The time to match is not a date", "x-amz-if-match-last-modified-time", modified)
    return Condition(
        if_match=_required_tags(match) if match is not None else None,
        if_match_size=int(size) if size is not None else None,
        if_match_last_modified_ns=modified_ns,
    )


def _required_tags(header: str) -> list[str]:
    tags = parse_etags(header)
    if not tags:  # an empty list would match nothing by accident, not by intent
        raise invalid_argument("The header must carry an entity tag", "If-Match", header)
    return tags


def _refuse(headers: Headers, *names: str) -> None:
    for name in names:
        if name in headers:
            raise _not_implemented(_title(name))


def _not_implemented(header: str) -> S3Error:
    return S3Error(
        "NotImplemented", "A header you provided implies functionality that is not implemented", Header=header
    )


# -- dates -----------------------------------------------------------------------


@lru_cache(maxsize=1024)
def parse_http_date(text: str) -> int | None:
    """Nanoseconds since the epoch of an HTTP date in any of RFC 9110's three forms; None
    when it is not a date (RFC 9110: ignore the header then)."""
    try:
        return _nanoseconds(parsedate_to_datetime(text))
    except (ValueError, OverflowError):
        return None


def parse_timestamp(text: str) -> int | None:
    """As parse_http_date, and ISO 8601, which some SDKs send in S3's own fields."""
    parsed = parse_http_date(text)
    if parsed is not None:
        return parsed
    try:
        return _nanoseconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _nanoseconds(moment: datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * _SECOND_NS


@lru_cache(maxsize=4096)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def http_date(time_ns: int) -> str:
    """The IMF-fixdate of Last-Modified and Date."""
    return _http_date(time_ns // _SECOND_NS)
