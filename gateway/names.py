"""Names and what hangs on them: buckets, keys, metadata, tags. Signatures first; the bodies follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def check_bucket_name(name: str) -> None: ...  # InvalidBucketName
def check_key(key: str) -> None: ...  # KeyTooLongError, InvalidArgument
def decode_key(raw: bytes) -> str: ...  # percent-decoded UTF-8 (no plus): InvalidURI
def decode_query(query_string: bytes) -> list[tuple[str, str]]: ...  # names as sent; plus is a space
def user_metadata(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]: ...  # x-amz-meta-*; MetadataTooLarge
def check_tags(tags: Iterable[tuple[str, str]], *, limit: int) -> dict[str, str]: ...  # InvalidTag, BadRequest
def parse_tagging_header(header: str | None) -> dict[str, str]: ...
def parse_copy_source(header: str) -> tuple[str, str, str | None]: ...  # bucket, key, version id
