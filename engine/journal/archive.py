"""Journal archives: records a checkpoint took out of the journal, kept for a while.

An archive is a piece file (engine/pieces.py) `journal/<first LSN>-<last LSN>.archive` on
m+1 nodes: the records' payloads without the frames that rode in them. Nothing is rebuilt
from archives; they are what the SQL table of the journal shows of the past. Blocking.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from engine import pieces
from engine.changes import Record
from engine.errors import PiecesDamaged, StoreError, UnknownFormat, WrongStore
from engine.interfaces import Node
from engine.journal.reading import FileKey
from engine.journal.records import RawRecord, to_record

MAGIC = b"objfsARC"
PREFIX = "journal/"
_ENTRY = struct.Struct("<QII")  # epoch, payload length, reserved; the payload follows
Range = tuple[int, int]  # (first LSN, last LSN), both in it

logger = logging.getLogger("objfs.journal")


class ArchiveHeader(Struct, frozen=True):
    """The body of the piece file's header, as JSON. `time_ns`: when it was written, so no
    record in it is younger."""

    store_id: str
    first_lsn: int
    last_lsn: int
    time_ns: int


def archive_name(first_lsn: int, last_lsn: int) -> str:
    return f"{PREFIX}{first_lsn:016x}-{last_lsn:016x}.archive"


def parse_archive_name(name: str) -> Range | None:
    stem = name.removeprefix(PREFIX).removesuffix(".archive")
    first, _, last = stem.partition("-")
    if not name.endswith(".archive") or len(first) != 16 or len(last) != 16:
        return None
    try:
        return int(first, 16), int(last, 16)
    except ValueError:
        return None


def list_archives(nodes: Mapping[str, Node]) -> dict[Range, list[str]]:
    """Range → ids of the nodes with a copy, in order of LSN, of overlapping ones the longer
    first."""
    found: dict[Range, list[str]] = {}
    for node_id, node in list(nodes.items()):
        try:
            for name in node.list(PREFIX):
                covered = parse_archive_name(name)
                if covered is not None:
                    found.setdefault(covered, []).append(node_id)
        except StoreError as error:
            logger.info("the archives of node %s cannot be listed: %s", node_id, error)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], -item[0][1])))


def encode_archive(header: ArchiveHeader, records: Iterable[tuple[FileKey, int, RawRecord]]) -> Iterator[bytes]:
    """The file, out of what JournalScan.records() yields; it stops after header.last_lsn."""
    return pieces.encode(MAGIC, msgspec.json.encode(header), _entries(header.last_lsn, records))


def _entries(last_lsn: int, records: Iterable[tuple[FileKey, int, RawRecord]]) -> Iterator[bytes]:
    for (epoch, _), _, raw in records:
        if raw.lsn > last_lsn:
            return
        yield _ENTRY.pack(epoch, len(raw.payload), 0) + raw.payload


def read_header(reader: pieces.PieceReader, name: str, store_id: str) -> ArchiveHeader:
    """Raises PiecesDamaged, WrongStore."""
    try:
        header = msgspec.json.decode(reader.body, type=ArchiveHeader)
    except msgspec.DecodeError as error:
        raise PiecesDamaged(f"{name}: its header is not an archive's ({error})") from error
    if header.store_id != store_id:
        raise WrongStore(f"{name} is a journal archive of store {header.store_id}")
    if archive_name(header.first_lsn, header.last_lsn) != name:
        raise PiecesDamaged(f"{name} is another archive under a wrong name")
    return header


def read_archives(nodes: Mapping[str, Node], store_id: str, after_lsn: int = 0) -> Iterator[Record]:
    """Every archived record after `after_lsn`, in order, each once and verified; riding
    frames are empty. An archive that is damaged on all its nodes is logged and left out.
    Raises UnknownFormat."""
    reached_lsn = after_lsn
    for (first_lsn, last_lsn), holders in list_archives(nodes).items():
        if last_lsn <= reached_lsn:
            continue
        name = archive_name(first_lsn, last_lsn)
        for node_id in holders:
            try:
                for record in _records(nodes[node_id], name, store_id):
                    if record.lsn > reached_lsn:
                        reached_lsn = record.lsn
                        yield record
                break
            except UnknownFormat:
                raise
            except (StoreError, KeyError) as error:
                logger.warning("%s on node %s: %s", name, node_id, error)
        else:
            logger.warning("%s is readable on no node: its records are not shown", name)


def _records(node: Node, name: str, store_id: str) -> Iterator[Record]:
    reader = pieces.open_copy(node, name, MAGIC)
    header = read_header(reader, name, store_id)
    expected = header.first_lsn
    waiting = bytearray()
    for piece in reader.pieces():
        waiting += piece
        at = 0
        while len(waiting) - at >= _ENTRY.size:
            epoch, length, _ = _ENTRY.unpack_from(waiting, at)
            end = at + _ENTRY.size + length
            if len(waiting) < end:
                break
            record = to_record(RawRecord(expected, bytes(waiting[at + _ENTRY.size : end]), b""), epoch)
            if record.lsn != expected:
                raise PiecesDamaged(f"{name} of {node.node_id} holds record {record.lsn} where {expected} belongs")
            yield record
            expected, at = expected + 1, end
        del waiting[:at]
    if waiting or expected != header.last_lsn + 1:
        raise PiecesDamaged(f"{name} of {node.node_id} ends at record {expected - 1}")


# -- upkeep ------------------------------------------------------------------------


def heal_archive(nodes: Mapping[str, Node], healthy: list[str], copies: int, covered: Range, store_id: str) -> int:
    """As pieces.heal_copies()."""
    name = archive_name(*covered)
    return pieces.heal_copies(nodes, healthy, copies, name, MAGIC, lambda reader: read_header(reader, name, store_id))


def expired(nodes: Mapping[str, Node], store_id: str, *, before_ns: int, bytes_max: int) -> list[Range]:
    """Archives written before `before_ns`, the oldest ones that together are over
    `bytes_max`, and those that lie wholly inside of another. What cannot be read stays."""
    archives = list_archives(nodes)
    gone = [covered for covered in archives if any(_inside(covered, other) for other in archives)]
    kept_bytes = 0
    for covered in sorted(set(archives).difference(gone), reverse=True):
        name = archive_name(*covered)
        for node_id in archives[covered]:
            try:
                reader = pieces.open_copy(nodes[node_id], name, MAGIC)
                header = read_header(reader, name, store_id)
                kept_bytes += nodes[node_id].size(name)
            except (StoreError, KeyError) as error:
                logger.info("%s on node %s: %s", name, node_id, error)
                continue
            if header.time_ns < before_ns or kept_bytes > bytes_max:
                gone.append(covered)
            break
    return gone


def _inside(covered: Range, other: Range) -> bool:
    return covered != other and other[0] <= covered[0] and covered[1] <= other[1]
