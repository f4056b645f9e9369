"""Gateway: the S3 door as a plain ASGI application.

A request's way: parse → freshen → authenticate → route → refuse what is not supported →
access → operation → response; errors become S3's answers at one place. Runs under trio
and asyncio alike; one Gateway serves any number of concurrent requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import anyio
from msgspec import Struct

from engine.errors import StoreError
from engine.secrets import Credential
from engine.types import Access
from gateway.body import ClientGone
from gateway.errors import S3Error, error_body, from_store_error
from gateway.metrics import Metrics
from gateway.operations.common import Context, refuse_unsupported
from gateway.operations.table import HANDLERS
from gateway.request import HOST_ID, Receive, Request, Scope, Send
from gateway.requestlog import RequestLog
from gateway.responses import XML_TYPE, Response, send_response
from gateway.routing import route
from gateway.service import PREFIX, service_app
from gateway.sigv4 import authenticate

if TYPE_CHECKING:
    from engine.store import Store

# An error answered before the body was read: so much of it is taken and dropped, so that
# a client that writes first and reads later sees the answer; then the connection closes.
_DRAIN_BYTES_MAX = 8 * 1024 * 1024
_DRAIN_SECONDS_MAX = 5.0

logger = logging.getLogger("objfs.gateway")
_request_log = RequestLog()


class Users(Protocol):
    def lookup(self, access_key: str) -> Credential | None: ...


class _Outcome(Struct):
    """What the request log and the metrics tell of one request."""

    operation: str = "-"
    status: int = 0
    code: str = "-"
    bytes_sent: int = 0


class Gateway:
    """`host_style_domains`: names under which `bucket.NAME` is virtual-host style. `log`
    takes one line per request."""

    def __init__(
        self,
        store: Store,
        *,
        users: Users,
        host_style_domains: Sequence[str] = ("localhost",),
        log: Callable[[str], None] = _request_log,
    ) -> None:
        self._store = store
        self._users = users
        self._domains = [domain.lower().strip(".") for domain in host_style_domains]
        self._log = log
        self._context = Context(store)
        self._metrics = Metrics()
        self._service = service_app(store, self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            request = Request(scope, receive)
            if request.raw_path.startswith(PREFIX):
                await self._service(scope, receive, send)
            else:
                await self._serve(request, send)
        else:
            raise ValueError(f"this door speaks HTTP, not {scope['type']}")

    async def _serve(self, request: Request, send: Send) -> None:
        started = time.monotonic()
        outcome = _Outcome()
        try:
            with self._store.pins.hold():  # until the last byte went out: see engine.pins
                await self._answer(request, send, outcome)
        except ClientGone:
            outcome.code = "ClientGone"
        except BaseException as error:
            outcome.code = type(error).__name__
            raise  # the server drops the connection
        finally:
            seconds = time.monotonic() - started
            if outcome.operation == "-":  # refused before it was known what was asked for
                self._metrics.started(outcome.operation)
            self._metrics.finished(
                outcome.operation,
                outcome.status,
                seconds,
                bytes_in=request.bytes_received,
                bytes_out=outcome.bytes_sent,
            )
            self._log(_line(request, outcome, seconds))

    async def _answer(self, request: Request, send: Send, outcome: _Outcome) -> None:
        try:
            response = await self._operate(request, outcome)
        except (S3Error, StoreError) as error:
            response = await self._error_response(request, error, outcome)
        except ClientGone:
            raise
        except Exception:
            logger.exception("request %s failed", request.request_id)
            response = await self._error_response(request, S3Error("InternalError"), outcome)
        response.headers["x-amz-request-id"] = request.request_id
        response.headers["x-amz-id-2"] = HOST_ID
        if not request.body_received and request.method in ("PUT", "POST"):
            response.close = not await _drain(request)
        elif _continue_not_sent(request):
            response.close = True
        outcome.status = response.status
        outcome.bytes_sent = await send_response(
            response, head=request.method == "HEAD", receive=request.receive, send=send
        )

    async def _operate(self, request: Request, outcome: _Outcome) -> Response:
        request.parse(self._domains)
        if request.method == "POST" and request.headers.get("content-type", "").startswith("multipart/form-data"):
            # A form signs itself in its fields; what cannot be read cannot be authenticated.
            raise S3Error("NotImplemented", "PostObject (browser uploads by form) is not implemented.")
        await self._store.freshen()
        request.identity = authenticate(request.parts, self._users.lookup, datetime.now(UTC))
        operation = route(
            request.method,
            request.bucket,
            request.key,
            request.query,
            copies="x-amz-copy-source" in request.headers,
        )
        outcome.operation = operation.name
        self._metrics.started(operation.name)
        if operation.writes and request.identity.credential.access is not Access.FULL:
            raise S3Error("AccessDenied")
        refuse_unsupported(request)
        return await HANDLERS[operation.name](self._context, request)

    async def _error_response(self, request: Request, error: S3Error | StoreError, outcome: _Outcome) -> Response:
        if isinstance(error, StoreError):
            failure = from_store_error(
                error,
                bucket=request.bucket,
                key=request.key,
                version_id=request.query.get("versionId"),
                upload_id=request.query.get("uploadId"),
            )
            if failure.status >= 500:
                logger.error("request %s: %s: %s", request.request_id, type(error).__name__, error)
        else:
            failure = error
        if request.identity is not None and failure.status < 500:
            # "It is not there" is an answer about the store too: it must not be taken back.
            try:
                await self._store.index.wait_durable(self._store.keymap.applied_lsn())
            except StoreError as unavailable:
                failure = from_store_error(unavailable)
        outcome.code = failure.code
        headers = dict(failure.headers)
        if failure.status == 304:
            return Response(304, headers)
        headers["Content-Type"] = XML_TYPE
        body = error_body(failure, resource=request.resource, request_id=request.request_id, host_id=HOST_ID)
        if request.method == "HEAD":
            return Response(failure.status, headers, length=0)
        return Response(failure.status, headers, body)


def _continue_not_sent(request: Request) -> bool:
    """Whether a client waits for `100 Continue` on a body of no bytes. granian sends none
    then, and botocore (1.43) misreads the connection's next answer after a final answer
    without one, unless the connection is closed in between."""
    return request.headers.get("expect", "").lower() == "100-continue" and (
        request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    )


async def _drain(request: Request) -> bool:
    """Whether the rest of the body came, and was dropped."""
    if request.headers.get("expect", "").lower() == "100-continue":
        return False  # never asked for: the client sees the answer and sends nothing
    with anyio.move_on_after(_DRAIN_SECONDS_MAX):
        taken = 0
        while taken < _DRAIN_BYTES_MAX:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                return False
            taken += len(message.get("body", b""))
            if not message.get("more_body", False):
                request.body_received = True
                return True
    return False


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _line(request: Request, outcome: _Outcome, seconds: float) -> str:
    """One line per request; names are percent-encoded, so that no key can forge a line.
    The query is left out: presigned URLs carry their signature in it."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    name = quote(f"{request.bucket or '-'}/{request.key or ''}", safe="/-_.~", errors="surrogatepass")
    requester = quote(request.requester, safe="-_.~")
    return (
        f"{moment} {requester} {request.source_ip or '-'} {outcome.operation} {name} {outcome.status} {outcome.code} "
        f"{request.bytes_received} {outcome.bytes_sent} {seconds * 1000:.1f}ms {request.request_id}"
    )
