"""What an operation answers, and how it goes out over ASGI.

An operation returns a Response and never touches the wire. A body is bytes or a stream
of pieces with its length known ahead. Knows ASGI, not the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import cast

import anyio
from msgspec import Struct

from gateway import names
from gateway.request import Receive, Send

XML_TYPE = "application/xml"
# Streams below this are sent without watching for a client that went away.
_WATCHED_BYTES_MIN = 2 * 1024 * 1024


class Response(Struct):
    """`headers` are without Content-Length. `length` is that of a streamed body, or what a
    HEAD announces."""

    status: int = 200
    headers: dict[str, str] = {}
    body: bytes | AsyncIterator[memoryview] = b""
    length: int | None = None
    close: bool = False


def xml_response(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(status, {**(headers or {}), "Content-Type": XML_TYPE}, body)


def no_content(headers: dict[str, str] | None = None) -> Response:
    return Response(204, headers or {})


def header_value(value: str) -> bytes:
    """ASCII as it is; other text as S3 sends user metadata back."""
    return names.encode_metadata_value(value)


async def send_response(response: Response, *, head: bool, receive: Receive, send: Send) -> int:
    """Send it; returns the body bytes sent. Raises what the stream raises once the headers
    are out: the server then drops the connection, so that a cut body is never taken for
    a whole one."""
    body = response.body
    length = response.length if response.length is not None else len(cast(bytes, body))
    headers = [(name.lower().encode("latin-1"), header_value(value)) for name, value in response.headers.items()]
    if response.status not in (204, 304):
        headers.append((b"content-length", str(length).encode()))
    if response.close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if head or response.status in (204, 304):
        await send({"type": "http.response.body", "body": b""})
        return 0
    if isinstance(body, bytes):
        await send({"type": "http.response.body", "body": body})
        return len(body)
    if length < _WATCHED_BYTES_MIN:
        return await _send_stream(body, length, send)
    return await _send_watched(body, length, receive, send)


async def _send_stream(body: AsyncIterator[memoryview], length: int, send: Send) -> int:
    sent = 0
    async with aclosing(body) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            sent += len(piece)
            await send({"type": "http.response.body", "body": bytes(piece), "more_body": sent < length})
    if sent != length:
        raise RuntimeError(f"a body of {length} bytes was announced, {sent} were read")
    return sent


async def _send_watched(body: AsyncIterator[memoryview], length: int, receive: Receive, send: Send) -> int:
    """As above, but stops reading the store once the client is gone: not every server
    tells a sender."""
    sent = 0
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            sent = await _send_stream(body, length, send)
        except Exception as error:  # noqa: BLE001 - raised again below, outside the group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return sent
