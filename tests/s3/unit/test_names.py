"""Bucket names, keys, metadata, tags, copy sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import names
from gateway.errors import S3Error


@pytest.mark.parametrize("name", ["abc", "a.b-c", "1bucket", "a" * 63])
def test_good_bucket_names(name: str) -> None:
    names.check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "a" * 64,
        "Abc",
        "-abc",
        "abc-",
        "a..b",
        "192.168.1.1",
        "a_b",
        "xn--a",
        "a-s3alias",
        "a/b",
        "abc\n",
        "_objfs",
    ],
)
def test_bad_bucket_names(name: str) -> None:
    with pytest.raises(S3Error, match="InvalidBucketName"):
        names.check_bucket_name(name)


def test_keys() -> None:
    names.check_key("ü" * 512)
    with pytest.raises(S3Error, match="KeyTooLongError"):
        names.check_key("ü" * 512 + "a")
    assert names.decode_key(b"a%20b+c/%C3%BC%2F") == "a b+c/ü/"
    for raw in (b"%zz", b"%", b"%ff"):
        with pytest.raises(S3Error, match="InvalidURI"):
            names.decode_key(raw)
    assert names.decode_query(b"acl&prefix=a+b%2Bc&x=") == [("acl", ""), ("prefix", "a b+c"), ("x", "")]


def test_copy_sources() -> None:
    assert names.parse_copy_source("/b/k%20x/%3F") == ("b", "k x/?", None)
    assert names.parse_copy_source("b/k?versionId=v1") == ("b", "k", "v1")
    for header in ("b", "/b/", "", "b/k?other=1", "b/k?versionId="):
        with pytest.raises(S3Error, match="InvalidArgument"):
            names.parse_copy_source(header)


def test_metadata() -> None:
    pairs = [(b"X-Amz-Meta-A", b" one "), (b"x-amz-meta-a", b"two"), (b"content-type", b"x")]
    assert names.user_metadata(pairs) == {"a": "one,two"}
    names.user_metadata([(b"x-amz-meta-a", b"v" * 2047)])
    with pytest.raises(S3Error, match="MetadataTooLarge"):
        names.user_metadata([(b"x-amz-meta-a", b"v" * 2048)])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])).map(str.strip))
def test_metadata_values_survive_the_header(value: str) -> None:
    encoded = names.encode_metadata_value(value)
    assert encoded.isascii() and b"\n" not in encoded and b"\r" not in encoded
    assert names.decode_metadata_value(encoded) == value


def test_tags() -> None:
    assert names.parse_tagging_header("a=b&c=d+e%2B") == {"a": "b", "c": "d e+"}
    assert names.parse_tagging_header(None) == {}
    assert len(names.check_tags([(str(n), "") for n in range(50)], limit=50)) == 50
    for header, code in (
        ("a=1&a=2", "InvalidArgument"),
        ("=x", "InvalidTag"),
        ("a=%3C", "InvalidTag"),
        ("aws:a=1", "InvalidTag"),
        ("a" * 129 + "=1", "InvalidTag"),
        ("a=" + "b" * 257, "InvalidTag"),
        ("&".join(f"k{n}=v" for n in range(11)), "BadRequest"),
    ):
        with pytest.raises(S3Error) as caught:
            names.parse_tagging_header(header)
        assert caught.value.code == code, header
