"""aws-chunked bodies, sans I/O: wire bytes in, payload pieces out.

Follows "Signature Calculations for the Authorization Header: Transferring Payload in
Multiple Chunks" and "… Including Trailing Headers" of the S3 API Reference. One decoder
serves one request and is used by one task at a time (calls may move between threads).
Payload leaves before its chunk's signature is verified, so that chunks of any size
stream in bounded memory: nothing may be committed before finish() has returned.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from enum import Enum

from gateway.errors import S3Error
from gateway.sigv4 import (
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    Identity,
)

CHUNK_LINE_BYTES_MAX = 256  # 16 digits of size and one signature are 98
TRAILER_BYTES_MAX = 8 * 1024

_SIGNED_LINE = re.compile(rb"([0-9a-fA-F]{1,16});chunk-signature=([0-9a-f]{64})")
_UNSIGNED_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\r\n]*)?")
_TRAILER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_EMPTY_SHA256 = hashlib.sha256().hexdigest()


class _State(Enum):
    CHUNK_LINE = "chunk line"
    DATA = "chunk data"
    DATA_END = "line end after chunk data"
    TRAILER = "trailer"
    DONE = "done"


class AwsChunkedDecoder:
    """feed() what arrives, use the pieces it returns, then finish()."""

    def __init__(self, identity: Identity, *, decoded_length: int, trailer_names: Sequence[str] = ()) -> None:
        """`decoded_length` is x-amz-decoded-content-length; `trailer_names` what
        x-amz-trailer announces, in lower case. `identity.payload` says which form."""
        assert identity.streaming, "only a streaming payload is aws-chunked"
        self.trailers: dict[str, str] = {}  # complete after finish(); lower-case names
        self._identity = identity
        self._signed = identity.payload in (STREAMING_SIGNED, STREAMING_SIGNED_TRAILER)
        self._has_trailer = identity.payload in (STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER)
        if trailer_names and not self._has_trailer:
            raise S3Error("InvalidRequest", "x-amz-trailer needs a x-amz-content-sha256 that ends in -TRAILER")
        self._expected_trailers = frozenset(trailer_names)
        self._state = _State.CHUNK_LINE
        self._line = bytearray()  # a line, or line end, that is not complete yet
        self._left_in_chunk = 0
        self._left_in_body = decoded_length
        self._previous_signature = identity.seed_signature
        self._chunk_signature = ""
        self._hash = hashlib.sha256()
        self._trailer_bytes = 0
        self._trailer_text = b""  # as signed: name:value\n
        self._trailer_signature: str | None = None

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """The payload in `data`, as views of it. Hashes the payload of signed bodies:
        call it in a worker thread for large blocks. Raises S3Error: SignatureDoesNotMatch,
        IncompleteBody, InvalidRequest, MalformedTrailerError."""
        view = memoryview(data)
        pieces: list[memoryview] = []
        at = 0
        while at < len(view):
            if self._state is _State.DATA:
                piece = view[at : at + self._left_in_chunk]
                at += len(piece)
                self._left_in_chunk -= len(piece)
                if self._signed:
                    self._hash.update(piece)
                pieces.append(piece)
                if self._left_in_chunk == 0:
                    self._end_chunk()
                    self._state = _State.DATA_END
            elif self._state is _State.DONE:
                raise S3Error("InvalidRequest", "The body continues after its last chunk")
            else:
                at = self._take_line(view, at)
        return pieces

    def finish(self) -> None:
        """At the end of the body: raises IncompleteBody if it ended early."""
        if self._state is _State.TRAILER and not self._signed and not self._line and self._trailers_complete():
            self._end_trailer()  # some clients leave out the empty last line
        if self._state is _State.TRAILER and self._signed and self._trailer_signature and not self._line:
            self._end_trailer()
        if self._state is not _State.DONE or self._left_in_body:
            raise S3Error("IncompleteBody")

    # -- lines -------------------------------------------------------------------

    def _take_line(self, view: memoryview, at: int) -> int:
        """Take bytes up to a newline; act on the line once it is whole. Returns the new
        position in the view."""
        limit = TRAILER_BYTES_MAX if self._state is _State.TRAILER else CHUNK_LINE_BYTES_MAX
        window = bytes(view[at : at + limit + 1 - len(self._line)])
        end = window.find(b"\n")
        taken = window if end < 0 else window[: end + 1]
        self._line += taken
        if end < 0:
            if len(self._line) > limit:
                raise self._bad_line()
            return at + len(taken)
        line = bytes(self._line[:-1])
        self._line.clear()
        if self._state is _State.CHUNK_LINE:
            self._begin_chunk(line)
        elif self._state is _State.DATA_END:
            if line != b"\r":
                raise self._bad_line()
            self._state = _State.CHUNK_LINE
        else:
            self._trailer_line(line.removesuffix(b"\r"), len(taken))
        return at + len(taken)

    def _bad_line(self) -> S3Error:
        if self._state is _State.TRAILER:
            return S3Error("MalformedTrailerError")
        return S3Error("InvalidRequest", "The aws-chunked body is not well-formed")

    def _begin_chunk(self, line: bytes) -> None:
        pattern = _SIGNED_LINE if self._signed else _UNSIGNED_LINE
        match = pattern.fullmatch(line[:-1]) if line.endswith(b"\r") else None
        if match is None:
            raise self._bad_line()
        size = int(match[1], 16)
        if size > self._left_in_body:
            raise S3Error("IncompleteBody", "The body is longer than x-amz-decoded-content-length says")
        self._chunk_signature = match[2].decode() if self._signed else ""
        self._hash = hashlib.sha256()
        self._left_in_chunk = size
        self._left_in_body -= size
        if size:
            self._state = _State.DATA
            return
        if self._left_in_body:
            raise S3Error("IncompleteBody", "The body is shorter than x-amz-decoded-content-length says")
        self._end_chunk()
        self._state = _State.TRAILER

    # -- signatures --------------------------------------------------------------

    def _end_chunk(self) -> None:
        if self._signed:
            self._check_signature(
                f"AWS4-HMAC-SHA256-PAYLOAD\n{self._identity.timestamp}\n{self._identity.scope}\n"
                f"{self._previous_signature}\n{_EMPTY_SHA256}\n{self._hash.hexdigest()}",
                self._chunk_signature,
            )

    def _check_signature(self, string_to_sign: str, provided: str) -> None:
        signature = hmac.new(self._identity.signing_key, string_to_sign.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature.encode(), provided.encode()):
            raise S3Error(
                "SignatureDoesNotMatch",
                AWSAccessKeyId=self._identity.credential.access_key,
                StringToSign=string_to_sign,
                SignatureProvided=provided,
            )
        self._previous_signature = signature

    # -- trailers ----------------------------------------------------------------

    def _trailer_line(self, line: bytes, taken: int) -> None:
        self._trailer_bytes += taken
        if self._trailer_bytes > TRAILER_BYTES_MAX:
            raise S3Error("MalformedTrailerError")
        if not line:
            # The documented examples end each trailer in \n\r\n, so that before the
            # trailer's signature an empty line need not be the last.
            if self._signed and self._has_trailer and self._trailer_signature is None:
                return
            self._end_trailer()
            return
        raw_name, colon, raw_value = line.partition(b":")
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip()
        if not self._has_trailer or not colon or not _TRAILER_NAME.fullmatch(name):
            raise S3Error("MalformedTrailerError")
        if name == "x-amz-trailer-signature":
            if not self._signed or self._trailer_signature is not None:
                raise S3Error("MalformedTrailerError")
            self._trailer_signature = value
            return
        if self._trailer_signature is not None or name in self.trailers or name not in self._expected_trailers:
            raise S3Error("MalformedTrailerError")
        self.trailers[name] = value
        self._trailer_text += f"{name}:{value}\n".encode("latin-1")

    def _trailers_complete(self) -> bool:
        return self.trailers.keys() == self._expected_trailers

    def _end_trailer(self) -> None:
        if not self._trailers_complete():
            raise S3Error("MalformedTrailerError")
        if self._signed and self._has_trailer:
            digest = hashlib.sha256(self._trailer_text).hexdigest()
            self._check_signature(
                f"AWS4-HMAC-SHA256-TRAILER\n{self._identity.timestamp}\n{self._identity.scope}\n"
                f"{self._previous_signature}\n{digest}",
                self._trailer_signature or "",
            )
        self._state = _State.DONE
