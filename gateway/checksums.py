"""S3's checksums: running hashes over a body, what a request promises about its body, and
how parts' checksums and ETags become the object's.

Follows "Checking object integrity in Amazon S3". The CRCs are awscrt's (vectorised, also
with their combination); the digests are hashlib's. Hashers are not shared between
threads; BodyDigests.update is meant to be called in a worker thread on blocks of 64 KiB
and more.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from awscrt import checksums as crt
from msgspec import Struct

from engine.types import Checksum, ChecksumType
from gateway.errors import S3Error

Data = bytes | bytearray | memoryview

DIGEST_BYTES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}
ALGORITHMS = tuple(DIGEST_BYTES)
HEADERS = {name: f"x-amz-checksum-{name.lower()}" for name in ALGORITHMS}  # algorithm → header
BY_HEADER = {header: name for name, header in HEADERS.items()}
ELEMENTS = {name: f"Checksum{name}" for name in ALGORITHMS}  # algorithm → XML element
DEFAULT_ALGORITHM = "CRC64NVME"  # what S3 computes when the client asks for nothing

_CRC: dict[str, Callable[[Data, int], int]] = {
    "CRC32": crt.crc32,
    "CRC32C": crt.crc32c,
    "CRC64NVME": crt.crc64nvme,
}
_COMBINE: dict[str, Callable[[int, int, int], int]] = {
    "CRC32": crt.combine_crc32,
    "CRC32C": crt.combine_crc32c,
    "CRC64NVME": crt.combine_crc64nvme,
}
# "x-amz-checksum-" headers that carry no value to check
_NOT_VALUES = frozenset({"x-amz-checksum-algorithm", "x-amz-checksum-mode", "x-amz-checksum-type"})


class Hasher(Protocol):
    algorithm: str

    def update(self, data: Data) -> None: ...
    def digest(self) -> bytes: ...
    def base64(self) -> str: ...


class _CrcHasher:
    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._function = _CRC[algorithm]
        self._value = 0

    def update(self, data: Data) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(DIGEST_BYTES[self.algorithm], "big")

    def base64(self) -> str:
        return base64.b64encode(self.digest()).decode()


class _DigestHasher:
    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._hash = hashlib.new(algorithm.lower(), usedforsecurity=False)

    def update(self, data: Data) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()

    def base64(self) -> str:
        return base64.b64encode(self.digest()).decode()


def new_hasher(algorithm: str) -> Hasher:
    """Raises InvalidRequest for an algorithm S3 does not know."""
    check_algorithm(algorithm)
    return _CrcHasher(algorithm) if algorithm in _CRC else _DigestHasher(algorithm)


def check_algorithm(algorithm: str) -> str:
    """The algorithm in S3's spelling. Raises InvalidRequest."""
    upper = algorithm.upper()
    if upper not in DIGEST_BYTES:
        raise S3Error(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
            "[CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
        )
    return upper


class BodyDigests:
    """Everything computed over one body. The MD5 becomes the ETag."""

    def __init__(self, *, md5: bool = True, sha256: bool = False, algorithms: Sequence[str] = ()) -> None:
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._checksums = {name: new_hasher(name) for name in algorithms}
        # One SHA-256 serves the signature's payload hash and the checksum.
        self._sha256 = new_hasher("SHA256") if sha256 and "SHA256" not in self._checksums else None

    def update(self, data: Data) -> None:
        self.size += len(data)
        if self._md5 is not None:
            self._md5.update(data)
        if self._sha256 is not None:
            self._sha256.update(data)
        for hasher in self._checksums.values():
            hasher.update(data)

    def md5(self) -> bytes:
        assert self._md5 is not None, "MD5 was not asked for"
        return self._md5.digest()

    def sha256_hex(self) -> str:
        hasher = self._sha256 or self._checksums["SHA256"]
        return hasher.digest().hex()

    def checksum(self, algorithm: str) -> Checksum:
        return Checksum(algorithm, self._checksums[algorithm].base64(), ChecksumType.FULL_OBJECT.value)


# -- what a request promises -------------------------------------------------------


