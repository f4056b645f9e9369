"""Bytes of the journal: file header, records, epoch files (FORMAT.md, "Journal").

Pure functions. A record is a header, a msgpack payload and attachments: the frames of
small chunks that ride in it, back to back. The payload carries no epoch, so that a tail
can be written again in a later epoch byte for byte but for its header.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec
import xxhash
from msgspec import Struct

from engine.changes import Change, CompleteUpload, Origin, PutPart, PutVersion, Record
from engine.errors import JournalCorrupt, UnknownFormat, WrongStore
from engine.interfaces import Buffer
from engine.types import JournalLocation, NewChunk

VERSION = 1
FILE_MAGIC = b"OBJFSJNL"
RECORD_MAGIC = 0x4A52_4F31  # "1ORJ"
_FILE_HEADER = struct.Struct("<8sHH16sQQ")  # magic, version, reserved, store id, epoch, first lsn
FILE_HEADER_BYTES = 48
_RECORD_HEADER = struct.Struct("<IHHIIQQQ")  # magic, version, reserved, payload, attachments, lsn, epoch, xxh3
_MAGIC_BYTES = RECORD_MAGIC.to_bytes(4, "little")
_CRC = struct.Struct("<I")  # CRC-32 of the header before it
RECORD_HEADER_BYTES = _RECORD_HEADER.size + _CRC.size

assert _FILE_HEADER.size + _CRC.size == FILE_HEADER_BYTES


class Payload(Struct, frozen=True, array_like=True):
    """What a record's payload decodes to. `frame_lengths` are those of the attachments, in
    the order of the change's new chunks that ride. `durable_lsn`: up to where the journal
    was durable when this was written, so that a record damaged everywhere with whole ones
    behind it is told from a torn tail."""

    lsn: int
    time_ns: int
    origin: Origin
    change: Change
    frame_lengths: list[int] = []
    durable_lsn: int = 0


class RawRecord(Struct, frozen=True):
    """A record as bytes, without header: what is kept until it is durable."""

    lsn: int
    payload: bytes
    attachments: bytes

    @property
    def length(self) -> int:
        return RECORD_HEADER_BYTES + len(self.payload) + len(self.attachments)


class Epoch(Struct, frozen=True):
    """A stretch of the journal with one set of replicas, from `first_lsn` until the next
    epoch's. Records of an earlier epoch from `first_lsn` on are overruled. `follows`: the
    epoch it continues; any between were begun, never opened, and are void (-1: not said).
    `tail_lsn`: the end of what it took over; until all of that is in it, it is not open."""

    number: int
    first_lsn: int
    node_ids: list[str]
    store_id: str
    format: int = VERSION
    follows: int = -1
    tail_lsn: int = 0


_payload_decoder = msgspec.msgpack.Decoder(Payload)
_encoder = msgspec.msgpack.Encoder()


# -- names ---------------------------------------------------------------------


def journal_name(epoch: int, first_lsn: int) -> str:
    return f"journal/{epoch:08x}-{first_lsn:016x}.journal"


def epoch_name(epoch: int) -> str:
    return f"journal/{epoch:08x}.epoch"


def parse_journal_name(name: str) -> tuple[int, int] | None:
    """(epoch, first LSN), or None if it is no journal file's name."""
    stem = name.removeprefix("journal/").removesuffix(".journal")
    epoch, _, first = stem.partition("-")
    if not name.endswith(".journal") or len(epoch) < 8 or len(first) != 16:
        return None
    try:
        return int(epoch, 16), int(first, 16)
    except ValueError:
        return None


# -- files and records ---------------------------------------------------------


def encode_file_header(store_id: str, epoch: int, first_lsn: int) -> bytes:
    fields = _FILE_HEADER.pack(FILE_MAGIC, VERSION, 0, bytes.fromhex(store_id), epoch, first_lsn)
    return fields + _CRC.pack(zlib.crc32(fields))


def check_file_header(header: bytes, store_id: str, epoch: int, first_lsn: int) -> None:
    """Raises JournalCorrupt, UnknownFormat, WrongStore."""
    if len(header) < FILE_HEADER_BYTES:
        raise JournalCorrupt("the file header is torn")
    fields = header[: _FILE_HEADER.size]
    magic, version, _, store, found_epoch, found_first = _FILE_HEADER.unpack(fields)
    (crc,) = _CRC.unpack_from(header, _FILE_HEADER.size)
    if magic != FILE_MAGIC or zlib.crc32(fields) != crc:
        raise JournalCorrupt("the file header is damaged")
    if version != VERSION:
        raise UnknownFormat(f"journal format {version} is not known to this release; use a newer objfs")
    if store.hex() != store_id:
        raise WrongStore(f"the file belongs to store {store.hex()}")
    if (found_epoch, found_first) != (epoch, first_lsn):
        raise JournalCorrupt("the file header is another file's")


def encode_header(record: RawRecord, epoch: int) -> bytes:
    digest = xxhash.xxh3_64(record.payload)
    digest.update(record.attachments)
    fields = _RECORD_HEADER.pack(
        RECORD_MAGIC,
        VERSION,
        0,
        len(record.payload),
        len(record.attachments),
        record.lsn,
        epoch,
        digest.intdigest(),
    )
    return fields + _CRC.pack(zlib.crc32(fields))


