"""Piece files: a stream of bytes, compressed and checksummed, the same on several nodes.

Index snapshots and journal archives are piece files (FORMAT.md, "Piece file"). Encoding
and decoding are pure and hold one piece at a time; write_copies() and copy_file() are
blocking and put whole, verified copies on nodes. A copy has its name only once every
byte of it was synced and read back.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

import xxhash
import zstandard

from engine.crash_sites import CrashSite, reached
from engine.errors import FragmentMissing, PiecesDamaged, StoreError, UnknownFormat, WritesStopped, WrongStore
from engine.interfaces import Node

VERSION = 1
PIECE_BYTES_MAX = 1024 * 1024
HEADER_BYTES_MAX = 64 * 1024
LEVEL = 1  # zstd: the fastest; what is written here is read back once in a store's life, if ever
WRITING = ".writing"  # behind the name of a copy that is not whole yet

_HEADER = struct.Struct("<8sHHI")  # magic, version, reserved, length of the body behind it
_PIECE = struct.Struct("<4sIIQ")  # magic, stored length, plain length, XXH3 of the stored bytes
_TRAILER = struct.Struct("<8sQQ32s")  # magic, pieces, plain bytes, SHA-256 of all before the trailer
_CRC = struct.Struct("<I")  # of what stands before it in its header, piece header or trailer
_PIECE_MAGIC = b"oPce"
_TRAILER_MAGIC = b"objfsTRL"
_PIECE_HEADER_BYTES = _PIECE.size + _CRC.size
_TRAILER_BYTES = _TRAILER.size + _CRC.size
COPY_BYTES = 1024 * 1024

Read = Callable[[int, int], bytes]  # (offset, length) → bytes, fewer at the file's end
Pay = Callable[[int], None]  # told of bytes before they are worked on; may wait
Choose = Callable[[int, set[str]], list[str]]  # (how many, excluded) → node ids

logger = logging.getLogger("objfs.pieces")


def free(count: int) -> None:
    """Work that nothing holds back."""


# -- bytes -----------------------------------------------------------------------


def cut(content: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of PIECE_BYTES_MAX, the last one shorter."""
    waiting = bytearray()
    for some in content:
        waiting += some
        while len(waiting) >= PIECE_BYTES_MAX:
            yield bytes(memoryview(waiting)[:PIECE_BYTES_MAX])
            del waiting[:PIECE_BYTES_MAX]
    if waiting:
        yield bytes(waiting)


def encode(magic: bytes, body: bytes, content: Iterable[bytes]) -> Iterator[bytes]:
    """The file, in order. `magic` (8 bytes) says what it is, `body` describes it."""
    assert len(magic) == 8 and len(body) <= HEADER_BYTES_MAX
    whole = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
    header = _HEADER.pack(magic, VERSION, 0, len(body)) + body
    header += _CRC.pack(zlib.crc32(header))
    whole.update(header)
    yield header
    pieces, plain = 0, 0
    for piece in cut(content):
        stored = compressor.compress(piece)
        before = _PIECE.pack(_PIECE_MAGIC, len(stored), len(piece), xxhash.xxh3_64_intdigest(stored))
        encoded = before + _CRC.pack(zlib.crc32(before)) + stored
        whole.update(encoded)
        pieces, plain = pieces + 1, plain + len(piece)
        yield encoded
    trailer = _TRAILER.pack(_TRAILER_MAGIC, pieces, plain, whole.digest())
    yield trailer + _CRC.pack(zlib.crc32(trailer))