class ExpectedDigests(Struct, frozen=True):
    """What a request's headers say of its body. `algorithm` is the S3 checksum to
    compute and store (None: the client named none; S3 then computes CRC64NVME)."""

    md5: bytes | None = None
    algorithm: str | None = None
    value: str | None = None  # base64, from the header
    trailer_names: tuple[str, ...] = ()  # lower case, as x-amz-trailer announces them

    def verify(
        self, digests: BodyDigests, *, trailers: Mapping[str, str] | None = None, payload_sha256: str | None = None
    ) -> Checksum | None:
        """Compare with what was computed. `digests` must cover md5, `algorithm` and, with
        `payload_sha256` (Identity's), SHA-256. Returns the checksum to store. Raises
        BadDigest, XAmzContentSHA256Mismatch, InvalidRequest, MalformedTrailerError."""
        if payload_sha256 is not None and digests.sha256_hex() != payload_sha256:
            raise S3Error(
                "XAmzContentSHA256Mismatch",
                ClientComputedContentSHA256=payload_sha256,
                S3ComputedContentSHA256=digests.sha256_hex(),
            )
        if self.md5 is not None and digests.md5() != self.md5:
            raise S3Error(
                "BadDigest",
                "The Content-MD5 you specified did not match what we received.",
                ExpectedDigest=base64.b64encode(self.md5).decode(),
                CalculatedDigest=base64.b64encode(digests.md5()).decode(),
            )
        if self.algorithm is None:
            return None
        computed = digests.checksum(self.algorithm)
        expected = self.value
        header = HEADERS[self.algorithm]
        if header in self.trailer_names:
            expected = (trailers or {}).get(header)
            if expected is None:
                raise S3Error("MalformedTrailerError")
            _decode_value(self.algorithm, expected, f"Value for {header} trailing header is invalid.")
        if expected is not None and expected != computed.value:
            raise S3Error("BadDigest", f"The {self.algorithm} you specified did not match the calculated checksum.")
        return computed


def parse_expected(headers: Mapping[str, str]) -> ExpectedDigests:
    """From headers by lower-case name. Raises InvalidDigest (Content-MD5) and
    InvalidRequest (checksum headers that contradict each other or are not base64)."""
    md5 = _content_md5(headers.get("content-md5"))
    trailers = tuple(name.strip().lower() for name in headers.get("x-amz-trailer", "").split(",") if name.strip())
    for name in trailers:
        if name not in BY_HEADER:
            raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    sent = [name for name in headers if name.startswith("x-amz-checksum-") and name not in _NOT_VALUES]
    for name in sent:
        if name not in BY_HEADER:
            check_algorithm(name.removeprefix("x-amz-checksum-"))
    if len(sent) + len(trailers) > 1:
        raise S3Error(
            "InvalidRequest",
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        )
    named = headers.get("x-amz-sdk-checksum-algorithm")
    carried = [BY_HEADER[name] for name in (*sent, *trailers)]
    if named is not None:
        algorithm = check_algorithm(named)
        if not carried:
            raise S3Error(
                "InvalidRequest",
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer "
                "headers were found.",
            )
        if carried != [algorithm]:
            raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    value = headers[sent[0]].strip() if sent else None
    if value is not None:
        _decode_value(carried[0], value, f"Value for {sent[0]} header is invalid.")
    return ExpectedDigests(md5, carried[0] if carried else None, value, trailers)


def _content_md5(header: str | None) -> bytes | None:
    if header is None:
        return None
    try:
        digest = base64.b64decode(header.strip(), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 16:
        raise S3Error("InvalidDigest", "The Content-MD5 you specified was invalid.")
    return digest


def _decode_value(algorithm: str, value: str, message: str) -> bytes:
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != DIGEST_BYTES[algorithm]:
        raise S3Error("InvalidRequest", message)
    return digest


# -- multipart -----------------------------------------------------------------------


def multipart_type(algorithm: str | None, requested: str | None) -> str | None:
    """The checksum type of an upload: what was asked for, else the algorithm's default.
    None without algorithm. Raises InvalidRequest for what S3 cannot combine."""
    if algorithm is None:
        if requested is not None:
            raise S3Error(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )
        return None
    if requested is None:
        return ChecksumType.FULL_OBJECT.value if algorithm == "CRC64NVME" else ChecksumType.COMPOSITE.value
    kind = requested.upper()
    if kind not in (ChecksumType.FULL_OBJECT, ChecksumType.COMPOSITE):
        raise S3Error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if (kind == ChecksumType.FULL_OBJECT and algorithm not in _COMBINE) or (
        kind == ChecksumType.COMPOSITE and algorithm == "CRC64NVME"
    ):
        raise S3Error(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.",
        )
    return kind


def combine(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """The CRC of the whole from the CRCs (base64) and sizes of its parts, in order."""
    total = 0
    for value, size in parts:
        total = _COMBINE[algorithm](total, int.from_bytes(base64.b64decode(value), "big"), size)
    return base64.b64encode(total.to_bytes(DIGEST_BYTES[algorithm], "big")).decode()


def composite(algorithm: str, parts: Sequence[str]) -> str:
    """The checksum of the parts' checksums (base64), with "-N"."""
    hasher = new_hasher(algorithm)
    for value in parts:
        hasher.update(base64.b64decode(value))
    return f"{hasher.base64()}-{len(parts)}"


def multipart_etag(md5s: Sequence[bytes]) -> str:
    """The ETag of a multipart object, without quotes: MD5 of the parts' MD5s, with "-N"."""
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"