def decode_record(content: Buffer, offset: int, epoch: int) -> RawRecord | None:
    """The whole, undamaged record at `offset`, or None (torn, damaged, end of file)."""
    view = memoryview(content)
    start = offset + RECORD_HEADER_BYTES
    if len(view) < start:
        return None
    fields = bytes(view[offset : offset + _RECORD_HEADER.size])
    magic, version, _, payload_length, attached_length, lsn, found_epoch, digest = _RECORD_HEADER.unpack(fields)
    (crc,) = _CRC.unpack_from(view, offset + _RECORD_HEADER.size)
    if magic != RECORD_MAGIC or zlib.crc32(fields) != crc or found_epoch != epoch:
        return None
    if version != VERSION:
        raise UnknownFormat(f"journal record {lsn} has version {version}; use a newer objfs")
    middle, end = start + payload_length, start + payload_length + attached_length
    if end > len(view) or xxhash.xxh3_64_intdigest(view[start:end]) != digest:
        return None
    return RawRecord(lsn, bytes(view[start:middle]), bytes(view[middle:end]))


# -- records and changes -------------------------------------------------------


def encode_record(lsn: int, time_ns: int, origin: Origin, change: Change, durable_lsn: int = 0) -> RawRecord:
    """Move the frames out of the change and encode the rest."""
    riding = [chunk.frame for chunk in new_chunks(change) if chunk.frame is not None]
    payload = Payload(lsn, time_ns, origin, without_frames(change), [len(frame) for frame in riding], durable_lsn)
    return RawRecord(lsn, _encoder.encode(payload), b"".join(riding))


def find_records(content: Buffer, offset: int, epoch: int) -> Iterator[RawRecord]:
    """Whole records of the epoch anywhere behind `offset`: what damage may have left."""
    whole = bytes(content)
    position = whole.find(_MAGIC_BYTES, offset)
    while position >= 0:
        try:
            record = decode_record(whole, position, epoch)
            if record is not None and decode_payload(record).lsn == record.lsn:
                yield record
        except (UnknownFormat, msgspec.MsgspecError):
            record = None  # it says nothing to this release
        position = whole.find(_MAGIC_BYTES, position + (1 if record is None else record.length))


def decode_payload(raw: RawRecord) -> Payload:
    return _payload_decoder.decode(raw.payload)


def to_record(raw: RawRecord, epoch: int) -> Record:
    """The record as the feed shows it; riding frames are empty."""
    payload = decode_payload(raw)
    return Record(payload.lsn, payload.time_ns, epoch, payload.origin, payload.change)


def new_chunks(change: Change) -> Sequence[NewChunk]:
    if isinstance(change, (PutVersion, PutPart, CompleteUpload)):
        return change.content.new_chunks
    return ()


def riding_locations(
    payload: Payload, raw: RawRecord, epoch: int, first_lsn: int, offset: int
) -> dict[bytes, JournalLocation]:
    """Where the frames of a record lie whose header is at `offset` of the file."""
    if not payload.frame_lengths:
        return {}
    position = offset + RECORD_HEADER_BYTES + len(raw.payload)
    riding = [chunk for chunk in new_chunks(payload.change) if chunk.frame is not None]
    locations: dict[bytes, JournalLocation] = {}
    for chunk, length in zip(riding, payload.frame_lengths, strict=True):
        locations[chunk.chunk_id] = JournalLocation(epoch, first_lsn, position, length)
        position += length
    return locations


def without_frames(change: Change) -> Change:
    """The change with riding frames emptied: what the payload and the feed carry."""
    if not any(chunk.frame is not None for chunk in new_chunks(change)):
        return change
    assert isinstance(change, (PutVersion, PutPart, CompleteUpload))
    stripped = [
        chunk if chunk.frame is None else msgspec.structs.replace(chunk, frame=b"")
        for chunk in change.content.new_chunks
    ]
    content = msgspec.structs.replace(change.content, new_chunks=stripped)
    return msgspec.structs.replace(change, content=content)


def with_frames(payload: Payload, raw: RawRecord) -> Change:
    """The change as it was committed: riding frames taken from the attachments."""
    change = payload.change
    if not payload.frame_lengths:
        return change
    assert isinstance(change, (PutVersion, PutPart, CompleteUpload))
    whole: list[NewChunk] = []
    lengths, position = iter(payload.frame_lengths), 0
    for chunk in change.content.new_chunks:
        if chunk.frame is not None:
            end = position + next(lengths)
            chunk, position = msgspec.structs.replace(chunk, frame=raw.attachments[position:end]), end
        whole.append(chunk)
    content = msgspec.structs.replace(change.content, new_chunks=whole)
    return msgspec.structs.replace(change, content=content)


# -- epoch files ---------------------------------------------------------------


def encode_epoch(epoch: Epoch) -> bytes:
    body = msgspec.json.encode(epoch)
    return body + b"\n" + f"{zlib.crc32(body):08x}\n".encode()


def decode_epoch(content: bytes, store_id: str) -> Epoch | None:
    """None when damaged. Raises UnknownFormat, WrongStore."""
    body, _, rest = content.partition(b"\n")
    if rest != f"{zlib.crc32(body):08x}\n".encode():
        return None
    fields = msgspec.json.decode(body, type=dict[str, object])
    if fields.get("format") != VERSION:
        raise UnknownFormat(f"journal epoch format {fields.get('format')} is not known; use a newer objfs")
    epoch = msgspec.json.decode(body, type=Epoch)
    if epoch.store_id != store_id:
        raise WrongStore(f"a journal epoch of store {epoch.store_id}")
    return epoch
