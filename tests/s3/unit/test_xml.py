"""XML: hostile bodies are refused, answers are what botocore's own parser reads."""

from __future__ import annotations

import datetime
from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser

from engine import errors as store_errors
from engine.interfaces import ListPage, VersionsPage
from engine.types import Bucket, Checksum, Manifest, ObjectPart, Part, Upload, Version, Versioning
from gateway import errors, xml
from gateway.errors import S3Error

MODEL = botocore.session.get_session().get_service_model("s3")
PARSER = create_parser("rest-xml")
TIME_NS = 1_700_000_000_500_000_000
MOMENT = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
CRC = Checksum("CRC32", "AAAAAA==")


def read(operation: str, body: bytes) -> dict[str, Any]:
    shape = MODEL.operation_model(operation).output_shape
    parsed = PARSER.parse({"status_code": 200, "headers": {}, "body": body}, shape)
    parsed.pop("ResponseMetadata")
    return parsed


def version(key: str = 'a<&>"b c', **fields: Any) -> Version:
    return Version("b", key, "v1", 1, TIME_NS, **{"size": 5, "etag": "e1", "checksum": CRC, **fields})


# -- parsing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml",
        b"<Delete>",
        b"<Other/>",
        b"<Delete/>",
        b"<Delete><Object><Key></Key></Object></Delete>",
        b"<Delete><Object><Key>a</Key><Nonsense/></Object></Delete>",
        b"<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
        b"<Delete><Object><Key><Key>a</Key></Key></Object></Delete>",
        b"<Delete><Object><Key>a</Key></Object><Quiet>maybe</Quiet></Delete>",
        b"<!DOCTYPE Delete><Delete><Object><Key>a</Key></Object></Delete>",
        b'<!DOCTYPE d [<!ENTITY e "x">]><Delete><Object><Key>&e;</Key></Object></Delete>',
        b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><Delete><Object><Key>a</Key></Object></Delete>',
        b'<Delete xmlns="http://other/"><Object><Key>a</Key></Object></Delete>',
        b"<Delete>" + b"<Object><Key>a</Key></Object>" * 1001 + b"</Delete>",
        b"<a>" * 100,
        b'<?xml version="1.0" encoding="nonsense"?><Delete/>',
        b"<Delete>\xff</Delete>",
    ],
)
def test_bodies_that_are_not_a_delete_are_refused(body: bytes) -> None:
    with pytest.raises(S3Error, match="MalformedXML"):
        xml.parse_delete(body)


