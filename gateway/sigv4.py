"""AWS Signature Version 4: who sent this request, and is it what they signed?

Follows "Authenticating Requests (AWS Signature Version 4)" of the S3 API Reference, in
the header form and the presigned form. Pure functions over the request's bytes as they
came over the wire; knows no socket and no store (keys come through a lookup). May be
called from any thread; the cache of signing keys is functools' and thread-safe.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from msgspec import Struct

from engine.secrets import Credential
from gateway.errors import S3Error, invalid_argument

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING = frozenset({STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER})

SKEW_MAX = timedelta(minutes=15)  # S3 API: RequestTimeTooSkewed
EXPIRES_SECONDS_MAX = 604_800  # S3 API: presigned URLs live seven days at most

Lookup = Callable[[str], Credential | None]

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_FOLD = re.compile(rb"[ \t]+")
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
_QUERY_NAMES = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
)


class RequestParts(Struct, frozen=True):
    """What of a request is signed, exactly as it came over the wire."""

    method: str
    raw_path: bytes  # percent-encoded as sent, without the query
    query_string: bytes
    headers: Sequence[tuple[bytes, bytes]]


class Identity(Struct, frozen=True):
    """A verified signer, and what checking the body still needs."""

    credential: Credential
    payload: str  # x-amz-content-sha256: a lower-case hex digest or one of the words above
    signing_key: bytes
    seed_signature: str
    scope: str  # date/region/s3/aws4_request
    timestamp: str  # as in the string to sign
    region: str
    presigned: bool = False

    @property
    def payload_sha256(self) -> str | None:
        """The hex digest the whole body must have, or None if none was promised."""
        return self.payload if _HEX_DIGEST.fullmatch(self.payload) else None

    @property
    def streaming(self) -> bool:
        """Whether the body is aws-chunked."""
        return self.payload in STREAMING

    def __repr__(self) -> str:  # the default one would print secrets into logs
        return f"Identity({self.credential.access_key}, {self.scope})"


class _Claim(Struct, frozen=True):
    """What the request says about its signature, not verified yet."""

    access_key: str
    date: str
    region: str
    signed_headers: list[str]
    signature: str
    timestamp: str
    payload: str
    presigned: bool

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/s3/aws4_request"


def authenticate(request: RequestParts, lookup: Lookup, now: datetime) -> Identity:
    """Whose request this is. `now` is timezone-aware. Any region is accepted: the scope
    names it. Raises S3Error: AccessDenied (anonymous, expired, headers not signed),
    InvalidAccessKeyId, SignatureDoesNotMatch, RequestTimeTooSkewed, InvalidRequest (other
    signature versions), AuthorizationHeaderMalformed, AuthorizationQueryParametersError."""
    headers = _collect(request.headers)
    pairs = _query_pairs(request.query_string)
    query = dict(pairs)
    presigned = "X-Amz-Algorithm" in query or "X-Amz-Signature" in query
    authorization = headers.get("authorization")
    if authorization is not None and presigned:
        raise invalid_argument(
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
            "parameter or the Authorization header should be specified",
            "Authorization",
            authorization.decode("latin-1"),
        )
    if presigned:
        claim = _claim_from_query(pairs, headers, now)
    elif authorization is not None:
        claim = _claim_from_header(authorization.decode("latin-1"), headers, now)
    elif "AWSAccessKeyId" in query and "Signature" in query:
        raise _unsupported_mechanism()
    else:
        raise S3Error("AccessDenied")
    if headers.get("x-amz-security-token") or query.get("X-Amz-Security-Token"):
        raise S3Error("InvalidToken")  # this store issues no session tokens
    _check_signed_headers(claim.signed_headers, headers)
    credential = lookup(claim.access_key)
    if credential is None:
        raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=claim.access_key)
    return _verify(request, claim, headers, pairs, credential)


# -- the two forms ---------------------------------------------------------------


def _claim_from_header(authorization: str, headers: dict[str, bytes], now: datetime) -> _Claim:
    mechanism, _, rest = authorization.strip().partition(" ")
    if mechanism == "AWS" or mechanism.startswith("AWS4-ECDSA"):
        raise _unsupported_mechanism()
    if mechanism != ALGORITHM:
        raise invalid_argument("Unsupported Authorization Type", "Authorization", authorization)
    fields: dict[str, str] = {}
    for piece in rest.split(","):
        name, equals, value = piece.strip().partition("=")
        if not equals or name in fields:
            raise _malformed("the header must be a list of Credential, SignedHeaders and Signature.")
        fields[name] = value
    for name in ("Credential", "SignedHeaders", "Signature"):
        if not fields.get(name):
            raise _malformed(f"the authorization header requires the {name} parameter.")
    access_key, date, region = _parse_credential(fields["Credential"], _malformed)
    timestamp, moment = _request_time(headers)
    if abs(now - moment) > SKEW_MAX:
        raise S3Error(
            "RequestTimeTooSkewed",
            RequestTime=timestamp,
            ServerTime=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            MaxAllowedSkewMilliseconds=str(int(SKEW_MAX.total_seconds() * 1000)),
        )
    if not timestamp.startswith(date):
        raise _malformed(f'Invalid credential date "{date}". This date is not the same as X-Amz-Date: "{timestamp}".')
    payload = headers.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    return _Claim(
        access_key=access_key,
        date=date,
        region=region,
        signed_headers=fields["SignedHeaders"].lower().split(";"),
        signature=fields["Signature"],
        timestamp=timestamp,
        payload=_check_payload(payload.decode("latin-1")),
        presigned=False,
    )


def _claim_from_query(pairs: list[tuple[str, str]], headers: dict[str, bytes], now: datetime) -> _Claim:
    query = dict(pairs)
    for name in _QUERY_NAMES:
        if not query.get(name):
            raise _bad_query(
                "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
                "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
            )
        if sum(1 for other, _ in pairs if other == name) > 1:
            raise _bad_query(f"{name} must be given once")
    if query["X-Amz-Algorithm"] != ALGORITHM:
        if query["X-Amz-Algorithm"].startswith("AWS4-ECDSA"):
            raise _unsupported_mechanism()
        raise _bad_query(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    access_key, date, region = _parse_credential(query["X-Amz-Credential"], _bad_query)
    timestamp = query["X-Amz-Date"]
    moment = _parse_timestamp(timestamp)
    if moment is None:
        raise _bad_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if not timestamp.startswith(date):
        raise _bad_query(f'Invalid credential date "{date}". This date is not the same as X-Amz-Date: "{timestamp}".')
    _check_expiry(query["X-Amz-Expires"], moment, now)
    header_payload = headers.get("x-amz-content-sha256")
    payload = query.get("X-Amz-Content-Sha256") or (header_payload.decode("latin-1") if header_payload else UNSIGNED)
    return _Claim(
        access_key=access_key,
        date=date,
        region=region,
        signed_headers=query["X-Amz-SignedHeaders"].lower().split(";"),
        signature=query["X-Amz-Signature"],
        timestamp=timestamp,
        payload=_check_payload(payload),
        presigned=True,
    )


def _check_expiry(text: str, moment: datetime, now: datetime) -> None:
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise _bad_query("X-Amz-Expires should be a number")
    seconds = int(text)
    if seconds < 0:
        raise _bad_query("X-Amz-Expires must be non-negative")
    if seconds > EXPIRES_SECONDS_MAX:
        raise _bad_query(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than "
            f"{EXPIRES_SECONDS_MAX} seconds"
        )
    if moment - now > SKEW_MAX:
        raise S3Error("AccessDenied", "Request is not valid yet")
    expires = moment + timedelta(seconds=seconds)
    if now > expires:
        shown = "%Y-%m-%dT%H:%M:%SZ"
        error = S3Error("AccessDenied", "Request has expired")
        error.extra["X-Amz-Expires"] = text
        error.extra["Expires"] = expires.strftime(shown)
        error.extra["ServerTime"] = now.astimezone(UTC).strftime(shown)
        raise error


def _parse_credential(text: str, error: Callable[[str], S3Error]) -> tuple[str, str, str]:
    """(access key, date, region) of access-key/date/region/s3/aws4_request."""
    pieces = text.rsplit("/", 4)
    if len(pieces) != 5 or not pieces[0] or not pieces[2] or not (text.isascii() and text.isprintable()):
        raise error(
            f'the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request", got "{text}".'
        )
    access_key, date, region, service, terminal = pieces
    if not re.fullmatch(r"\d{8}", date, re.ASCII):
        raise error(f'incorrect date format "{date}". This date in the credential must be in the format "yyyyMMdd".')
    if service != "s3":
        raise error(f'incorrect service "{service}". This endpoint belongs to "s3".')
    if terminal != "aws4_request":
        raise error(f'incorrect terminal "{terminal}". This endpoint uses "aws4_request".')
    return access_key, date, region


def _request_time(headers: dict[str, bytes]) -> tuple[str, datetime]:
    """(timestamp of the string to sign, moment) from x-amz-date, else Date."""
    text = headers.get("x-amz-date", headers.get("date", b"")).decode("latin-1")
    moment = _parse_timestamp(text)
    if moment is None and "x-amz-date" not in headers and text:
        try:
            moment = parsedate_to_datetime(text)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            moment = None
    if moment is None:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    return moment.strftime(_TIMESTAMP), moment


def _parse_timestamp(text: str) -> datetime | None:
    if not re.fullmatch(r"\d{8}T\d{6}Z", text, re.ASCII):
        return None
    try:  # strptime() costs more than the signature
        date = int(text[:4]), int(text[4:6]), int(text[6:8])
        return datetime(*date, int(text[9:11]), int(text[11:13]), int(text[13:15]), tzinfo=UTC)
    except ValueError:
        return None


def _check_payload(text: str) -> str:
    if text == UNSIGNED or text in STREAMING:
        return text
    if text.startswith("STREAMING-AWS4-ECDSA"):
        raise _unsupported_mechanism()
    if _HEX_DIGEST.fullmatch(text.lower()):
        return text.lower()
    raise invalid_argument(
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
        "x-amz-content-sha256",
        text,
    )


def _check_signed_headers(signed: list[str], headers: dict[str, bytes]) -> None:
    """Host and every x-amz-* header sent must be under the signature: otherwise a thief
    of a URL or a proxy could add, say, x-amz-copy-source."""
    for name in signed:
        if not _HEADER_NAME.fullmatch(name):
            raise S3Error("AccessDenied", "The list of signed headers is not valid", SignedHeader=name)
    named = set(signed)
    missing = [name for name in headers if (name == "host" or name.startswith("x-amz-")) and name not in named]
    if "host" not in named and "host" not in missing:
        missing.insert(0, "host")
    if missing:
        raise S3Error(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(missing),
        )


# -- canonical request and signature ---------------------------------------------


def _verify(
    request: RequestParts,
    claim: _Claim,
    headers: dict[str, bytes],
    pairs: list[tuple[str, str]],
    credential: Credential,
) -> Identity:
    key = _signing_key(credential.secret_key, claim.date, claim.region)
    query = _canonical_query(pairs)
    # Over-long header values are as wide as the client sent them; the payload word must be
    # what the client wrote, which may be upper-case hex.
    payload = headers.get("x-amz-content-sha256", claim.payload.encode()) if not claim.presigned else None
    payload_line = payload if payload is not None else _presigned_payload(claim, headers, pairs)
    string = canonical = b""
    for path in _canonical_paths(request.raw_path):
        canonical = b"\n".join(
            (
                request.method.encode(),
                path,
                query,
                *(name.encode("latin-1") + b":" + headers.get(name, b"") for name in claim.signed_headers),
                b"",
                ";".join(claim.signed_headers).encode("latin-1"),
                payload_line,
            )
        )
        string = string_to_sign(claim.timestamp, claim.scope, canonical)
        signature = hmac.new(key, string, hashlib.sha256).hexdigest()
        if hmac.compare_digest(signature.encode(), claim.signature.encode("utf-8", "surrogatepass")):
            return Identity(
                credential=credential,
                payload=claim.payload,
                signing_key=key,
                seed_signature=signature,
                scope=claim.scope,
                timestamp=claim.timestamp,
                region=claim.region,
                presigned=claim.presigned,
            )
    raise S3Error(
        "SignatureDoesNotMatch",
        AWSAccessKeyId=claim.access_key,
        StringToSign=string.decode("utf-8", "replace"),
        SignatureProvided=claim.signature,
        CanonicalRequest=canonical.decode("utf-8", "replace"),
    )


def _presigned_payload(claim: _Claim, headers: dict[str, bytes], pairs: list[tuple[str, str]]) -> bytes:
    """The last line of a presigned canonical request: what the client said, else UNSIGNED."""
    said = dict(pairs).get("X-Amz-Content-Sha256")
    return said.encode() if said else headers.get("x-amz-content-sha256", UNSIGNED.encode())


def string_to_sign(timestamp: str, scope: str, canonical_request: bytes) -> bytes:
    digest = hashlib.sha256(canonical_request).hexdigest()
    return f"{ALGORITHM}\n{timestamp}\n{scope}\n{digest}".encode()


def signing_key(secret_key: str, date: str, region: str) -> bytes:
    key = b"AWS4" + secret_key.encode()
    for step in (date, region, "s3", "aws4_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return key


_signing_key = lru_cache(maxsize=1024)(signing_key)


def _collect(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """Lower-case name → value trimmed and folded; values of repeated names are joined by
    commas in the order sent, as the canonical request wants them."""
    collected: dict[str, bytes] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        value = _FOLD.sub(b" ", raw_value.strip())
        collected[name] = collected[name] + b"," + value if name in collected else value
    return collected


def _query_pairs(query_string: bytes) -> list[tuple[str, str]]:
    """Decoded names and values. Bytes that are not UTF-8 survive as surrogates."""
    pairs = []
    for piece in query_string.replace(b"+", b"%20").split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            pairs.append((_text(name), _text(value)))
    return pairs


def _text(encoded: bytes) -> str:
    return unquote_to_bytes(encoded).decode("utf-8", "surrogateescape")


def _canonical_query(pairs: list[tuple[str, str]]) -> bytes:
    encoded = sorted(
        (
            quote(name.encode("utf-8", "surrogateescape"), safe=""),
            quote(value.encode("utf-8", "surrogateescape"), safe=""),
        )
        for name, value in pairs
        if name != "X-Amz-Signature"
    )
    return "&".join(f"{name}={value}" for name, value in encoded).encode()


def _canonical_paths(raw_path: bytes) -> list[bytes]:
    """The forms a client may have signed: S3's (decoded, encoded once, no dot segments
    removed), then with an encoded slash kept, then the path as sent. All name the same
    object, and mostly they are one and the same."""
    forms = [
        quote(unquote_to_bytes(raw_path), safe="/").encode(),
        b"/".join(quote(unquote_to_bytes(piece), safe="").encode() for piece in raw_path.split(b"/")),
        raw_path,
    ]
    return list(dict.fromkeys(form or b"/" for form in forms))


# -- errors ------------------------------------------------------------------------


def _malformed(detail: str) -> S3Error:
    return S3Error("AuthorizationHeaderMalformed", f"The authorization header is malformed; {detail}")


def _bad_query(detail: str) -> S3Error:
    return S3Error("AuthorizationQueryParametersError", detail)


def _unsupported_mechanism() -> S3Error:
    return S3Error(
        "InvalidRequest",
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )
