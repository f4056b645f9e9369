"""Messages on the index socket: length-prefixed msgpack, pipelined.

A frame is a little-endian u32 length and one message. The client numbers its calls; the
server answers each with a Reply of that number, in any order, and pushes FeedPush for
subscriptions. Anything oversized or undecodable ends the connection. Pure but for the
two stream helpers at the end.
"""

from __future__ import annotations

import struct

import msgspec
from anyio.abc import ByteReceiveStream
from msgspec import Struct

from engine import limits
from engine.changes import Change, CommitResult, Origin
from engine.errors import BY_NAME, StoreError
from engine.interfaces import FeedBatch

PROTOCOL = 1
_LENGTH = struct.Struct("<I")
MESSAGE_BYTES_MAX = 2 * limits.COMMIT_BYTES_MAX  # a feed batch may be larger than a commit


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """The client's first message."""

    owner: str  # the name its segments carry
    protocol: int = PROTOCOL


class CommitCall(Struct, frozen=True, array_like=True, tag="commit"):
    call: int
    change: Change
    origin: Origin
    durable: bool


class DurableCall(Struct, frozen=True, array_like=True, tag="durable"):
    call: int
    lsn: int


class SubscribeCall(Struct, frozen=True, array_like=True, tag="subscribe"):
    call: int
    subscriber_id: str
    confirms: bool
    from_lsn: int | None


class ConfirmCall(Struct, frozen=True, array_like=True, tag="confirm"):
    """Confirms the oldest unconfirmed batch of a subscription; has no reply."""

    subscription: int


class UnsubscribeCall(Struct, frozen=True, array_like=True, tag="unsubscribe"):
    """Ends a subscription; has no reply."""

    subscription: int


class AskCall(Struct, frozen=True, array_like=True, tag="ask"):
    """A question without arguments: `recount`, `journal_under_redundancy`, `heal_journal`, `request_seal`."""

    call: int
    question: str


ClientMessage = Hello | CommitCall | DurableCall | SubscribeCall | ConfirmCall | UnsubscribeCall | AskCall


class Reply(Struct, frozen=True, array_like=True, tag="reply"):
    call: int
    result: CommitResult | None = None
    error: str | None = None  # class name in engine.errors
    message: str = ""
    count: int | None = None
    lines: list[str] = []


class FeedPush(Struct, frozen=True, array_like=True, tag="feed"):
    subscription: int  # the number of the SubscribeCall
    batch: FeedBatch


ServerMessage = Reply | FeedPush

client_decoder = msgspec.msgpack.Decoder(ClientMessage)
server_decoder = msgspec.msgpack.Decoder(ServerMessage)
_encoder = msgspec.msgpack.Encoder()


class BadMessage(StoreError):
    """The peer sent what no peer of ours sends."""


def encode(message: ClientMessage | ServerMessage) -> bytes:
    payload = _encoder.encode(message)
    if len(payload) > MESSAGE_BYTES_MAX:
        raise StoreError(f"a message of {len(payload)} bytes is over the index socket's limit")
    return _LENGTH.pack(len(payload)) + payload


def error_reply(call: int, error: StoreError) -> Reply:
    return Reply(call, error=type(error).__name__, message=str(error))


def raise_error(reply: Reply) -> None:
    """Raise what the reply reports, if it reports an error."""
    if reply.error is not None:
        raise BY_NAME.get(reply.error, StoreError)(reply.message)


class FrameReader:
    """Cuts a byte stream into messages. One per connection."""

    def __init__(self, stream: ByteReceiveStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def read(self) -> bytes:
        """The next message's payload. Raises anyio.EndOfStream, BadMessage."""
        await self._fill(_LENGTH.size)
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MESSAGE_BYTES_MAX:
            raise BadMessage(f"a message of {length} bytes on the index socket")
        await self._fill(_LENGTH.size + length)
        payload = bytes(memoryview(self._buffer)[_LENGTH.size : _LENGTH.size + length])
        del self._buffer[: _LENGTH.size + length]
        return payload

    async def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            self._buffer += await self._stream.receive(max(65536, size - len(self._buffer)))
