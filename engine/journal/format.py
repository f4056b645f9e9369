"""Bytes of the journal: file header, record frames, epoch files. Pure functions.

Knows nothing of nodes or files. A record is a fixed header, a payload (msgpack of
changes.Record) and an attachment area. Frames that ride in a commit are moved into the
attachment area, so that one frame can be read with one pread from any replica; in the
payload each `NewChunk.frame` is then a marker of 8 bytes (offset and length in the
area). Everywhere else a detached record is used *located*: `NewChunk.frame` holds the
msgpack of the frame's JournalLocation (see `frame_location`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import msgspec
import xxhash
from msgspec import Struct

from engine.changes import Change, CompleteUpload, MoveChunks, PutPart, PutVersion, Record
from engine.errors import JournalCorrupt, UnknownFormat, WrongStore
from engine.limits import JOURNAL_FILE_BYTES_MAX
from engine.types import JournalLocation, NewChunk

FORMAT_VERSION = 1
FILE_MAGIC = b"OBJFSJRN"
RECORD_MAGIC = b"OJRC"
EPOCH_MAGIC = b"OBJFSEPO"

_FILE_HEADER = struct.Struct("<8sHHIQ36sI")  # magic, version, reserved, epoch, first LSN, store id, CRC-32
_RECORD_HEADER = struct.Struct("<4sHHIIQIQI")  # magic, version, flags, payload, attachments, LSN, epoch, XXH3, CRC-32
_EPOCH_HEADER = struct.Struct("<8sHHII")  # magic, version, reserved, length, CRC-32 of the body
_MARKER = struct.Struct("<II")

FILE_HEADER_BYTES = _FILE_HEADER.size
RECORD_HEADER_BYTES = _RECORD_HEADER.size

_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(Record)
_location_decoder = msgspec.msgpack.Decoder(JournalLocation)


class Epoch(Struct, frozen=True):
    """A stretch of the journal with a fixed set of replicas.

    `node_ids` hold its files; `known_to` are all nodes that were healthy when it began
    and were given the epoch file. Its records overrule older epochs' from `first_lsn`."""

    number: int
    first_lsn: int
    node_ids: list[str]
    known_to: list[str]
    store_id: str


class FileHeader(Struct, frozen=True):
    epoch: int
    first_lsn: int
    store_id: str


class RecordHeader(Struct, frozen=True):
    payload_length: int
    attachment_length: int
    lsn: int
    epoch: int
    checksum: int

    @property
    def total_length(self) -> int:
        return RECORD_HEADER_BYTES + self.payload_length + self.attachment_length


# -- names ---------------------------------------------------------------------


def journal_name(epoch: int, first_lsn: int) -> str:
    return f"journal/{epoch:08x}-{first_lsn:016x}.journal"


def epoch_name(number: int) -> str:
    return f"journal/{number:08x}.epoch"


def parse_journal_name(name: str) -> tuple[int, int] | None:
    """(epoch, first LSN) of a journal file's name, None for any other name."""
    stem = name.removeprefix("journal/")
    if not stem.endswith(".journal"):
        return None
    epoch, separator, first_lsn = stem.removesuffix(".journal").partition("-")
    if not separator or len(epoch) != 8 or len(first_lsn) != 16:
        return None
    try:
        return int(epoch, 16), int(first_lsn, 16)
    except ValueError:
        return None


# -- file header ---------------------------------------------------------------


def encode_file_header(epoch: int, first_lsn: int, store_id: str) -> bytes:
    identity = store_id.encode("ascii")
    assert len(identity) <= 36, "a store id is a UUID"
    head = _FILE_HEADER.pack(FILE_MAGIC, FORMAT_VERSION, 0, epoch, first_lsn, identity, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head))


def decode_file_header(content: bytes) -> FileHeader:
    """JournalCorrupt when damaged; UnknownFormat for a version this release does not know."""
    if len(content) < FILE_HEADER_BYTES:
        raise JournalCorrupt("journal file header is short")
    magic, version, _, epoch, first_lsn, identity, crc = _FILE_HEADER.unpack_from(content)
    if magic != FILE_MAGIC or zlib.crc32(content[: FILE_HEADER_BYTES - 4]) != crc:
        raise JournalCorrupt("journal file header is damaged")
    if version != FORMAT_VERSION:
        raise UnknownFormat(f"journal format {version} is not known to this release (knows {FORMAT_VERSION})")
    return FileHeader(epoch, first_lsn, identity.rstrip(b"\0").decode("ascii"))


# -- records -------------------------------------------------------------------


def encode_record(record: Record, attachments: Sequence[bytes]) -> list[bytes]:
    """Header, payload and attachments of a *detached* record, as buffers to write in order."""
    payload = _encoder.encode(record)
    digest = xxhash.xxh3_64(payload)
    attachment_length = 0
    for frame in attachments:
        digest.update(frame)
        attachment_length += len(frame)
    head = _RECORD_HEADER.pack(
        RECORD_MAGIC,
        FORMAT_VERSION,
        0,
        len(payload),
        attachment_length,
        record.lsn,
        record.epoch,
        digest.intdigest(),
        0,
    )[:-4]
    return [head + struct.pack("<I", zlib.crc32(head)), payload, *attachments]


