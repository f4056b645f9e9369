"""Bad input at the S3 door: each gets the right error, and nothing is stored."""

from __future__ import annotations

import base64
import hashlib
import http.client
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.s3.conftest import Server, error_of

CHUNKED = {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-trailer": "x-amz-checksum-crc32"}


@pytest.fixture
def empty(s3: Any, bucket: str) -> Iterator[str]:
    """A bucket that must still be empty when the test is over."""
    yield bucket
    listed = s3.list_objects_v2(Bucket=bucket)
    assert listed["KeyCount"] == 0, "nothing may be stored by a request that failed"


def _code(body: bytes) -> str:
    return body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode()


def _cut_put(server: Server, path: str, sent: bytes, declared: int) -> bytes:
    """A PUT that declares more than it sends, then closes its sending side."""
    headers = server.sign("PUT", path, {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    head = f"PUT {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {declared}\r\n\r\n".encode() + sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


@pytest.mark.parametrize("sent", [0, 100, 300_000])
def test_a_truncated_body_stores_nothing(server: Server, empty: str, sent: int) -> None:
    answer = _cut_put(server, f"/{empty}/k", b"x" * sent, 1_000_000)
    assert not answer.startswith(b"HTTP/1.1 200")


def test_a_client_that_vanishes_leaves_nothing(server: Server, s3: Any, empty: str) -> None:
    path = f"/{empty}/k"
    headers = server.sign("PUT", path, {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    head = f"PUT {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(f"{head}Content-Length: 10000000\r\n\r\n".encode() + b"x" * 2_000_000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    time.sleep(0.2)
    with pytest.raises(ClientError):
        s3.head_object(Bucket=empty, Key="k")


def test_a_wrong_content_md5_is_a_bad_digest(server: Server, empty: str) -> None:
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    status, _, body = server.send("PUT", f"/{empty}/k", {"Content-MD5": wrong}, b"content")
    assert (status, _code(body)) == (400, "BadDigest")
    status, _, body = server.send("PUT", f"/{empty}/k", {"Content-MD5": "nonsense"}, b"content")
    assert (status, _code(body)) == (400, "InvalidDigest")


def test_a_payload_other_than_the_signed_one_is_refused(server: Server, empty: str) -> None:
    path = f"/{empty}/k"
    headers = server.sign("PUT", path, body=b"content")
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("PUT", path, body=b"CONTENT", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, _code(answer.read())) == (400, "XAmzContentSHA256Mismatch")
    connection.close()


def test_wrong_signers_are_told_apart(server: Server, empty: str) -> None:
    with pytest.raises(ClientError) as raised:
        server.client(secret_key="wrong").put_object(Bucket=empty, Key="k", Body=b"x")
    assert error_of(raised) == ("SignatureDoesNotMatch", 403)
    with pytest.raises(ClientError) as raised:
        server.client(access_key="nobody").put_object(Bucket=empty, Key="k", Body=b"x")
    assert error_of(raised) == ("InvalidAccessKeyId", 403)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("PUT", f"/{empty}/k", body=b"x")
    answer = connection.getresponse()
    assert (answer.status, _code(answer.read())) == (403, "AccessDenied")
    connection.close()


def _chunked(server: Server, path: str, body: bytes, declared: int) -> tuple[int, str]:
    headers = {**CHUNKED, "x-amz-decoded-content-length": str(declared), "Content-Encoding": "aws-chunked"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("PUT", path, body=body, headers=server.sign("PUT", path, headers))
    answer = connection.getresponse()
    code = _code(answer.read())
    connection.close()
    return answer.status, code


TRAILER = b"0\r\nx-amz-checksum-crc32:" + base64.b64encode((0x3610A686).to_bytes(4, "big")) + b"\r\n\r\n"  # of hello


def test_a_chunked_body_must_be_what_it_declares(server: Server, s3: Any, bucket: str) -> None:
    path = f"/{bucket}/k"
    assert _chunked(server, path, b"5\r\nhello\r\n" + TRAILER, 5) == (200, "")
    s3.delete_object(Bucket=bucket, Key="k")
    assert _chunked(server, path, b"5\r\nhello\r\n" + TRAILER, 6)[0] == 400  # shorter than declared
    assert _chunked(server, path, b"5\r\nhello\r\n" + TRAILER, 4)[0] == 400  # longer than declared
    assert _chunked(server, path, b"5\r\nhullo\r\n" + TRAILER, 5) == (400, "BadDigest")
    assert _chunked(server, path, b"zz\r\nhello\r\n" + TRAILER, 5)[0] == 400
    assert _chunked(server, path, b"5\r\nhello\r\n0\r\n\r\n", 5)[0] == 400  # the trailer announced is missing
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_no_length_is_411_and_too_much_is_refused_at_once(server: Server, empty: str) -> None:
    path = f"/{empty}/k"
    headers = server.sign("PUT", path, {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("PUT", path, body=iter([b"x"]), headers=headers, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, _code(answer.read())) == (411, "MissingContentLength")
    connection.close()
    head = f"PUT {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(f"{head}Content-Length: {5 * 1024**3 + 1}\r\nExpect: 100-continue\r\n\r\n".encode())
        answer = raw.recv(65536)
        if answer.startswith(b"HTTP/1.1 100"):  # hypercorn says so before it asks the application
            answer = answer.partition(b"\r\n\r\n")[2] or raw.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400")


def test_100_continue_is_said_before_the_body(server: Server, s3: Any, bucket: str) -> None:
    path = f"/{bucket}/k"
    headers = server.sign("PUT", path, {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    head = f"PUT {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(f"{head}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 100")
        raw.sendall(b"hello")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("?delete", b"<Delete><Object>"),
        ("?delete", b"<Other/>"),
        ("?delete", b'<!DOCTYPE a [<!ENTITY b "c">]><Delete>&b;</Delete>'),
        ("?delete", b"<Delete>" + b"<Object><Key>k</Key></Object>" * 1001 + b"</Delete>"),
    ],
)
def test_malformed_xml_is_named(server: Server, bucket: str, query: str, body: bytes) -> None:
    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    status, _, answer = server.send("POST", f"/{bucket}{query}", {"Content-MD5": md5}, body)
    assert (status, _code(answer)) == (400, "MalformedXML")


def test_a_body_refused_early_still_gets_its_answer(s3: Any) -> None:
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=f"absent-{secrets.token_hex(4)}", Key="k", Body=b"x" * 4_000_000)
    assert error_of(raised) == ("NoSuchBucket", 404)


def test_a_path_that_is_not_utf8_is_refused(server: Server, empty: str) -> None:
    status, _, body = server.send("PUT", f"/{empty}/%FF%FE", {}, b"x")
    assert (status, _code(body)) == (400, "InvalidURI")


def test_errors_carry_request_ids(server: Server, bucket: str) -> None:
    status, headers, body = server.send("GET", f"/{bucket}/absent")
    assert status == 404
    assert headers["x-amz-request-id"].encode() in body
    assert headers["x-amz-id-2"].encode() in body


def test_head_errors_have_no_body(server: Server, bucket: str) -> None:
    status, _, body = server.send("HEAD", f"/{bucket}/absent")
    assert (status, body) == (404, b"")


def test_a_form_upload_is_refused_by_name(server: Server, empty: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", f"/{empty}", body=b"--x--", headers={"Content-Type": "multipart/form-data; boundary=x"})
    answer = connection.getresponse()
    assert (answer.status, _code(answer.read())) == (501, "NotImplemented")
    connection.close()


def test_a_bucket_being_deleted_has_the_write_or_is_gone(server: Server, s3: Any) -> None:
    """Of a PUT racing DeleteBucket one is refused; never is an object left without a bucket."""
    for _ in range(10):
        name = f"race-{secrets.token_hex(6)}"
        s3.create_bucket(Bucket=name)
        with ThreadPoolExecutor(2) as threads:
            put = threads.submit(server.send, "PUT", f"/{name}/k", {}, b"x")
            delete = threads.submit(server.send, "DELETE", f"/{name}")
            outcome = (put.result()[0], delete.result()[0])
        assert outcome in ((200, 409), (404, 204))
        if outcome == (200, 409):
            assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"x"
