"""Conditions: RFC 9110's precedence, S3's own headers, and what S3 refuses."""

from __future__ import annotations

import pytest

from engine.changes import Condition
from gateway import conditions
from gateway.errors import S3Error

TIME_NS = 1_700_000_000_500_000_000
BEFORE, SAME, AFTER = (conditions.http_date(TIME_NS + shift * 10**9) for shift in (-60, 0, 60))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"if-match": '"tag"'}, 200),
        ({"if-match": "tag"}, 200),
        ({"if-match": '"x", "tag"'}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": '"x"'}, 412),
        ({"if-match": '"tag"', "if-unmodified-since": BEFORE}, 200),
        ({"if-unmodified-since": BEFORE}, 412),
        ({"if-unmodified-since": SAME}, 200),
        ({"if-none-match": '"tag"'}, 304),
        ({"if-none-match": 'W/"tag"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"x"'}, 200),
        ({"if-none-match": '"x"', "if-modified-since": AFTER}, 200),
        ({"if-none-match": '"tag"', "if-modified-since": BEFORE}, 304),
        ({"if-modified-since": SAME}, 304),
        ({"if-modified-since": BEFORE}, 200),
        ({"if-modified-since": "not a date"}, 200),
        ({"if-match": '"x"', "if-none-match": '"tag"'}, 412),
    ],
)
def test_reads(headers: dict[str, str], status: int) -> None:
    copy_headers = {f"x-amz-copy-source-{name}": value for name, value in headers.items()}
    if status == 200:
        conditions.evaluate_read(headers, etag="tag", last_modified_ns=TIME_NS)
        conditions.evaluate_copy_source(copy_headers, etag="tag", last_modified_ns=TIME_NS)
        return
    with pytest.raises(S3Error) as caught:
        conditions.evaluate_read(headers, etag="tag", last_modified_ns=TIME_NS)
    assert caught.value.status == status
    if status == 304:
        assert caught.value.headers == {"ETag": '"tag"', "Last-Modified": SAME}
    with pytest.raises(S3Error, match="PreconditionFailed"):
        conditions.evaluate_copy_source(copy_headers, etag="tag", last_modified_ns=TIME_NS)


def test_writes() -> None:
    assert conditions.put_condition({}) is None
    assert conditions.put_condition({"if-none-match": "*"}) == Condition(if_none_match=["*"])
    assert conditions.put_condition({"if-match": '"a"'}) == Condition(if_match=["a"])
    for headers in ({"if-none-match": '"a"'}, {"if-none-match": "*", "if-match": "a"}, {"if-modified-since": SAME}):
        with pytest.raises(S3Error, match="NotImplemented"):
            conditions.put_condition(headers)
    with pytest.raises(S3Error, match="InvalidArgument"):
        conditions.put_condition({"if-match": ""})


def test_deletes() -> None:
    assert conditions.delete_condition({}) is None
    whole = TIME_NS // 10**9 * 10**9
    for time in (SAME, "2023-11-14T22:13:20Z"):
        headers = {"if-match": '"a"', "x-amz-if-match-size": "7", "x-amz-if-match-last-modified-time": time}
        assert conditions.delete_condition(headers) == Condition(
            if_match=["a"], if_match_size=7, if_match_last_modified_ns=whole
        )
    for name, value in (("x-amz-if-match-size", "x"), ("x-amz-if-match-last-modified-time", "x")):
        with pytest.raises(S3Error, match="InvalidArgument"):
            conditions.delete_condition({name: value})