def decode_record_header(content: bytes) -> RecordHeader | None:
    """None when these are not the bytes of a whole header (a torn or missing record)."""
    if len(content) < RECORD_HEADER_BYTES:
        return None
    magic, version, _, payload, attachments, lsn, epoch, checksum, crc = _RECORD_HEADER.unpack_from(content)
    if magic != RECORD_MAGIC or zlib.crc32(content[: RECORD_HEADER_BYTES - 4]) != crc:
        return None
    if version != FORMAT_VERSION:
        raise UnknownFormat(f"journal record format {version} is not known to this release (knows {FORMAT_VERSION})")
    if payload + attachments > JOURNAL_FILE_BYTES_MAX:
        return None
    return RecordHeader(payload, attachments, lsn, epoch, checksum)


def record_is_whole(header: RecordHeader, body: bytes) -> bool:
    """Whether `body` (payload and attachments) is what the header promises."""
    if len(body) != header.payload_length + header.attachment_length:
        return False
    return bool(xxhash.xxh3_64_intdigest(body) == header.checksum)


def decode_record(header: RecordHeader, body: bytes) -> Record:
    """The detached record of a whole body."""
    try:
        return _record_decoder.decode(memoryview(body)[: header.payload_length])
    except msgspec.MsgspecError as error:
        raise JournalCorrupt(f"record {header.lsn}: {error}") from error


# -- frames in records ---------------------------------------------------------


def new_chunks(change: Change) -> list[NewChunk]:
    """The chunks a change brings along."""
    if isinstance(change, PutVersion | PutPart | CompleteUpload):
        return change.content.new_chunks
    if isinstance(change, MoveChunks):
        return change.moves
    return []


def _with_chunks(change: Change, chunks: list[NewChunk]) -> Change:
    if isinstance(change, MoveChunks):
        return msgspec.structs.replace(change, moves=chunks)
    assert isinstance(change, PutVersion | PutPart | CompleteUpload)
    return msgspec.structs.replace(change, content=msgspec.structs.replace(change.content, new_chunks=chunks))


def detach(change: Change) -> tuple[Change, list[bytes]]:
    """Move frames out: the change with markers in their place, and the frames in order."""
    chunks = new_chunks(change)
    if not any(chunk.frame is not None for chunk in chunks):
        return change, []
    attachments: list[bytes] = []
    detached: list[NewChunk] = []
    offset = 0
    for chunk in chunks:
        if chunk.frame is None:
            detached.append(chunk)
            continue
        detached.append(msgspec.structs.replace(chunk, frame=_MARKER.pack(offset, len(chunk.frame))))
        attachments.append(chunk.frame)
        offset += len(chunk.frame)
    return _with_chunks(change, detached), attachments


def locate(record: Record, epoch: int, first_lsn: int, attachments_offset: int) -> Record:
    """A detached record with each marker replaced by the frame's place in its journal file."""
    chunks = new_chunks(record.change)
    if not any(chunk.frame is not None for chunk in chunks):
        return record
    located: list[NewChunk] = []
    for chunk in chunks:
        if chunk.frame is None:
            located.append(chunk)
            continue
        offset, length = _MARKER.unpack(chunk.frame)
        location = JournalLocation(epoch, first_lsn, attachments_offset + offset, length)
        located.append(msgspec.structs.replace(chunk, frame=_encoder.encode(location)))
    return msgspec.structs.replace(record, change=_with_chunks(record.change, located))


def frame_location(marker: bytes) -> JournalLocation:
    """The place a located record's `NewChunk.frame` names."""
    return _location_decoder.decode(marker)


# -- epoch files ---------------------------------------------------------------


def encode_epoch(epoch: Epoch) -> bytes:
    body = _encoder.encode(epoch)
    return _EPOCH_HEADER.pack(EPOCH_MAGIC, FORMAT_VERSION, 0, len(body), zlib.crc32(body)) + body


def decode_epoch(content: bytes, store_id: str) -> Epoch | None:
    """None when damaged; WrongStore when it is another store's."""
    if len(content) < _EPOCH_HEADER.size:
        return None
    magic, version, _, length, crc = _EPOCH_HEADER.unpack_from(content)
    body = content[_EPOCH_HEADER.size : _EPOCH_HEADER.size + length]
    if magic != EPOCH_MAGIC or len(body) != length or zlib.crc32(body) != crc:
        return None
    if version != FORMAT_VERSION:
        raise UnknownFormat(f"epoch format {version} is not known to this release (knows {FORMAT_VERSION})")
    epoch = msgspec.msgpack.decode(body, type=Epoch)
    if epoch.store_id != store_id:
        raise WrongStore(f"epoch {epoch.number} belongs to store {epoch.store_id}")
    return epoch
