"""ListObjects, ListObjectsV2 and ListObjectVersions."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.s3.conftest import error_of

KEYS = ["a", "b/1", "b/2", "b/c/3", "d", "e/4", "ü"]


@pytest.fixture
def filled(s3: Any, bucket: str) -> str:
    for key in KEYS:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    return bucket


@pytest.mark.parametrize("call", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_pages_together_are_the_whole_listing(s3: Any, filled: str, call: str, size: int) -> None:
    pages = s3.get_paginator(call).paginate(Bucket=filled, PaginationConfig={"PageSize": size})
    assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == KEYS


@pytest.mark.parametrize("call", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_delimiter_rolls_keys_up(s3: Any, filled: str, call: str, size: int) -> None:
    pages = list(s3.get_paginator(call).paginate(Bucket=filled, Delimiter="/", PaginationConfig={"PageSize": size}))
    assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == ["a", "d", "ü"]
    assert [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])] == ["b/", "e/"]


def test_prefix_and_start_after(s3: Any, filled: str) -> None:
    answer = s3.list_objects_v2(Bucket=filled, Prefix="b/", Delimiter="/")
    assert [entry["Key"] for entry in answer["Contents"]] == ["b/1", "b/2"]
    assert [entry["Prefix"] for entry in answer["CommonPrefixes"]] == ["b/c/"]
    answer = s3.list_objects_v2(Bucket=filled, StartAfter="d", FetchOwner=True)
    assert [entry["Key"] for entry in answer["Contents"]] == ["e/4", "ü"]
    assert answer["Contents"][0]["Owner"]["ID"]


def test_zero_keys_is_an_empty_page(s3: Any, filled: str) -> None:
    answer = s3.list_objects_v2(Bucket=filled, MaxKeys=0)
    assert (answer["KeyCount"], answer["IsTruncated"]) == (0, False)


def test_bad_parameters_are_refused(s3: Any, filled: str) -> None:
    with pytest.raises(ClientError) as raised:
        s3.list_objects_v2(Bucket=filled, MaxKeys=-1)
    assert error_of(raised) == ("InvalidArgument", 400)
    with pytest.raises(ClientError) as raised:
        s3.list_objects_v2(Bucket=filled, ContinuationToken="not a token")
    assert error_of(raised) == ("InvalidArgument", 400)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_versions_page_by_key_newest_first(s3: Any, versioned: str, size: int) -> None:
    expected = []
    for key in ("a", "b"):
        made = [s3.put_object(Bucket=versioned, Key=key, Body=bytes([n]))["VersionId"] for n in range(3)]
        expected += [(key, version_id) for version_id in reversed(made)]
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=versioned, PaginationConfig={"PageSize": size})
    assert [(entry["Key"], entry["VersionId"]) for page in pages for entry in page["Versions"]] == expected
