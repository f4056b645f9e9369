"""aws-chunked against AWS's documented examples and random splits."""

from __future__ import annotations

import hashlib
import hmac
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.secrets import Credential
from engine.types import Access
from gateway import sigv4
from gateway.awschunked import AwsChunkedDecoder
from gateway.errors import S3Error
from gateway.sigv4 import Identity

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TIMESTAMP, SCOPE = "20130524T000000Z", "20130524/us-east-1/s3/aws4_request"


def identity(payload: str, seed: str = "0" * 64) -> Identity:
    return Identity(
        credential=Credential("root", "AKIAIOSFODNN7EXAMPLE", SECRET, Access.FULL),
        payload=payload,
        signing_key=sigv4.signing_key(SECRET, "20130524", "us-east-1"),
        seed_signature=seed,
        scope=SCOPE,
        timestamp=TIMESTAMP,
        region="us-east-1",
    )


def decode(decoder: AwsChunkedDecoder, blocks: list[bytes]) -> bytes:
    out = b"".join(bytes(piece) for block in blocks for piece in decoder.feed(block))
    decoder.finish()
    return out


def encode(chunks: list[bytes], trailers: dict[str, str] | None, *, signed: bool) -> bytes:
    key, previous = sigv4.signing_key(SECRET, "20130524", "us-east-1"), "0" * 64
    out = bytearray()

    def sign(kind: str, text: str) -> str:
        return hmac.new(key, f"{kind}\n{TIMESTAMP}\n{SCOPE}\n{previous}\n{text}".encode(), hashlib.sha256).hexdigest()

    for chunk in [*chunks, b""]:
        extension = b""
        if signed:
            empty = hashlib.sha256().hexdigest()
            previous = sign("AWS4-HMAC-SHA256-PAYLOAD", f"{empty}\n{hashlib.sha256(chunk).hexdigest()}")
            extension = b";chunk-signature=" + previous.encode()
        out += f"{len(chunk):x}".encode() + extension + b"\r\n"
        out += chunk + b"\r\n" if chunk else b""
    lines = "".join(f"{name}:{value}\n" for name, value in (trailers or {}).items())
    out += lines.replace("\n", "\r\n").encode()
    if signed and trailers is not None:
        digest = hashlib.sha256(lines.encode()).hexdigest()
        out += b"x-amz-trailer-signature:" + sign("AWS4-HMAC-SHA256-TRAILER", digest).encode() + b"\r\n"
    return bytes(out) + b"\r\n"


def test_documented_signed_body() -> None:
    body = (
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
    )
    seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    decoder = AwsChunkedDecoder(identity(sigv4.STREAMING_SIGNED, seed), decoded_length=66560)
    assert decode(decoder, [body]) == b"a" * 66560


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n\r\n"])
def test_documented_signed_trailer(line_end: bytes) -> None:
    body = (
        b"10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
        + b"x-amz-checksum-crc32c:sOO8/Q=="
        + line_end
        + b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
    )
    seed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
    who = identity(sigv4.STREAMING_SIGNED_TRAILER, seed)
    decoder = AwsChunkedDecoder(who, decoded_length=66560, trailer_names=["x-amz-checksum-crc32c"])
    assert decode(decoder, [body]) == b"a" * 66560
    assert decoder.trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}


FORMS = [
    (sigv4.STREAMING_SIGNED, True, None),
    (sigv4.STREAMING_SIGNED_TRAILER, True, {"x-amz-checksum-crc32": "AAAAAA=="}),
    (sigv4.STREAMING_UNSIGNED_TRAILER, False, {"x-amz-checksum-crc32": "AAAAAA=="}),
    (sigv4.STREAMING_UNSIGNED_TRAILER, False, {}),
]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.lists(st.binary(min_size=1, max_size=200), max_size=5),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_any_split_of_the_wire_gives_the_same_payload(
    form: tuple[str, bool, dict[str, str] | None], chunks: list[bytes], cuts: list[int]
) -> None:
    word, is_signed, trailers = form
    wire = encode(chunks, trailers, signed=is_signed)
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    blocks = [wire[start:end] for start, end in pairwise(edges)]
    payload = b"".join(chunks)
    decoder = AwsChunkedDecoder(identity(word), decoded_length=len(payload), trailer_names=list(trailers or {}))
    assert decode(decoder, blocks) == payload
    assert decoder.trailers == (trailers or {})


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMS[:2]), st.data())
def test_a_flipped_bit_never_passes(form: tuple[str, bool, dict[str, str] | None], data: st.DataObject) -> None:
    word, _, trailers = form
    wire = bytearray(encode([b"hello", b"world"], trailers, signed=True))
    at = data.draw(st.integers(0, len(wire) - 3))
    wire[at] ^= 1 << data.draw(st.integers(0, 7))
    decoder = AwsChunkedDecoder(identity(word), decoded_length=10, trailer_names=list(trailers or {}))
    try:
        payload = decode(decoder, [bytes(wire)])
    except S3Error:
        return
    # Case of hex sizes and of header names is not content.
    assert payload == b"helloworld" and decoder.trailers == (trailers or {})


@pytest.mark.parametrize(
    ("wire", "length", "code"),
    [
        (b"5\r\nhello\r\n", 5, "IncompleteBody"),
        (b"5\r\nhel", 5, "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\n\r\n", 6, "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\n\r\n", 4, "IncompleteBody"),
        (b"zz\r\nhello\r\n0\r\n\r\n", 5, "InvalidRequest"),
        (b"-5\r\nhello\r\n0\r\n\r\n", 5, "InvalidRequest"),
        (b"5\r\nhelloXX0\r\n\r\n", 5, "InvalidRequest"),
        (b"5" * 300, 5, "InvalidRequest"),
        (b"5\r\nhello\r\n0\r\n\r\nmore", 5, "InvalidRequest"),
        (b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", 5, "MalformedTrailerError"),
        (b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n", 5, "MalformedTrailerError"),
    ],
)
def test_a_body_that_is_not_whole_is_refused(wire: bytes, length: int, code: str) -> None:
    decoder = AwsChunkedDecoder(identity(sigv4.STREAMING_UNSIGNED_TRAILER), decoded_length=length)
    with pytest.raises(S3Error) as caught:
        decode(decoder, [wire])
    assert caught.value.code == code


def test_a_missing_trailer_or_trailer_signature_is_refused() -> None:
    names = ["x-amz-checksum-crc32"]
    unsigned = AwsChunkedDecoder(identity(sigv4.STREAMING_UNSIGNED_TRAILER), decoded_length=1, trailer_names=names)
    with pytest.raises(S3Error, match="MalformedTrailerError"):
        decode(unsigned, [b"1\r\na\r\n0\r\n\r\n"])
    wire = encode([b"a"], {names[0]: "AAAAAA=="}, signed=True)
    cut = wire[: wire.index(b"x-amz-trailer-signature")] + b"\r\n"
    signed = AwsChunkedDecoder(identity(sigv4.STREAMING_SIGNED_TRAILER), decoded_length=1, trailer_names=names)
    with pytest.raises(S3Error):
        decode(signed, [cut])
