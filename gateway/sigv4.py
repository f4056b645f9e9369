"""AWS Signature Version 4: who sent this request. Signatures first; the bodies follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct

from engine.secrets import Credential


class RequestParts(Struct, frozen=True):
    """What of a request is signed, exactly as it came over the wire."""

    method: str
    raw_path: bytes  # as sent, percent-encoded, without query
    query_string: bytes
    headers: Sequence[tuple[bytes, bytes]]


class Identity(Struct, frozen=True):
    """A verified signer, and what verifying the body still needs."""

    credential: Credential
    payload: str  # x-amz-content-sha256: lower hex digest, or one of the words below
    signing_key: bytes
    seed_signature: str
    scope: str  # date/region/s3/aws4_request
    timestamp: str  # x-amz-date, as in string-to-sign
    region: str
    presigned: bool = False

    @property
    def payload_sha256(self) -> str | None: ...  # hex digest the body must have, or None

    @property
    def streaming(self) -> bool: ...  # the body is aws-chunked


UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

Lookup = Callable[[str], Credential | None]


def authenticate(request: RequestParts, lookup: Lookup, now: datetime) -> Identity:
    """Raises S3Error. Anonymous: AccessDenied."""
    raise NotImplementedError
