"""Routing alone: no request reaches an operation it did not name."""

from __future__ import annotations

import pytest

from gateway.errors import S3Error
from gateway.operations.table import HANDLERS
from gateway.routing import _OPERATIONS, route


def test_every_operation_of_the_table_has_a_handler_and_every_handler_an_operation() -> None:
    named = {name for methods in _OPERATIONS.values() for name in methods.values()}
    assert named | {"CopyObject", "UploadPartCopy"} == set(HANDLERS)


@pytest.mark.parametrize(
    ("method", "key", "query", "operation"),
    [
        ("GET", None, {}, "ListObjects"),
        ("GET", None, {"list-type": "2", "prefix": "a"}, "ListObjectsV2"),
        ("PUT", "k", {}, "PutObject"),
        ("PUT", "k", {"x-id": "PutObject"}, "PutObject"),
        ("PUT", "k", {"acl": ""}, "PutObjectAcl"),
        ("DELETE", None, {"lifecycle": ""}, "DeleteBucketLifecycle"),
        ("PUT", "k", {"uploadId": "u", "partNumber": "1"}, "UploadPart"),
        ("POST", None, {"delete": ""}, "DeleteObjects"),
        ("GET", "k", {"versionId": "null", "response-content-type": "text/plain"}, "GetObject"),
        ("GET", "k", {"cache-buster": "7"}, "GetObject"),
    ],
)
def test_a_request_is_the_operation_its_query_names(
    method: str, key: str | None, query: dict[str, str], operation: str
) -> None:
    assert route(method, "bucket", key, query).name == operation


@pytest.mark.parametrize(
    ("method", "key", "query", "code"),
    [
        ("PUT", "k", {"lifecycle": ""}, "NotImplemented"),
        ("PUT", "k", {"unknown": ""}, "NotImplemented"),
        ("DELETE", None, {"unheardof": ""}, "NotImplemented"),
        ("DELETE", None, {"versions": ""}, "MethodNotAllowed"),
        ("PUT", "k", {"acl": "", "tagging": ""}, "InvalidArgument"),
        ("PATCH", "k", {}, "MethodNotAllowed"),
        ("GET", None, {"list-type": "3"}, "InvalidArgument"),
    ],
)
def test_an_unknown_subresource_never_falls_through(
    method: str, key: str | None, query: dict[str, str], code: str
) -> None:
    with pytest.raises(S3Error) as raised:
        route(method, "bucket", key, query)
    assert raised.value.code == code


def test_a_copy_source_makes_a_put_a_copy_and_nothing_else() -> None:
    assert route("PUT", "b", "k", {}, copies=True).name == "CopyObject"
    assert route("PUT", "b", "k", {"uploadId": "u", "partNumber": "1"}, copies=True).name == "UploadPartCopy"
    with pytest.raises(S3Error):
        route("PUT", "b", "k", {"tagging": ""}, copies=True)


def test_only_reads_need_no_full_access() -> None:
    assert not route("GET", "b", "k", {}).writes
    assert not route("HEAD", "b", "k", {}).writes
    assert route("POST", "b", None, {"delete": ""}).writes
    assert route("POST", "b", "k", {"uploads": ""}).writes