class PieceReader:
    """Reads one copy. `body` is there at once; pieces() checks every byte, and the whole at
    its end. Raises PiecesDamaged, UnknownFormat."""

    def __init__(self, read: Read, magic: bytes, name: str) -> None:
        self._read = read
        self._name = name
        self._whole = hashlib.sha256()
        header = self._take(0, _HEADER.size)
        found, version, _, length = _HEADER.unpack(header)
        if found != magic or length > HEADER_BYTES_MAX:
            raise PiecesDamaged(f"{name} does not begin as it should")
        rest = self._take(_HEADER.size, length + _CRC.size)
        if _CRC.unpack(rest[length:])[0] != zlib.crc32(header + rest[:length]):
            raise PiecesDamaged(f"{name}: its header is damaged")
        if version != VERSION:
            raise UnknownFormat(f"{name} has piece file format {version}, not {VERSION}; use a newer objfs")
        self.body = rest[:length]
        self._at = _HEADER.size + length + _CRC.size

    def pieces(self) -> Iterator[bytes]:
        """The content, once."""
        decompressor = zstandard.ZstdDecompressor()
        count, plain = 0, 0
        while True:
            header = self._read(self._at, _PIECE_HEADER_BYTES)
            if header[:4] != _PIECE_MAGIC:
                break
            _, stored_length, plain_length, digest = _PIECE.unpack(self._checked(header, _PIECE_HEADER_BYTES))
            if plain_length > PIECE_BYTES_MAX or stored_length > 2 * PIECE_BYTES_MAX:
                raise PiecesDamaged(f"{self._name}: piece {count} says it is larger than pieces are")
            self._whole.update(header)
            stored = self._take(self._at + _PIECE_HEADER_BYTES, stored_length)
            if xxhash.xxh3_64_intdigest(stored) != digest:
                raise PiecesDamaged(f"{self._name}: piece {count} is damaged")
            try:
                content = decompressor.decompress(stored, max_output_size=plain_length)
            except zstandard.ZstdError as error:
                raise PiecesDamaged(f"{self._name}: piece {count} cannot be decompressed ({error})") from error
            if len(content) != plain_length:
                raise PiecesDamaged(f"{self._name}: piece {count} has another length than it says")
            count, plain = count + 1, plain + plain_length
            self._at += _PIECE_HEADER_BYTES + stored_length
            yield content
        self._check_trailer(count, plain)

    def _check_trailer(self, count: int, plain: int) -> None:
        trailer = self._read(self._at, _TRAILER_BYTES + 1)
        magic, pieces, plain_bytes, digest = _TRAILER.unpack(self._checked(trailer, _TRAILER_BYTES))
        if magic != _TRAILER_MAGIC or (pieces, plain_bytes) != (count, plain) or digest != self._whole.digest():
            raise PiecesDamaged(f"{self._name}: what it ends with is not what it holds")

    def _checked(self, found: bytes, length: int) -> bytes:
        """The fields of a header or trailer of exactly `length` bytes with its CRC."""
        fields = found[: length - _CRC.size]
        if len(found) != length or _CRC.unpack(found[-_CRC.size :])[0] != zlib.crc32(fields):
            raise PiecesDamaged(f"{self._name} is damaged or cut off at {self._at}")
        return fields

    def _take(self, offset: int, length: int) -> bytes:
        found = self._read(offset, length)
        if len(found) != length:
            raise PiecesDamaged(f"{self._name} ends at {offset + len(found)}, too early")
        self._whole.update(found)
        return found


Accept = Callable[[PieceReader], object]  # raises PiecesDamaged or WrongStore unless it is what its name says


def open_copy(node: Node, name: str, magic: bytes) -> PieceReader:
    """Raises PiecesDamaged, UnknownFormat, FragmentMissing, NodeUnavailable."""
    return PieceReader(lambda offset, length: node.read(name, offset, length), magic, f"{name} of {node.node_id}")


def check_copy(node: Node, name: str, magic: bytes, pay: Pay = free) -> bytes:
    """Read every byte of a copy; returns its body. Raises as open_copy()."""
    reader = open_copy(node, name, magic)
    for piece in reader.pieces():
        pay(len(piece))
    return reader.body


# -- copies ------------------------------------------------------------------------


class _CopyFailed(Exception):
    def __init__(self, node_id: str, reason: str) -> None:
        super().__init__(reason)
        self.node_id = node_id


def write_copies(
    nodes: Mapping[str, Node],
    choose: Choose,
    copies: int,
    name: str,
    magic: bytes,
    make: Callable[[], Iterable[bytes]],
    *,
    pay: Pay = free,
) -> list[str]:
    """Put the file `make()` yields on `copies` nodes, byte for byte the same, each copy
    synced, read back and only then named. A node that fails is passed over. Returns the
    nodes. Raises WritesStopped when there are too few; nothing has the name then."""
    failed: set[str] = set()
    while True:
        members = choose(copies, failed)
        if len(members) < copies:
            raise WritesStopped(
                f"{name} needs {copies} nodes that can be written, there are {len(members)}; "
                f"bring nodes back or replace them"
            )
        try:
            _write(nodes, members, name + WRITING, make(), pay)
            for node_id in members:
                _on(nodes, node_id, lambda node: check_copy(node, name + WRITING, magic, pay))
            reached(CrashSite.PIECES_VERIFIED)
            for node_id in members:
                _on(nodes, node_id, lambda node: node.rename(name + WRITING, name))
                reached(CrashSite.PIECES_NAMED)
            return members
        except _CopyFailed as error:
            logger.warning("%s: %s; another node takes its place", name, error)
            failed.add(error.node_id)


