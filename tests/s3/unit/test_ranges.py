"""Ranges as S3 answers them."""

from __future__ import annotations

import pytest

from gateway.errors import S3Error
from gateway.ranges import ByteRange, parse_copy_range, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 4)),
        ("bytes=2-", (2, 8)),
        ("bytes=-3", (7, 3)),
        ("bytes=-30", (0, 10)),
        ("bytes=5-500", (5, 5)),
        ("bytes=5-2", None),
        ("bytes=0-1,4-5", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, expected: tuple[int, int] | None) -> None:
    found = parse_range(header, 10)
    assert found == (None if expected is None else ByteRange(*expected, 10))


def test_content_range() -> None:
    assert ByteRange(2, 4, 10).content_range == "bytes 2-5/10"


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-0", 0), ("bytes=-1", 0)])
def test_no_byte_to_give_is_416(header: str, size: int) -> None:
    with pytest.raises(S3Error) as caught:
        parse_range(header, size)
    assert (caught.value.code, caught.value.status) == ("InvalidRange", 416)
    assert caught.value.headers["Content-Range"] == f"bytes */{size}"


def test_copy_ranges_are_exact() -> None:
    assert parse_copy_range("bytes=0-9", 10) == ByteRange(0, 10, 10)
    for header in ("bytes=0-10", "bytes=5-", "bytes=-5", "bytes=5-4", "0-5"):
        with pytest.raises(S3Error, match="InvalidArgument"):
            parse_copy_range(header, 10)
