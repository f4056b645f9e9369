"""Multipart uploads."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.s3.conftest import error_of

PART = os.urandom(5 * 1024 * 1024)
LAST = os.urandom(1234)


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content).digest()


ETAG = f'"{hashlib.md5(_md5(PART) + _md5(LAST)).hexdigest()}-2"'


def _upload(s3: Any, bucket: str, key: str = "k", **extra: Any) -> str:
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key=key, **extra)["UploadId"]
    assert isinstance(upload_id, str)
    return upload_id


def _parts(s3: Any, bucket: str, upload_id: str, contents: list[bytes], key: str = "k") -> list[dict[str, Any]]:
    return [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=content)["ETag"],
        }
        for number, content in enumerate(contents, 1)
    ]


def test_parts_become_one_object(s3: Any, bucket: str) -> None:
    upload_id = _upload(s3, bucket, Metadata={"m": "1"}, ContentType="text/x")
    parts = _parts(s3, bucket, upload_id, [PART, LAST])
    done = s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id, MultipartUpload={"Parts": parts})
    assert done["ETag"] == ETAG
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == PART + LAST
    assert (got["ETag"], got["Metadata"], got["ContentType"]) == (ETAG, {"m": "1"}, "text/x")
    second = s3.get_object(Bucket=bucket, Key="k", PartNumber=2)
    assert (second["PartsCount"], second["Body"].read()) == (2, LAST)
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", PartNumber=3)
    assert error_of(raised)[1] == 416
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts", "ObjectSize"])
    assert attributes["ObjectParts"]["TotalPartsCount"] == 2
    assert attributes["ObjectSize"] == len(PART) + len(LAST)


def test_a_repeated_completion_gives_the_same_answer(s3: Any, bucket: str) -> None:
    upload_id = _upload(s3, bucket)
    parts = {"Parts": _parts(s3, bucket, upload_id, [PART, LAST])}
    first = s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id, MultipartUpload=parts)
    again = s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id, MultipartUpload=parts)
    assert again["ETag"] == first["ETag"]


def test_completions_that_do_not_fit_are_refused(s3: Any, bucket: str) -> None:
    upload_id = _upload(s3, bucket)
    parts = _parts(s3, bucket, upload_id, [LAST, LAST])

    def complete(chosen: list[dict[str, Any]]) -> tuple[str, int]:
        with pytest.raises(ClientError) as raised:
            s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id, MultipartUpload={"Parts": chosen})
        return error_of(raised)

    assert complete(parts) == ("EntityTooSmall", 400)
    assert complete(parts[::-1]) == ("InvalidPartOrder", 400)
    assert complete([{**parts[0], "PartNumber": 7}]) == ("InvalidPart", 400)
    assert complete([{**parts[0], "ETag": '"' + "0" * 32 + '"'}]) == ("InvalidPart", 400)
    assert complete([]) == ("MalformedXML", 400)
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id)
    assert complete(parts) == ("NoSuchUpload", 404)
    with pytest.raises(ClientError) as raised:
        s3.upload_part(Bucket=bucket, Key="k", UploadId=upload_id, PartNumber=1, Body=b"x")
    assert error_of(raised) == ("NoSuchUpload", 404)


def test_uploads_and_parts_are_listed(s3: Any, bucket: str) -> None:
    first, second = _upload(s3, bucket, "a/1"), _upload(s3, bucket, "b")
    listed = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [(entry["Key"], entry["UploadId"]) for entry in listed] == [("a/1", first), ("b", second)]
    rolled = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [entry["Prefix"] for entry in rolled["CommonPrefixes"]] == ["a/"]
    page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=1)
    assert page["IsTruncated"] is True
    rest = s3.list_multipart_uploads(
        Bucket=bucket, KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"]
    )
    assert [entry["Key"] for entry in rest["Uploads"]] == ["b"]
    _parts(s3, bucket, second, [b"1", b"22"], "b")
    parts = s3.list_parts(Bucket=bucket, Key="b", UploadId=second, MaxParts=1)
    assert [(part["PartNumber"], part["Size"]) for part in parts["Parts"]] == [(1, 1)]
    assert parts["IsTruncated"] is True
    parts = s3.list_parts(Bucket=bucket, Key="b", UploadId=second, PartNumberMarker=1)
    assert [(part["PartNumber"], part["Size"]) for part in parts["Parts"]] == [(2, 2)]


def test_parts_are_copied_with_and_without_a_range(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="source", Body=PART + LAST)
    upload_id = _upload(s3, bucket)
    source = {"Bucket": bucket, "Key": "source"}
    whole = s3.upload_part_copy(Bucket=bucket, Key="k", UploadId=upload_id, PartNumber=1, CopySource=source)
    tail = s3.upload_part_copy(
        Bucket=bucket,
        Key="k",
        UploadId=upload_id,
        PartNumber=2,
        CopySource=source,
        CopySourceRange=f"bytes={len(PART)}-{len(PART) + len(LAST) - 1}",
    )
    assert tail["CopyPartResult"]["ETag"] == f'"{_md5(LAST).hex()}"'
    parts = [
        {"PartNumber": number, "ETag": part["CopyPartResult"]["ETag"]} for number, part in enumerate((whole, tail), 1)
    ]
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == PART + LAST + LAST


@pytest.mark.parametrize("kind", ["COMPOSITE", "FULL_OBJECT"])
def test_checksums_of_parts_make_the_objects(s3: Any, bucket: str, kind: str) -> None:
    upload_id = _upload(s3, bucket, ChecksumAlgorithm="CRC32", ChecksumType=kind)
    parts = []
    for number, content in enumerate((PART, LAST), 1):
        part = s3.upload_part(
            Bucket=bucket, Key="k", UploadId=upload_id, PartNumber=number, Body=content, ChecksumAlgorithm="CRC32"
        )
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]})
    done = s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id, MultipartUpload={"Parts": parts})
    if kind == "FULL_OBJECT":
        value = base64.b64encode(zlib.crc32(PART + LAST).to_bytes(4, "big")).decode()
    else:
        of_parts = b"".join(zlib.crc32(content).to_bytes(4, "big") for content in (PART, LAST))
        value = base64.b64encode(zlib.crc32(of_parts).to_bytes(4, "big")).decode() + "-2"
    assert (done["ChecksumCRC32"], done["ChecksumType"]) == (value, kind)


def test_a_copy_of_a_multipart_object_is_one_part(s3: Any, bucket: str) -> None:
    upload_id = _upload(s3, bucket)
    parts = {"Parts": _parts(s3, bucket, upload_id, [PART, LAST])}
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id, MultipartUpload=parts)
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "k"})
    assert s3.head_object(Bucket=bucket, Key="copy")["ETag"] == f'"{_md5(PART + LAST).hex()}"'


def test_boto3s_transfers_work_with_their_defaults(s3: Any, bucket: str, tmp_path: Any) -> None:
    content = os.urandom(20 * 1024 * 1024 + 5)
    (tmp_path / "up").write_bytes(content)
    config = TransferConfig(multipart_threshold=8 * 1024 * 1024, max_concurrency=4)
    s3.upload_file(str(tmp_path / "up"), bucket, "k", Config=config)
    s3.download_file(bucket, "k", str(tmp_path / "down"), Config=config)
    assert (tmp_path / "down").read_bytes() == content
    s3.copy({"Bucket": bucket, "Key": "k"}, bucket, "copy", Config=config)
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == content