def _write(nodes: Mapping[str, Node], members: list[str], name: str, content: Iterable[bytes], pay: Pay) -> None:
    for node_id in members:
        _on(nodes, node_id, lambda node: begin(node, name))
    offset = 0
    for some in content:
        pay(len(some))
        for node_id in members:
            _append(nodes, node_id, name, offset, some)
        offset += len(some)
        reached(CrashSite.PIECES_PARTLY_WRITTEN)
    for node_id in members:
        _on(nodes, node_id, lambda node: node.sync(name))


def _append(nodes: Mapping[str, Node], node_id: str, name: str, offset: int, some: bytes) -> None:
    _on(nodes, node_id, lambda node: node.append(name, offset, [some]))


def begin(node: Node, name: str) -> None:
    """Create a scratch file, in the place of one that a crash left."""
    with suppress(FragmentMissing):
        node.delete(name)
    node.create(name)


def _on(nodes: Mapping[str, Node], node_id: str, act: Callable[[Node], object]) -> None:
    node = nodes.get(node_id)
    if node is None:
        raise _CopyFailed(node_id, f"node {node_id} is gone")
    try:
        act(node)
    except StoreError as error:
        raise _CopyFailed(node_id, str(error)) from error


def heal_copies(
    nodes: Mapping[str, Node],
    healthy: list[str],
    copies: int,
    name: str,
    magic: bytes,
    accept: Accept,
    *,
    pay: Pay = free,
) -> int:
    """Bring a piece file back to `copies` whole copies on healthy nodes; `healthy` is in
    order of preference. A copy that is damaged or not ours is set aside first. Returns how
    many there are then; nothing is written while no whole copy is found."""
    whole: list[str] = []
    for node_id in [*healthy, *(node_id for node_id in nodes if node_id not in healthy)]:
        if _is_whole(nodes.get(node_id), name, magic, accept, pay):
            whole.append(node_id)
    source = nodes.get(whole[0]) if whole else None
    good = [node_id for node_id in whole if node_id in healthy]
    for node_id in healthy:
        target = nodes.get(node_id)
        if source is None or len(good) >= copies:
            break
        if node_id not in good and target is not None:
            try:
                _copy(source, target, name, magic, pay)
            except StoreError as error:
                logger.warning("%s cannot be copied to node %s: %s", name, node_id, error)
                continue  # the count tells
            good.append(node_id)
    return len(good)


def _is_whole(node: Node | None, name: str, magic: bytes, accept: Accept, pay: Pay) -> bool:
    if node is None:
        return False
    try:
        accept(open_copy(node, name, magic))
        check_copy(node, name, magic, pay)
    except (PiecesDamaged, WrongStore) as error:
        logger.warning("%s", error)
        node.quarantine(name, str(error))
        return False
    except UnknownFormat:
        raise
    except StoreError:
        return False  # not there, or not readable now
    return True


def _copy(source: Node, target: Node, name: str, magic: bytes, pay: Pay) -> None:
    scratch = f"{name}.healing{WRITING}"  # its own: a checkpoint may be writing a copy of this beside us
    begin(target, scratch)
    offset = 0
    while some := source.read(name, offset, COPY_BYTES):
        pay(len(some))
        target.append(scratch, offset, [some])
        offset += len(some)
    target.sync(scratch)
    check_copy(target, scratch, magic, pay)
    target.rename(scratch, name)


def delete_scratch(nodes: Mapping[str, Node], prefix: str) -> None:
    """Delete copies under `prefix` that a crash left unfinished. Only while nobody writes any."""
    for node in list(nodes.values()):
        try:
            for name in [name for name in node.list(prefix) if name.endswith(WRITING)]:
                node.delete(name)
        except StoreError as error:
            logger.info("unfinished copies on node %s stay for now: %s", node.node_id, error)
