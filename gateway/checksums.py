"""S3 checksums. Signatures first; the bodies follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.types import Checksum

ALGORITHMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
HEADERS = {name: f"x-amz-checksum-{name.lower()}" for name in ALGORITHMS}  # algorithm → header
BY_HEADER = {header: name for name, header in HEADERS.items()}


class Hasher(Protocol):
    algorithm: str

    def update(self, data: bytes | bytearray | memoryview) -> None: ...
    def digest(self) -> bytes: ...
    def base64(self) -> str: ...


def new_hasher(algorithm: str) -> Hasher: ...  # InvalidRequest for an unknown algorithm


class BodyDigests:
    """Everything computed over one body; update() in a worker thread on blocks >= 64 KiB."""

    def __init__(self, *, md5: bool = True, sha256: bool = False, algorithms: Sequence[str] = ()) -> None: ...
    def update(self, data: bytes | bytearray | memoryview) -> None: ...
    def md5(self) -> bytes: ...
    def sha256_hex(self) -> str: ...
    def checksum(self, algorithm: str) -> Checksum: ...


class ExpectedDigests:
    """What a request's headers (and x-amz-trailer) say the body must hash to.
    .algorithm: the one S3 checksum to compute and store (None: none asked for)"""


def parse_expected(headers: Mapping[str, str]) -> ExpectedDigests: ...
def combine(algorithm: str, parts: Sequence[tuple[str, int]]) -> str: ...  # (base64, size) of each part → FULL_OBJECT
def composite(algorithm: str, parts: Sequence[str]) -> str: ...  # base64 of each part → "…-N"
def multipart_type(algorithm: str | None, requested: str | None) -> str | None: ...  # default/validate x-amz-checksum-type
def multipart_etag(md5s: Sequence[bytes]) -> str: ...  # "hex-N" without quotes