def test_delete_in_full() -> None:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Delete xmlns="{xml.NAMESPACE}">\n <Quiet>true</Quiet>'
        "<Object><Key> a&amp;b </Key><VersionId>v</VersionId><ETag>&quot;e&quot;</ETag><Size>7</Size>"
        "<LastModifiedTime>Tue, 14 Nov 2023 22:13:20 GMT</LastModifiedTime></Object><Object><Key>k</Key></Object>"
        "</Delete>"
    )
    objects, quiet = xml.parse_delete(body.encode())
    assert quiet
    assert objects[0] == xml.ObjectToDelete(" a&b ", "v", "e", TIME_NS // 10**9 * 10**9, 7)
    assert objects[1] == xml.ObjectToDelete("k")


def complete(*numbers: int) -> bytes:
    parts = "".join(
        f'<Part><ETag>"e{n}"</ETag><PartNumber>{n}</PartNumber><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part>'
        for n in numbers
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def test_complete_upload() -> None:
    assert xml.parse_complete_upload(complete(1, 3))[1] == xml.CompletedPart(3, "e3", {"CRC32": "AAAAAA=="})
    assert len(xml.parse_complete_upload(complete(*range(1, 10_001)))) == 10_000
    for numbers, code in (((2, 1), "InvalidPartOrder"), ((1, 1), "InvalidPartOrder"), ((), "MalformedXML")):
        with pytest.raises(S3Error, match=code):
            xml.parse_complete_upload(complete(*numbers))
    with pytest.raises(S3Error, match="InvalidArgument"):
        xml.parse_complete_upload(complete(10_001))


def test_small_bodies() -> None:
    assert xml.parse_create_bucket(b"") is None
    region = (
        b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>"
    )
    assert xml.parse_create_bucket(region) == "eu-west-1"
    with pytest.raises(S3Error, match="NotImplemented"):
        xml.parse_create_bucket(b"<CreateBucketConfiguration><Bucket/></CreateBucketConfiguration>")
    assert xml.parse_tagging(xml.tagging({"a": "1", "b&": "<"})) == [("a", "1"), ("b&", "<")]
    assert xml.parse_versioning(xml.versioning(Versioning.ENABLED)) is Versioning.ENABLED
    with pytest.raises(S3Error, match="IllegalVersioningConfiguration"):
        xml.parse_versioning(xml.versioning(Versioning.UNVERSIONED))


# -- answers ---------------------------------------------------------------------------


def test_listings_read_back() -> None:
    page = ListPage([version()], ["p/"], "next")
    one = read(
        "ListObjects",
        xml.list_objects(page, bucket="b", prefix="", delimiter="/", marker="m", max_keys=2, url=False, owner="o"),
    )
    assert one["Contents"][0] == {
        "Key": 'a<&>"b c',
        "LastModified": MOMENT,
        "ETag": '"e1"',
        "Size": 5,
        "StorageClass": "STANDARD",
        "ChecksumAlgorithm": ["CRC32"],
        "ChecksumType": "FULL_OBJECT",
        "Owner": {"ID": "o", "DisplayName": "o"},
    }
    assert (one["IsTruncated"], one["NextMarker"], one["CommonPrefixes"]) == (True, "next", [{"Prefix": "p/"}])
    two = read(
        "ListObjectsV2",
        xml.list_objects_v2(
            page, bucket="b", prefix="p", delimiter="", max_keys=2, url=True, start_after="s t", token=None, owner=None
        ),
    )
    assert (two["KeyCount"], two["EncodingType"], two["StartAfter"]) == (2, "url", "s%20t")
    assert two["Contents"][0]["Key"] == "a%3C%26%3E%22b%20c" and "Owner" not in two["Contents"][0]
    assert xml.decode_token(two["NextContinuationToken"]) == "next"
    for token in ("", "!", "AAAA", "MQ=", "ü"):
        with pytest.raises(S3Error, match="InvalidArgument"):
            xml.decode_token(token)


def test_versions_read_back() -> None:
    page = VersionsPage([version(), version("k", delete_marker=True, is_latest=False)], [], "k", "v1")
    body = xml.list_versions(
        page,
        bucket="b",
        prefix="",
        delimiter="",
        key_marker="",
        version_id_marker="",
        max_keys=9,
        url=False,
        owner="o",
    )
    found = read("ListObjectVersions", body)
    assert found["Versions"][0]["VersionId"] == "v1" and found["Versions"][0]["IsLatest"] is True
    assert found["DeleteMarkers"][0]["Key"] == "k" and found["DeleteMarkers"][0]["IsLatest"] is False
    assert (found["NextKeyMarker"], found["NextVersionIdMarker"]) == ("k", "v1")


def test_multipart_reads_back() -> None:
    upload = Upload("u", "b", "k", TIME_NS, checksum_algorithm="CRC32", checksum_type="COMPOSITE")
    part = Part("u", 2, 7, b"\x01" * 16, Manifest(), TIME_NS, checksum=CRC)
    parts = read("ListParts", xml.list_parts(upload, [part], marker=1, max_parts=1, truncated=True, owner="o"))
    assert parts["Parts"] == [
        {"PartNumber": 2, "LastModified": MOMENT, "ETag": f'"{"01" * 16}"', "Size": 7, "ChecksumCRC32": "AAAAAA=="}
    ]
    assert (parts["NextPartNumberMarker"], parts["ChecksumAlgorithm"], parts["IsTruncated"]) == (2, "CRC32", True)
    body = xml.list_uploads(
        [upload],
        ["x/"],
        bucket="b",
        prefix="",
        delimiter="/",
        key_marker="",
        upload_id_marker="",
        max_uploads=1,
        next_key=None,
        next_upload_id=None,
        url=False,
        owner="o",
    )
    uploads = read("ListMultipartUploads", body)
    assert uploads["Uploads"][0]["Initiated"] == MOMENT and uploads["IsTruncated"] is False
    assert read("CreateMultipartUpload", xml.initiate_upload("b", "k", "u")) == {
        "Bucket": "b",
        "Key": "k",
        "UploadId": "u",
    }
    done = read("CompleteMultipartUpload", xml.complete_upload(version("k"), location="http://h/b/k"))
    assert (done["ETag"], done["ChecksumCRC32"], done["ChecksumType"]) == ('"e1"', "AAAAAA==", "FULL_OBJECT")
    assert read("CopyObject", xml.copy_object(version()))["CopyObjectResult"]["ETag"] == '"e1"'
    assert read("UploadPartCopy", xml.copy_part(part))["CopyPartResult"]["LastModified"] == MOMENT


def test_attributes_read_back() -> None:
    shown = version(
        parts=[ObjectPart(1, 3, CRC), ObjectPart(2, 2, CRC)], checksum=Checksum("CRC32", "x-2", "COMPOSITE")
    )
    wanted = frozenset({"ETag", "Checksum", "ObjectParts", "ObjectSize"})
    found = read("GetObjectAttributes", xml.object_attributes(shown, wanted, max_parts=1))
    assert (found["ETag"], found["ObjectSize"], "StorageClass" in found) == ("e1", 5, False)
    assert found["Checksum"] == {"ChecksumCRC32": "x", "ChecksumType": "COMPOSITE"}
    parts = found["ObjectParts"]
    assert (parts["TotalPartsCount"], parts["IsTruncated"], parts["NextPartNumberMarker"]) == (2, True, 1)


def test_the_rest_reads_back() -> None:
    buckets = read("ListBuckets", xml.list_buckets([Bucket("b", 1, TIME_NS)], owner="o", token="t"))
    assert buckets["Buckets"] == [{"Name": "b", "CreationDate": MOMENT}] and buckets["ContinuationToken"] == "t"
    assert b"></LocationConstraint>" in xml.location("us-east-1")
    assert read("GetBucketVersioning", xml.versioning(Versioning.SUSPENDED)) == {"Status": "Suspended"}
    assert read("GetBucketVersioning", xml.versioning(Versioning.UNVERSIONED)) == {}
    body = xml.delete_result([xml.Deleted("k", None, True, "v9")], [xml.DeleteFailed("x", "AccessDenied", "no")])
    assert read("DeleteObjects", body) == {
        "Deleted": [{"Key": "k", "DeleteMarker": True, "DeleteMarkerVersionId": "v9"}],
        "Errors": [{"Key": "x", "Code": "AccessDenied", "Message": "no"}],
    }


def test_control_characters_are_references() -> None:
    body = xml.initiate_upload("b", "a\x01\r\n\x7f", "u")
    assert b"<Key>a&#x1;&#xD;\n&#x7F;</Key>" in body


# -- errors ----------------------------------------------------------------------------


def test_errors_carry_their_elements() -> None:
    error = errors.from_store_error(store_errors.NoSuchKey("k"), bucket="b", key="a<b")
    body = errors.error_body(error, resource="/b/a<b", request_id="r", host_id="h")
    parsed = PARSER.parse({"status_code": 404, "headers": {}, "body": body}, None)
    assert parsed["Error"]["Code"] == "NoSuchKey" and parsed["Error"]["Key"] == "a<b"
    assert parsed["Error"]["Resource"] == "/b/a<b"


@pytest.mark.parametrize("cls", store_errors.BY_NAME.values())
def test_every_store_error_has_an_answer(cls: type[store_errors.StoreError]) -> None:
    answer = errors.from_store_error(cls("x"), bucket="b", key="k", version_id="v", upload_id="u")
    assert answer.code in errors.CODES and 400 <= answer.status < 600


def test_what_the_store_says_becomes_the_status() -> None:
    for cls, status in (
        (store_errors.NoSuchBucket, 404),
        (store_errors.NodeFull, 507),
        (store_errors.WritesStopped, 503),
        (store_errors.Unreadable, 500),
        (store_errors.PreconditionFailed, 412),
        (store_errors.BucketExists, 409),
    ):
        assert errors.from_store_error(cls("If-Match")).status == status
