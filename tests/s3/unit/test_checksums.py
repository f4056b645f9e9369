"""Checksums against zlib, hashlib and each other."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import checksums
from gateway.checksums import BodyDigests, parse_expected
from gateway.errors import S3Error


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def of(algorithm: str, data: bytes) -> str:
    hasher = checksums.new_hasher(algorithm)
    hasher.update(data)
    return hasher.base64()


def test_the_published_check_values() -> None:
    data = b"123456789"
    assert of("CRC32", data) == b64(bytes.fromhex("cbf43926"))
    assert of("CRC32C", data) == b64(bytes.fromhex("e3069283"))
    assert of("CRC64NVME", data) == b64(bytes.fromhex("ae8b14860a799888"))
    assert of("SHA1", data) == b64(hashlib.sha1(data).digest())
    assert of("SHA256", data) == b64(hashlib.sha256(data).digest())
    assert of("CRC32", data) == b64(zlib.crc32(data).to_bytes(4, "big"))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["CRC32", "CRC32C", "CRC64NVME"]), st.lists(st.binary(max_size=300), min_size=1, max_size=6))
def test_combined_parts_equal_the_whole(algorithm: str, parts: list[bytes]) -> None:
    assert checksums.combine(algorithm, [(of(algorithm, part), len(part)) for part in parts]) == of(
        algorithm, b"".join(parts)
    )


def test_composite_and_etag_are_hashes_of_hashes() -> None:
    parts = [b"a" * 10, b"b"]
    digests = [hashlib.sha256(part).digest() for part in parts]
    expected = b64(hashlib.sha256(b"".join(digests)).digest()) + "-2"
    assert checksums.composite("SHA256", [b64(digest) for digest in digests]) == expected
    md5s = [hashlib.md5(part).digest() for part in parts]
    assert checksums.multipart_etag(md5s) == hashlib.md5(b"".join(md5s)).hexdigest() + "-2"


def digests(data: bytes, *algorithms: str) -> BodyDigests:
    both = BodyDigests(sha256=True, algorithms=algorithms)
    both.update(memoryview(data)[:3])
    both.update(bytearray(data[3:]))
    return both


@pytest.mark.parametrize("algorithm", checksums.ALGORITHMS)
def test_headers_and_trailers_are_verified(algorithm: str) -> None:
    header = checksums.HEADERS[algorithm]
    good, bad = of(algorithm, b"content"), of(algorithm, b"other")
    body = digests(b"content", algorithm)
    assert body.sha256_hex() == hashlib.sha256(b"content").hexdigest()
    stored = parse_expected({header: good}).verify(body)
    assert stored is not None and (stored.algorithm, stored.value) == (algorithm, good)
    in_trailer = parse_expected({"x-amz-trailer": header, "x-amz-sdk-checksum-algorithm": algorithm})
    assert in_trailer.verify(body, trailers={header: good}) == stored
    for expected, trailers in ((parse_expected({header: bad}), None), (in_trailer, {header: bad})):
        with pytest.raises(S3Error, match="BadDigest"):
            expected.verify(body, trailers=trailers)
    with pytest.raises(S3Error, match="MalformedTrailerError"):
        in_trailer.verify(body)


def test_md5_and_payload_hash_are_verified() -> None:
    body = digests(b"content")
    parse_expected({"content-md5": b64(hashlib.md5(b"content").digest())}).verify(body)
    with pytest.raises(S3Error, match="BadDigest"):
        parse_expected({"content-md5": b64(hashlib.md5(b"x").digest())}).verify(body)
    with pytest.raises(S3Error, match="XAmzContentSHA256Mismatch"):
        parse_expected({}).verify(body, payload_sha256="0" * 64)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-md5": "short"}, "InvalidDigest"),
        ({"x-amz-checksum-crc32": "AAAA"}, "InvalidRequest"),
        ({"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-crc32c": "AAAAAA=="}, "InvalidRequest"),
        ({"x-amz-checksum-md6": "AAAAAA=="}, "InvalidRequest"),
        ({"x-amz-sdk-checksum-algorithm": "CRC32"}, "InvalidRequest"),
        ({"x-amz-sdk-checksum-algorithm": "SHA1", "x-amz-checksum-crc32": "AAAAAA=="}, "InvalidRequest"),
        ({"x-amz-trailer": "x-other"}, "InvalidRequest"),
    ],
)
def test_promises_that_make_no_sense_are_refused(headers: dict[str, str], code: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_expected(headers)
    assert caught.value.code == code


def test_multipart_types() -> None:
    assert checksums.multipart_type(None, None) is None
    assert checksums.multipart_type("CRC32", None) == "COMPOSITE"
    assert checksums.multipart_type("CRC32", "FULL_OBJECT") == "FULL_OBJECT"
    assert checksums.multipart_type("CRC64NVME", None) == "FULL_OBJECT"
    for algorithm, kind in (("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE"), (None, "COMPOSITE"), ("CRC32", "X")):
        with pytest.raises(S3Error):
            checksums.multipart_type(algorithm, kind)
