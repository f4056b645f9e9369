"""One HTTP request as the operations see it: bucket, key, parameters, headers, signer.

Made once per request from the ASGI scope; knows HTTP and names, not the store. The raw
path, query and headers are kept as they came, because the signature covers them.
"""

from __future__ import annotations

import ipaddress
import random
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import quote

from engine.changes import Door, Origin
from gateway import names
from gateway.errors import S3Error, invalid_argument
from gateway.sigv4 import Identity, RequestParts

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Headers that may come twice and are then one list; any other duplicate is refused where
# it would matter, since front ends disagree on which one counts.
_SINGLE = frozenset({"host", "content-length", "authorization", "x-amz-date", "x-amz-content-sha256", "content-md5"})
# Ids must be unique, not secret: seeded once, they cost no system call each.
_ids = random.Random(secrets.randbits(256))
HOST_ID = secrets.token_urlsafe(24)  # x-amz-id-2: which process answered


class Request:
    """`bucket` is None at the service level; `key` is None (or "") at the bucket level."""

    __slots__ = (
        "body_received",
        "bucket",
        "bytes_received",
        "header_pairs",
        "headers",
        "identity",
        "key",
        "method",
        "query",
        "query_string",
        "raw_path",
        "receive",
        "request_id",
        "source_ip",
    )

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        raw_path = scope.get("raw_path")
        self.raw_path: bytes = quote(scope["path"]).encode() if raw_path is None else bytes(raw_path)
        self.query_string: bytes = scope.get("query_string", b"")
        self.header_pairs: Sequence[tuple[bytes, bytes]] = [(bytes(n).lower(), bytes(v)) for n, v in scope["headers"]]
        self.receive = receive
        client = scope.get("client")
        self.source_ip: str | None = client[0] if client else None
        self.request_id = f"{_ids.getrandbits(64):016X}"
        self.headers: dict[str, str] = {}
        self.query: dict[str, str] = {}
        self.bucket: str | None = None
        self.key: str | None = None
        self.identity: Identity | None = None
        self.body_received = False
        self.bytes_received = 0

    def parse(self, host_style_domains: Sequence[str]) -> None:
        """Fill headers, query, bucket and key. Raises InvalidURI, InvalidArgument, BadRequest."""
        self.headers = _headers(self.header_pairs)
        self.bucket, self.key = self._names(host_style_domains)
        for name, value in names.decode_query(self.query_string):
            if name in self.query:
                raise invalid_argument(f"The query parameter {name} is given twice.", name, value)
            self.query[name] = value

    def _names(self, host_style_domains: Sequence[str]) -> tuple[str | None, str | None]:
        path = self.raw_path
        if not path.startswith(b"/"):
            raise S3Error("InvalidURI")
        bucket = _bucket_of_host(self.headers.get("host", ""), host_style_domains)
        if bucket is not None:
            return bucket, names.decode_key(path[1:]) or None
        raw_bucket, slash, raw_key = path[1:].partition(b"/")
        if not raw_bucket:
            if slash:
                raise S3Error("InvalidURI")
            return None, None
        return names.decode_key(raw_bucket), names.decode_key(raw_key) or None

    @property
    def parts(self) -> RequestParts:
        return RequestParts(self.method, self.raw_path, self.query_string, self.header_pairs)

    @property
    def requester(self) -> str:
        return self.identity.credential.name if self.identity else "-"

    @property
    def origin(self) -> Origin:
        return Origin(self.requester, self.request_id, self.source_ip, Door.S3)

    @property
    def at_bucket(self) -> str:
        assert self.bucket is not None, "routed to an operation on a bucket"
        return self.bucket

    @property
    def at_key(self) -> str:
        assert self.key is not None, "routed to an operation on an object"
        return self.key

    @property
    def resource(self) -> str:
        """As S3 shows it in an error's Resource."""
        if self.bucket is None:
            return "/"
        return f"/{self.bucket}/{self.key or ''}".rstrip("/") if not self.key else f"/{self.bucket}/{self.key}"

    def number(self, name: str, default: int, *, minimum: int = 0, maximum: int) -> int:
        """An integer query parameter, cut to `maximum`. Raises InvalidArgument."""
        text = self.query.get(name)
        if text is None or text == "":
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and minimum <= int(text) <= 2**31 - 1):
            raise invalid_argument(f"Argument {name} must be an integer between {minimum} and 2147483647", name, text)
        return min(int(text), maximum)

    def encodes_url(self) -> bool:
        """encoding-type=url. Raises InvalidArgument for another one."""
        encoding = self.query.get("encoding-type", "")
        if encoding not in ("", "url"):
            raise invalid_argument("Invalid Encoding Method specified in Request", "encoding-type", encoding)
        return encoding == "url"


def _headers(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name = raw_name.decode("latin-1")
        try:
            value = raw_value.decode("utf-8").strip()
        except UnicodeDecodeError:
            value = raw_value.decode("latin-1").strip()
        if name in headers:
            if name in _SINGLE:
                raise S3Error("BadRequest", f"The header {name} is given twice.")
            value = f"{headers[name]},{value}"
        headers[name] = value
    return headers


def _bucket_of_host(host: str, domains: Sequence[str]) -> str | None:
    """The bucket of a virtual-host style request, or None for path style."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.lower().rstrip(".")
    for domain in domains:
        if name.endswith("." + domain) and not _is_address(name):
            return name[: -len(domain) - 1]
    return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
