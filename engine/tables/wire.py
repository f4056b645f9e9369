"""Messages on the tables socket: a length (u32, little-endian) and msgpack.

One question per connection at a time. The answer to a query is an Answer, then the
result as an Arrow IPC stream cut into raw pieces of their own length, an empty one last.
Imports neither DuckDB nor Arrow.
"""

from __future__ import annotations

import struct

import msgspec
from msgspec import Struct

SOCKET_NAME = "tables.sock"
PROTOCOL = 1
QUESTION_BYTES_MAX = 1024 * 1024
PIECE_BYTES = 1024 * 1024

_LENGTH = struct.Struct("<I")


class Question(Struct, frozen=True, array_like=True):
    """A SELECT, or with `sql` None: how far are the tables?"""

    sql: str | None = None
    protocol: int = PROTOCOL


class Answer(Struct, frozen=True, array_like=True):
    applied_lsn: int = 0
    error: str | None = None  # class name in engine.errors
    message: str = ""


question_decoder = msgspec.msgpack.Decoder(Question)
answer_decoder = msgspec.msgpack.Decoder(Answer)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Question | Answer) -> bytes:
    return framed(_encoder.encode(message))


def framed(payload: bytes | memoryview) -> bytes:
    return _LENGTH.pack(len(payload)) + payload
