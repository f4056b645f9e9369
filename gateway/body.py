"""A request's body: received, decoded, digested, handed to a sink, and verified.

    receive → aws-chunked decoding → digests (large blocks in a thread) → sink

Memory is bounded: a block of BLOCK_BYTES and what the server holds back. The sink's
back-pressure reaches the client, because nothing is received meanwhile. Everything the
client declared about the body is verified before take() returns, so that a caller
commits only what was meant. One task per body.

Source: S3 API Reference, "Checking object integrity"; SigV4 streaming pages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import anyio.to_thread
from msgspec import Struct

from engine import limits
from engine.types import Checksum
from gateway.awschunked import AwsChunkedDecoder
from gateway.checksums import BodyDigests, ExpectedDigests, parse_expected
from gateway.errors import S3Error
from gateway.request import Request

BLOCK_BYTES = 1024 * 1024  # handed to digests and sink at once
IN_THREAD_BYTES_MIN = 256 * 1024  # below this a thread hop costs more than the hashing

Sink = Callable[[bytes], Awaitable[None]]


class ClientGone(Exception):
    """The client closed the connection inside its request; nobody is left to answer."""


class ReceivedBody(Struct, frozen=True):
    size: int
    md5: bytes
    checksum: Checksum | None  # of the algorithm the client chose, if any


def declared_length(request: Request) -> int:
    """Payload bytes the client announced. Raises MissingContentLength, InvalidArgument."""
    assert request.identity is not None
    name = "x-amz-decoded-content-length" if request.identity.streaming else "content-length"
    text = request.headers.get(name)
    if text is None:
        raise S3Error("MissingContentLength")
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise S3Error("InvalidArgument", ArgumentName=name, ArgumentValue=text)
    return int(text)


async def take(
    request: Request,
    sink: Sink,
    *,
    bytes_max: int = limits.PUT_BYTES_MAX,
    algorithm: str | None = None,
    expected: ExpectedDigests | None = None,
) -> ReceivedBody:
    """The whole body into `sink`, verified. `algorithm` is computed when the client names
    none; `expected` stands for the request's own headers. Raises
    S3Error (IncompleteBody, BadDigest, XAmzContentSHA256Mismatch, EntityTooLarge …),
    ClientGone, and what the sink raises."""
    identity = request.identity
    assert identity is not None
    length = declared_length(request)
    if length > bytes_max:
        raise S3Error("EntityTooLarge", ProposedSize=str(length), MaxSizeAllowed=str(bytes_max))
    if expected is None:
        expected = parse_expected(request.headers)
    chosen = expected.algorithm or algorithm
    digests = BodyDigests(md5=True, sha256=identity.payload_sha256 is not None, algorithms=[chosen] if chosen else [])
    decoder = _decoder(request, length, expected.trailer_names) if identity.streaming else None
    size = 0
    async for block in _blocks(_payload(request, decoder)):
        size += len(block)
        if size > length:
            raise S3Error("InvalidRequest", f"The body is longer than the {length} bytes declared.")
        if len(block) >= IN_THREAD_BYTES_MIN:
            await _digest_and_sink(digests, block, sink)
        else:
            digests.update(block)
            await sink(block)
    if size < length:
        raise S3Error("IncompleteBody")
    trailers = decoder.trailers if decoder is not None else None
    expected.verify(digests, trailers=trailers, payload_sha256=identity.payload_sha256)
    return ReceivedBody(size, digests.md5(), digests.checksum(chosen) if chosen else None)


async def take_document(request: Request, *, bytes_max: int, expected: ExpectedDigests | None = None) -> bytes:
    """A small body (XML) in memory, verified. Without Content-Length it is empty. Raises
    as take(), and MalformedXML when it is larger than `bytes_max`."""
    assert request.identity is not None
    if "content-length" not in request.headers and "x-amz-decoded-content-length" not in request.headers:
        if "transfer-encoding" in request.headers:
            raise S3Error("MissingContentLength")
        return b""
    pieces: list[bytes] = []

    async def keep(block: bytes) -> None:
        pieces.append(block)

    if declared_length(request) > bytes_max:
        raise S3Error("MalformedXML", f"The document is larger than {bytes_max} bytes.")
    await take(request, keep, bytes_max=bytes_max, expected=expected)
    return b"".join(pieces)


def _decoder(request: Request, length: int, trailer_names: Sequence[str]) -> AwsChunkedDecoder:
    assert request.identity is not None
    return AwsChunkedDecoder(request.identity, decoded_length=length, trailer_names=trailer_names)


async def _payload(request: Request, decoder: AwsChunkedDecoder | None) -> AsyncIterator[bytes | memoryview]:
    async for data in _received(request):
        if decoder is None:
            yield data
        else:
            if len(data) >= IN_THREAD_BYTES_MIN:
                pieces = await anyio.to_thread.run_sync(decoder.feed, data)
            else:
                pieces = decoder.feed(data)
            for piece in pieces:
                yield piece
    if decoder is not None:
        decoder.finish()


async def _received(request: Request) -> AsyncIterator[bytes]:
    while not request.body_received:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        request.body_received = not message.get("more_body", False)
        data = message.get("body", b"")
        request.bytes_received += len(data)
        if data:
            yield data


async def _blocks(payload: AsyncIterator[bytes | memoryview]) -> AsyncIterator[bytes]:
    """Pieces gathered to about BLOCK_BYTES, so that threads and the store work on few
    large blocks however small the server's reads and the client's chunks are."""
    waiting: list[bytes | memoryview] = []
    waiting_bytes = 0
    async for piece in payload:
        waiting.append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= BLOCK_BYTES:
            yield _join(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield _join(waiting)


def _join(pieces: Sequence[bytes | memoryview]) -> bytes:
    if len(pieces) == 1 and isinstance(pieces[0], bytes):
        return pieces[0]
    return b"".join(pieces)


async def _digest_and_sink(digests: BodyDigests, block: bytes, sink: Sink) -> None:
    """Both at once: hashing holds no lock, and the store works in threads of its own."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, digests.update, block)
        try:
            await sink(block)
        except Exception as error:  # noqa: BLE001 - raised again below, outside the group
            failure = error
    if failure is not None:
        raise failure
