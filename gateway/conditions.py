"""Conditional requests. Signatures first; the bodies follow."""

from __future__ import annotations

from collections.abc import Mapping

from engine.changes import Condition

Headers = Mapping[str, str]  # lower-case names


def evaluate_read(headers: Headers, *, etag: str, last_modified_ns: int) -> None:
    """GET/HEAD. Raises NotModified (304, with ETag and Last-Modified) or PreconditionFailed (412)."""


def evaluate_copy_source(headers: Headers, *, etag: str, last_modified_ns: int) -> None:
    """x-amz-copy-source-if-*. Raises PreconditionFailed."""


def put_condition(headers: Headers) -> Condition | None: ...
def delete_condition(headers: Headers) -> Condition | None: ...
def parse_http_date(text: str) -> int | None: ...  # nanoseconds since the epoch
def http_date(time_ns: int) -> str: ...  # Last-Modified
