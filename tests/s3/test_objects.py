"""Objects: put, get, head, delete, copy, tags, conditions, checksums."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import urllib.request
import zlib
from typing import Any

import pytest
from botocore.exceptions import ClientError

from engine.keymap.schema import open_reader
from tests.s3.conftest import Server, error_of

LARGE = os.urandom(3 * 1024 * 1024 + 17)


@pytest.mark.parametrize("content", [b"", b"small", LARGE], ids=["empty", "small", "large"])
def test_an_object_comes_back_as_it_was_put(s3: Any, bucket: str, content: bytes) -> None:
    put = s3.put_object(Bucket=bucket, Key="k", Body=content)
    assert put["ETag"] == f'"{hashlib.md5(content).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == content
    assert got["ETag"] == put["ETag"]
    assert got["ContentType"] == "binary/octet-stream"
    assert got["AcceptRanges"] == "bytes"
    assert "VersionId" not in got
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == len(content)


@pytest.mark.parametrize(
    "key",
    [
        "a b+c&d=e?f#g%25",
        "../../etc/passwd",
        "ends/",
        "line\nbreak",
        "nul\0key",
        "ü" * 512,
        "//",
        ".",
        "a//b",
        "<x>&'\"",
    ],
)
def test_any_key_s3_allows_is_kept_exactly(s3: Any, bucket: str, key: str) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"x"
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_key_over_1024_bytes_is_refused(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="ü" * 513, Body=b"x")
    assert error_of(raised) == ("KeyTooLongError", 400)


def test_headers_and_user_metadata_are_kept(s3: Any, bucket: str) -> None:
    s3.put_object(
        Bucket=bucket,
        Key="k",
        Body=b"x",
        ContentType="text/plain",
        CacheControl="no-cache",
        ContentDisposition="attachment",
        ContentEncoding="gzip",
        ContentLanguage="de",
        Metadata={"Colour": "red"},
        Tagging="a=1&b=2",
    )
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ContentType"], head["CacheControl"], head["ContentDisposition"]) == (
        "text/plain",
        "no-cache",
        "attachment",
    )
    assert (head["ContentEncoding"], head["ContentLanguage"]) == ("gzip", "de")
    assert head["Metadata"] == {"colour": "red"}
    assert s3.get_object(Bucket=bucket, Key="k")["TagCount"] == 2


def test_metadata_over_2_kib_is_refused(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", Metadata={"a": "x" * 2048})
    assert error_of(raised) == ("MetadataTooLarge", 400)


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=1048570-1048590", 1048570, 1048591), ("bytes=-5", -5, None)],
)
def test_a_range_is_answered_with_206(s3: Any, bucket: str, header: str, start: int, end: int | None) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=LARGE)
    got = s3.get_object(Bucket=bucket, Key="k", Range=header)
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert got["Body"].read() == LARGE[start:end]
    assert got["ContentRange"].endswith(f"/{len(LARGE)}")


def test_a_range_beyond_the_end_is_416(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"12345")
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=5-")
    assert error_of(raised) == ("InvalidRange", 416)


def test_response_overrides_set_the_answers_headers(server: Server, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    got = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="text/x", ResponseContentDisposition="inline")
    assert (got["ContentType"], got["ContentDisposition"]) == ("text/x", "inline")
    status, _, body = server.send("GET", f"/{bucket}/k?response-content-type=a%0D%0AEvil%3A%20b")
    assert status == 400 and b"InvalidArgument" in body


def test_missing_things_are_named(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="absent")
    assert error_of(raised) == ("NoSuchKey", 404)
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket="no-such-bucket-here", Key="k")
    assert error_of(raised) == ("NoSuchBucket", 404)
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket="no-such-bucket-here", Key="k", Body=b"x")
    assert error_of(raised) == ("NoSuchBucket", 404)
    s3.delete_object(Bucket=bucket, Key="absent")


def test_conditional_reads(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    assert s3.get_object(Bucket=bucket, Key="k", IfMatch=etag)["Body"].read() == b"x"
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", IfMatch='"other"')
    assert error_of(raised) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", IfNoneMatch=etag)
    assert error_of(raised) == ("304", 304)


def test_conditional_writes_let_one_writer_win(s3: Any, bucket: str) -> None:
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    assert error_of(raised) == ("PreconditionFailed", 412)
    second = s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=first)["ETag"]
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=first)
    assert error_of(raised) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="absent", Body=b"3", IfMatch=first)
    assert error_of(raised) == ("NoSuchKey", 404)
    with pytest.raises(ClientError) as raised:
        s3.delete_object(Bucket=bucket, Key="k", IfMatch=first)
    assert error_of(raised) == ("PreconditionFailed", 412)
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=second)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_a_checksum_is_verified_stored_and_shown_when_asked(s3: Any, bucket: str, algorithm: str) -> None:
    put = s3.put_object(Bucket=bucket, Key="k", Body=LARGE, ChecksumAlgorithm=algorithm)
    shown = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert shown[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    assert shown["ChecksumType"] == "FULL_OBJECT"
    assert f"Checksum{algorithm}" not in s3.head_object(Bucket=bucket, Key="k")
    assert s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")["Body"].read() == LARGE


def test_a_wrong_checksum_stores_nothing(s3: Any, bucket: str) -> None:
    wrong = base64.b64encode(zlib.crc32(b"other").to_bytes(4, "big")).decode()
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"content", ChecksumCRC32=wrong)
    assert error_of(raised) == ("BadDigest", 400)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_delete_objects_reports_each_key(s3: Any, bucket: str) -> None:
    for key in ("a", "b", "<c>&"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    answer = s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "<c>&"}, {"Key": "absent"}, {"Key": "x" * 1025}]}
    )
    assert [entry["Key"] for entry in answer["Deleted"]] == ["a", "<c>&", "absent"]
    assert [entry["Code"] for entry in answer["Errors"]] == ["KeyTooLongError"]
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["b"]
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "b"}], "Quiet": True})
    assert "Deleted" not in quiet


def test_object_tags_are_set_and_removed(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="a=1")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "a", "Value": "1"}]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "b", "Value": "2"}]})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "b", "Value": "2"}]
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    many = [{"Key": str(number), "Value": ""} for number in range(11)]
    with pytest.raises(ClientError) as raised:
        s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": many})
    assert error_of(raised)[1] == 400


def test_a_copy_keeps_or_replaces_metadata_and_tags(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a b+c", Body=LARGE, Metadata={"m": "1"}, Tagging="t=1", ContentType="text/plain")
    source = {"Bucket": bucket, "Key": "a b+c"}
    copied = s3.copy_object(Bucket=bucket, Key="copy", CopySource=source)["CopyObjectResult"]
    assert copied["ETag"] == f'"{hashlib.md5(LARGE).hexdigest()}"'
    head = s3.get_object(Bucket=bucket, Key="copy")
    assert head["Body"].read() == LARGE
    assert (head["Metadata"], head["TagCount"], head["ContentType"]) == ({"m": "1"}, 1, "text/plain")
    s3.copy_object(
        Bucket=bucket,
        Key="copy",
        CopySource=source,
        MetadataDirective="REPLACE",
        Metadata={"n": "2"},
        TaggingDirective="REPLACE",
    )
    head = s3.head_object(Bucket=bucket, Key="copy")
    assert head["Metadata"] == {"n": "2"} and "TagCount" not in head


def test_a_copy_goes_across_buckets_and_obeys_conditions(s3: Any, bucket: str, versioned: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    other = f"{bucket}-2"
    s3.create_bucket(Bucket=other)
    source = {"Bucket": bucket, "Key": "k"}
    s3.copy_object(Bucket=other, Key="k2", CopySource=source, CopySourceIfMatch=etag)
    assert s3.get_object(Bucket=other, Key="k2")["Body"].read() == b"x"
    with pytest.raises(ClientError) as raised:
        s3.copy_object(Bucket=other, Key="k3", CopySource=source, CopySourceIfNoneMatch=etag)
    assert error_of(raised) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as raised:
        s3.copy_object(Bucket=bucket, Key="k", CopySource=source)
    assert error_of(raised) == ("InvalidRequest", 400)
    with pytest.raises(ClientError) as raised:
        s3.copy_object(Bucket=other, Key="k", CopySource={"Bucket": bucket, "Key": "absent"})
    assert error_of(raised) == ("NoSuchKey", 404)


def test_versions_are_kept_listed_read_and_deleted(s3: Any, versioned: str) -> None:
    first = s3.put_object(Bucket=versioned, Key="k", Body=b"1")["VersionId"]
    second = s3.put_object(Bucket=versioned, Key="k", Body=b"2")["VersionId"]
    assert s3.get_object(Bucket=versioned, Key="k", VersionId=first)["Body"].read() == b"1"
    marker = s3.delete_object(Bucket=versioned, Key="k")
    assert marker["DeleteMarker"] is True
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=versioned, Key="k")
    assert error_of(raised) == ("NoSuchKey", 404)
    assert raised.value.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-delete-marker"] == "true"
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=versioned, Key="k", VersionId=marker["VersionId"])
    assert error_of(raised) == ("MethodNotAllowed", 405)
    listed = s3.list_object_versions(Bucket=versioned)
    assert [(v["VersionId"], v["IsLatest"]) for v in listed["Versions"]] == [(second, False), (first, False)]
    assert [(m["VersionId"], m["IsLatest"]) for m in listed["DeleteMarkers"]] == [(marker["VersionId"], True)]
    gone = s3.delete_object(Bucket=versioned, Key="k", VersionId=marker["VersionId"])
    assert gone["DeleteMarker"] is True
    assert s3.get_object(Bucket=versioned, Key="k")["Body"].read() == b"2"
    s3.copy_object(Bucket=versioned, Key="k", CopySource={"Bucket": versioned, "Key": "k", "VersionId": first})
    assert s3.get_object(Bucket=versioned, Key="k")["Body"].read() == b"1"
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=versioned, Key="k", VersionId="nosuchversion")
    assert error_of(raised)[1] in (400, 404)


def test_object_attributes(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"12345", ChecksumAlgorithm="SHA256")
    answer = s3.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["ETag", "Checksum", "ObjectSize", "StorageClass"]
    )
    assert answer["ETag"] == hashlib.md5(b"12345").hexdigest()
    assert answer["Checksum"]["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(b"12345").digest()).decode()
    assert (answer["ObjectSize"], answer["StorageClass"]) == (5, "STANDARD")


def test_a_presigned_url_reads_and_writes(server: Server, bucket: str) -> None:
    signer = server.client(signature_version="s3v4")
    put = signer.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "p q"})
    with urllib.request.urlopen(urllib.request.Request(put, data=b"signed", method="PUT")) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(
        signer.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "p q"})
    ) as answer:
        assert answer.read() == b"signed"


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({"ACL": "private"}, 200),
        ({"StorageClass": "STANDARD"}, 200),
        ({"ACL": "public-read"}, 501),
        ({"StorageClass": "GLACIER"}, 501),
        ({"ServerSideEncryption": "aws:kms"}, 501),
        ({"WebsiteRedirectLocation": "/x"}, 501),
        ({"ObjectLockLegalHoldStatus": "ON"}, 501),
        ({"GrantRead": "id=x"}, 501),
        ({"ExpectedBucketOwner": "123456789012"}, 403),
    ],
)
def test_defaults_are_accepted_and_everything_else_is_refused(
    s3: Any, bucket: str, extra: dict[str, str], status: int
) -> None:
    if status == 200:
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", **extra)
        return
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", **extra)
    assert error_of(raised)[1] == status
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_every_write_puts_another_file_at_the_key(s3: Any, server: Server, bucket: str) -> None:
    """Who has a key open at a mount keeps the version it has, whatever takes its place."""

    def file_id() -> int:
        with contextlib.closing(open_reader(server.data / "index" / "keymap.sqlite")) as keymap:
            select = "SELECT file_id FROM keys JOIN buckets USING (bucket_id) WHERE name = ? AND key = 'k'"
            return int(keymap.execute(select, (bucket,)).fetchone()[0])

    seen = []
    s3.put_object(Bucket=bucket, Key="k", Body=b"first")
    seen.append(file_id())
    s3.put_object(Bucket=bucket, Key="k", Body=b"second")
    seen.append(file_id())
    s3.copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/k", MetadataDirective="REPLACE", Metadata={"a": "b"})
    seen.append(file_id())
    upload = {"Bucket": bucket, "Key": "k", "UploadId": s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]}
    part = s3.upload_part(**upload, PartNumber=1, Body=b"third")
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    seen.append(file_id())
    assert len(set(seen)) == len(seen), seen
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert file_id() == seen[-1], "tags change nothing that is read"
