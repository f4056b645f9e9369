"""SigV4 against botocore's signers and AWS's documented examples."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.secrets import Credential
from engine.types import Access
from gateway import sigv4
from gateway.errors import S3Error
from gateway.sigv4 import RequestParts, authenticate

ACCESS_KEY, SECRET_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
DOCUMENTED = datetime(2013, 5, 24, tzinfo=UTC)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def lookup(access_key: str) -> Credential | None:
    return Credential("root", ACCESS_KEY, SECRET_KEY, Access.FULL) if access_key == ACCESS_KEY else None


def signed(method: str, url: str, headers: dict[str, str] | None = None, *, expires: int | None = None) -> RequestParts:
    request = AWSRequest(method, url, headers={"host": "127.0.0.1:9000", **(headers or {})}, data=b"")
    credentials = Credentials(ACCESS_KEY, SECRET_KEY)
    if expires is None:
        S3SigV4Auth(credentials, "s3", "eu-central-1").add_auth(request)
    else:
        S3SigV4QueryAuth(credentials, "s3", "eu-central-1", expires=expires).add_auth(request)
    parts = urlsplit(request.url)
    pairs = [(name.encode(), str(value).encode()) for name, value in request.headers.items()]
    return RequestParts(method, parts.path.encode(), parts.query.encode(), pairs)


def now() -> datetime:
    return datetime.now(UTC)


def refused(request: RequestParts, moment: datetime | None = None) -> str:
    with pytest.raises(S3Error) as caught:
        authenticate(request, lookup, moment or now())
    return caught.value.code


def with_headers(request: RequestParts, *extra: tuple[bytes, bytes], drop: bytes = b"") -> RequestParts:
    kept = [pair for pair in request.headers if pair[0].lower() != drop]
    return RequestParts(request.method, request.raw_path, request.query_string, [*kept, *extra])


@pytest.mark.parametrize(
    "path",
    [
        "/bucket/key",
        "/",
        "/bucket/a%20b",
        "/bucket/%C3%BC/~x",
        "/bucket/a%2Bb%3D",
        "/bucket//double/./x/../y",
        "/b/a(b)'!*",
    ],
)
@pytest.mark.parametrize("query", ["", "?acl", "?list-type=2&prefix=a%2Fb&delimiter=%2F", "?b=2&a=%20&a=1"])
def test_what_botocore_signs_is_accepted(path: str, query: str) -> None:
    for expires in (None, 60):
        request = signed("GET", f"http://127.0.0.1:9000{path}{query}", {"x-amz-meta-a": "  b   c "}, expires=expires)
        identity = authenticate(request, lookup, now())
        assert identity.credential.access_key == ACCESS_KEY and identity.region == "eu-central-1"
        assert identity.presigned is (expires is not None)


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_key_signs_the_same_as_botocore(key: str) -> None:
    from urllib.parse import quote

    request = signed("PUT", f"http://127.0.0.1:9000/bucket/{quote(key, safe='/~')}")
    assert authenticate(request, lookup, now()).credential.access_key == ACCESS_KEY


def test_any_change_of_the_signed_request_is_noticed() -> None:
    request = signed("GET", "http://127.0.0.1:9000/bucket/key?versionId=1", {"x-amz-meta-a": "b"})
    method, path, query = request.method, request.raw_path, request.query_string
    for other in (
        RequestParts("PUT", path, query, request.headers),
        RequestParts(method, b"/bucket/other", query, request.headers),
        RequestParts(method, path, b"versionId=2", request.headers),
        with_headers(request, (b"x-amz-meta-a", b"c"), drop=b"x-amz-meta-a"),
        with_headers(request, (b"x-amz-meta-a", b"c")),
    ):
        assert refused(other) == "SignatureDoesNotMatch"


def test_an_unsigned_amz_header_is_refused() -> None:
    for expires in (None, 60):
        request = signed("PUT", "http://127.0.0.1:9000/bucket/key", expires=expires)
        assert refused(with_headers(request, (b"x-amz-copy-source", b"/other/secret"))) == "AccessDenied"


def test_clock_skew_and_expiry() -> None:
    request = signed("GET", "http://127.0.0.1:9000/b/k")
    authenticate(request, lookup, now() + timedelta(minutes=14))
    assert refused(request, now() + timedelta(minutes=16)) == "RequestTimeTooSkewed"
    assert refused(request, now() - timedelta(minutes=16)) == "RequestTimeTooSkewed"
    url = signed("GET", "http://127.0.0.1:9000/b/k", expires=3600)
    authenticate(url, lookup, now() + timedelta(minutes=59))
    assert refused(url, now() + timedelta(minutes=61)) == "AccessDenied"
    too_long = signed("GET", "http://127.0.0.1:9000/b/k", expires=604_801)
    assert refused(too_long) == "AuthorizationQueryParametersError"


def test_other_mechanisms_and_nobody_are_refused() -> None:
    def plain(authorization: bytes | None, query: bytes = b"") -> RequestParts:
        headers = [(b"host", b"h")] + ([(b"authorization", authorization)] if authorization else [])
        return RequestParts("GET", b"/b/k", query, headers)

    assert refused(plain(None)) == "AccessDenied"
    assert refused(plain(b"AWS AKIA:sig")) == "InvalidRequest"
    assert refused(plain(None, b"AWSAccessKeyId=A&Signature=b&Expires=1")) == "InvalidRequest"
    assert refused(plain(b"AWS4-ECDSA-P256-SHA256 Credential=x")) == "InvalidRequest"
    assert refused(plain(b"Bearer x")) == "InvalidArgument"
    assert refused(plain(b"AWS4-HMAC-SHA256 Credential=x")) == "AuthorizationHeaderMalformed"
    assert refused(plain(None, b"X-Amz-Algorithm=AWS4-HMAC-SHA256")) == "AuthorizationQueryParametersError"


def test_unknown_key_token_and_payload_word_are_refused() -> None:
    request = signed("GET", "http://127.0.0.1:9000/b/k")
    with pytest.raises(S3Error, match="InvalidAccessKeyId"):
        authenticate(request, lambda _: None, now())
    token = signed("GET", "http://127.0.0.1:9000/b/k", {"x-amz-security-token": "t"})
    assert refused(token) == "InvalidToken"
    bad = with_headers(request, (b"x-amz-content-sha256", b"STREAMING-OTHER"), drop=b"x-amz-content-sha256")
    assert refused(bad) == "InvalidArgument"


def documented(
    method: str, path: bytes, query: bytes, names: str, signature: str, *extra: tuple[bytes, bytes]
) -> RequestParts:
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={names},Signature={signature}"
    )
    headers = [
        (b"Host", b"examplebucket.s3.amazonaws.com"),
        (b"x-amz-date", b"20130524T000000Z"),
        (b"Authorization", authorization.encode()),
        *extra,
    ]
    return RequestParts(method, path, query, headers)


def test_documented_examples() -> None:
    empty = (b"x-amz-content-sha256", EMPTY.encode())
    names = "host;x-amz-content-sha256;x-amz-date"
    for request in (
        documented(
            "GET",
            b"/test.txt",
            b"",
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            (b"Range", b"bytes=0-9"),
            empty,
        ),
        documented(
            "GET", b"/", b"lifecycle", names, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", empty
        ),
        documented(
            "GET",
            b"/",
            b"max-keys=2&prefix=J",
            names,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            empty,
        ),
    ):
        assert authenticate(request, lookup, DOCUMENTED).payload_sha256 == EMPTY


def test_documented_presigned_url() -> None:
    query = (
        b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F"
        b"aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        b"&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    request = RequestParts("GET", b"/test.txt", query, [(b"Host", b"examplebucket.s3.amazonaws.com")])
    assert authenticate(request, lookup, DOCUMENTED).payload == sigv4.UNSIGNED


ODD = st.text(alphabet="aZ0/;=, %+\xfc\u212a\x00\r-:", max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(list(sigv4._QUERY_NAMES)), ODD), ODD, ODD, ODD, st.binary(max_size=20))
def test_nonsense_is_refused_and_never_crashes(
    query: dict[str, str], region: str, names: str, date: str, raw: bytes
) -> None:
    from urllib.parse import urlencode

    moment = now()
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{ACCESS_KEY}/{stamp[:8]}/{region}/s3/aws4_request"
    good = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": scope,
        "X-Amz-Date": stamp,
        "X-Amz-Expires": "60",
        "X-Amz-SignedHeaders": f"host;{names}",
        "X-Amz-Signature": names,
    }
    host = (b"host", b"h")
    authorization = f"AWS4-HMAC-SHA256 Credential={scope},SignedHeaders=host;{names},Signature={names or 'x'}".encode()
    dated = [host, (b"authorization", authorization), (b"date", date.encode()), (b"x-amz-content-sha256", raw)]
    stamped = [host, (b"authorization", authorization), (b"x-amz-date", stamp.encode()), (b"x-amz-content-sha256", raw)]
    for headers, pairs in ((dated, {}), (stamped, {}), ([host], {**good, **query}), ([host], good)):
        assert refused(RequestParts("GET", b"/" + raw, urlencode(pairs).encode() + b"&" + raw, headers), moment)
