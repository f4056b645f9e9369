"""Buckets and the configurations they can and cannot have."""

from __future__ import annotations

import http.client
import secrets
import urllib.error
import urllib.request
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.s3.conftest import Server, error_of


def test_a_bucket_is_created_listed_headed_and_deleted(s3: Any) -> None:
    name = f"b-{secrets.token_hex(6)}"
    assert s3.create_bucket(Bucket=name)["Location"] == f"/{name}"
    assert name in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert s3.head_bucket(Bucket=name)["BucketRegion"] == "us-east-1"
    s3.delete_bucket(Bucket=name)
    with pytest.raises(ClientError) as raised:
        s3.head_bucket(Bucket=name)
    assert error_of(raised)[1] == 404


def test_list_buckets_pages_and_filters_by_prefix(s3: Any) -> None:
    prefix = f"page-{secrets.token_hex(4)}-"
    names = [f"{prefix}{number}" for number in range(3)]
    for name in names:
        s3.create_bucket(Bucket=name)
    first = s3.list_buckets(Prefix=prefix, MaxBuckets=2)
    assert [bucket["Name"] for bucket in first["Buckets"]] == names[:2]
    rest = s3.list_buckets(Prefix=prefix, MaxBuckets=2, ContinuationToken=first["ContinuationToken"])
    assert [bucket["Name"] for bucket in rest["Buckets"]] == names[2:]


def test_creating_a_bucket_twice_says_it_is_owned_already(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as raised:
        s3.create_bucket(Bucket=bucket)
    assert error_of(raised) == ("BucketAlreadyOwnedByYou", 409)


def test_any_region_is_accepted_at_creation(s3: Any) -> None:
    name = f"b-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    assert s3.get_bucket_location(Bucket=name)["LocationConstraint"] is None


@pytest.mark.parametrize("name", ["ab", "Upper-Case", "a..b", "192.168.1.1", "xn--abc", "_objf"])
def test_a_bad_bucket_name_is_refused(server: Server, name: str) -> None:
    status, _, body = server.send("PUT", f"/{name}")
    assert status == 400 and b"InvalidBucketName" in body


def test_a_bucket_with_an_object_is_not_deleted(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    with pytest.raises(ClientError) as raised:
        s3.delete_bucket(Bucket=bucket)
    assert error_of(raised) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)


def test_versioning_is_off_then_enabled_then_suspended(s3: Any, bucket: str) -> None:
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    for state in ("Enabled", "Suspended"):
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": state})
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == state


def test_bucket_tags_are_set_and_removed(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as raised:
        s3.get_bucket_tagging(Bucket=bucket)
    assert error_of(raised) == ("NoSuchTagSet", 404)
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "a", "Value": "1"}]})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == [{"Key": "a", "Value": "1"}]
    s3.delete_bucket_tagging(Bucket=bucket)
    with pytest.raises(ClientError):
        s3.get_bucket_tagging(Bucket=bucket)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
        ("get_bucket_policy", "NoSuchBucketPolicy"),
        ("get_bucket_cors", "NoSuchCORSConfiguration"),
        ("get_bucket_website", "NoSuchWebsiteConfiguration"),
        ("get_bucket_replication", "ReplicationConfigurationNotFoundError"),
        ("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
        ("get_public_access_block", "NoSuchPublicAccessBlockConfiguration"),
        ("get_bucket_ownership_controls", "OwnershipControlsNotFoundError"),
    ],
)
def test_a_configuration_that_cannot_be_set_reads_as_none(s3: Any, bucket: str, call: str, code: str) -> None:
    with pytest.raises(ClientError) as raised:
        getattr(s3, call)(Bucket=bucket)
    assert error_of(raised) == (code, 404)


def test_configurations_with_an_empty_default_read_as_empty(s3: Any, bucket: str) -> None:
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)
    assert "QueueConfigurations" not in s3.get_bucket_notification_configuration(Bucket=bucket)
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    assert "Status" not in s3.get_bucket_accelerate_configuration(Bucket=bucket)
    assert s3.list_bucket_inventory_configurations(Bucket=bucket)["IsTruncated"] is False
    grants = s3.get_bucket_acl(Bucket=bucket)["Grants"]
    assert [grant["Permission"] for grant in grants] == ["FULL_CONTROL"]


def test_setting_a_configuration_is_refused_by_name(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as raised:
        s3.put_bucket_policy(Bucket=bucket, Policy="{}")
    assert error_of(raised) == ("NotImplemented", 501)
    assert "PutBucketPolicy" in raised.value.response["Error"]["Message"]


def test_a_subresource_never_falls_through_to_the_plain_operation(server: Server, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    assert server.send("PUT", f"/{bucket}/k?acl", body=b"lost")[0] == 501
    assert server.send("PUT", f"/{bucket}/k?neverheardof", body=b"lost")[0] == 501
    assert server.send("DELETE", f"/{bucket}?lifecycle")[0] == 204
    assert server.send("DELETE", f"/{bucket}?neverheardof")[0] == 501
    assert server.send("DELETE", f"/{bucket}/k?neverheardof")[0] == 501
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


def test_health_and_metrics_need_no_signature(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/_objfs/health") as answer:
        assert answer.status == 200 and b'"ok"' in answer.read()
    with urllib.request.urlopen(f"{server.url}/_objfs/metrics") as answer:
        assert b"objfs_s3_requests_total" in answer.read()


def test_virtual_host_style_names_the_bucket_in_the_host(server: Server, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a b/ü", Body=b"hosted")
    path = "/a%20b/%C3%BC"
    host = f"{bucket}.localhost:{server.port}"
    request = AWSRequest("GET", f"http://{host}{path}")
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", path, headers={"Host": host, **dict(request.headers.items())})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"hosted")
    connection.close()


def test_service_endpoints_refuse_what_they_do_not_have(server: Server) -> None:
    for method, path, status in (("GET", "nothing", 404), ("POST", "health", 405), ("DELETE", "metrics", 405)):
        request = urllib.request.Request(f"{server.url}/_objfs/{path}", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert (refused.value.code, refused.value.headers["content-type"]) == (status, "application/json")
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/_objfs/health", method="HEAD")) as answer:
        assert (answer.status, answer.read()) == (200, b"")
