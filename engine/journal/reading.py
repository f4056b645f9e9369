"""Reading the journal from its replicas: single frames, and whole files merged.

Replicas of a file are byte-identical where they are whole, so a record is taken from
whichever replica has it undamaged. Blocking; nothing here writes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import anyio.to_thread

from engine.errors import JournalCorrupt, StoreError, UnknownFormat, Unreadable, WrongStore
from engine.frames import verify_frame
from engine.interfaces import Node
from engine.journal.records import (
    FILE_HEADER_BYTES,
    Epoch,
    RawRecord,
    check_file_header,
    decode_epoch,
    decode_payload,
    decode_record,
    epoch_name,
    find_records,
    journal_name,
    parse_journal_name,
)
from engine.types import JournalLocation

FileKey = tuple[int, int]  # (epoch, first LSN)
EPOCH_BYTES_MAX = 1 << 20

logger = logging.getLogger("objfs.journal")


async def read_journal_frame(
    nodes: Mapping[str, Node], location: JournalLocation, chunk_id: bytes | None = None
) -> bytes:
    """A riding frame, verified (and that of `chunk_id`, if given), from any good replica.
    Raises Unreadable."""
    name = journal_name(location.epoch, location.first_lsn)
    frame = _read_frame(nodes, name, location, chunk_id)
    if frame is None:
        frame = await anyio.to_thread.run_sync(_read_frame, dict(nodes), name, location, chunk_id)
    if frame is None:
        raise Unreadable(f"{name} cannot be read at {location.offset} from any node; run objfs status")
    return frame


def _read_frame(
    nodes: Mapping[str, Node], name: str, location: JournalLocation, chunk_id: bytes | None
) -> bytes | None:
    for node in list(nodes.values()):
        try:
            frame = node.read(name, location.offset, location.length)
            found = verify_frame(frame)
        except StoreError:
            continue  # the next replica; maintenance finds out what is wrong with this one
        if chunk_id is None or found.chunk_id == chunk_id:
            return frame
    return None


def read_epochs(nodes: Mapping[str, Node], store_id: str) -> dict[int, Epoch]:
    """Every epoch any node knows. Raises UnknownFormat."""
    known = [epochs_on(node, store_id) for node in nodes.values()]
    return {number: epoch for of_node in known for number, epoch in of_node.items()}


def epochs_on(node: Node, store_id: str) -> dict[int, Epoch]:
    """The epochs one node knows; a file that is damaged, in another's place or another
    store's counts as absent. Raises UnknownFormat, naming the file."""
    epochs: dict[int, Epoch] = {}
    try:
        names = [name for name in node.list("journal/") if name.endswith(".epoch")]
    except StoreError as error:
        logger.warning("the journal of node %s is left out: %s", node.path, error)
        return epochs
    for name in names:
        try:
            epoch = decode_epoch(node.read(name, 0, EPOCH_BYTES_MAX), store_id)
        except UnknownFormat as error:
            raise UnknownFormat(f"{node.path}/{name}: {error}") from error
        except StoreError as error:
            logger.warning("%s/%s is left out: %s", node.path, name, error)
            continue
        if epoch is None or epoch_name(epoch.number) != name:
            logger.warning("%s/%s is left out: it is damaged or another epoch's", node.path, name)
        else:
            epochs[epoch.number] = epoch
    return epochs


def list_files(nodes: Mapping[str, Node], failed: set[str] | None = None) -> dict[FileKey, dict[str, int]]:
    """Journal files, each with the sizes of its replicas by node id. Nodes that cannot tell
    are added to `failed`."""
    files: dict[FileKey, dict[str, int]] = {}
    for node_id, node in list(nodes.items()):
        try:
            for name in node.list("journal/"):
                key = parse_journal_name(name)
                if key is not None:
                    files.setdefault(key, {})[node_id] = node.size(name)
        except StoreError:  # a node that went away holds no replica now
            if failed is not None:
                failed.add(node_id)
    return files


class MergedFile:
    """One journal file, read through all its replicas."""

    def __init__(self, nodes: Mapping[str, Node], key: FileKey, store_id: str) -> None:
        self.epoch, self.first_lsn = key
        self.name = journal_name(*key)
        self._replicas: list[bytes] = []
        self._headless: list[bytes] = []  # replicas whose file header is damaged: witnesses, not sources
        self._waiting = list(nodes.values())
        self._store_id = store_id
        self._mixed = False  # whether some record had to be taken from another replica than the first
        self.end = FILE_HEADER_BYTES
        self.next_lsn = self.first_lsn

    def records(self) -> Iterator[tuple[int, RawRecord]]:
        """(offset, record) until the first record that is whole nowhere. After the last,
        `end` is where the file's good bytes end."""
        offset, lsn = FILE_HEADER_BYTES, self.first_lsn
        while True:
            self.end, self.next_lsn = offset, lsn
            record = self._record_at(offset, lsn)
            if record is None:
                return
            yield offset, record
            offset += record.length
            lsn += 1

    @property
    def found(self) -> bool:
        """Whether any replica has the file with a good header; after records()."""
        return bool(self._replicas)

    def content(self) -> bytes:
        """The good bytes, header included; only after records() was exhausted."""
        if not self._mixed:
            return self._replicas[0][: self.end]  # every record was found whole in the first
        pieces = []
        offset, lsn = FILE_HEADER_BYTES, self.first_lsn
        while offset < self.end:
            for replica in self._replicas:
                record = decode_record(replica, offset, self.epoch)
                if record is not None and record.lsn == lsn:
                    pieces.append(replica[offset : offset + record.length])
                    offset, lsn = offset + record.length, lsn + 1
                    break
            else:
                raise JournalCorrupt(f"{self.name} changed while it was read")
        return self._replicas[0][:FILE_HEADER_BYTES] + b"".join(pieces)

    def proven_durable(self) -> int:
        """Up to where records behind `end` say that the journal was durable when they were
        written: 0 behind a torn tail. Only after records() was exhausted."""
        return max((min(decode_payload(raw).durable_lsn, raw.lsn - 1) for raw in self._behind_end()), default=0)

    def goes_on(self) -> bool:
        """Whether any replica has whole records behind `end`; like proven_durable()."""
        return next(self._behind_end(), None) is not None

    def _behind_end(self) -> Iterator[RawRecord]:
        remains = [(replica, self.end) for replica in self._replicas]
        remains += [(replica, FILE_HEADER_BYTES) for replica in self._headless]
        for replica, offset in remains:
            yield from (raw for raw in find_records(replica, offset, self.epoch) if raw.lsn >= self.next_lsn)

    def _record_at(self, offset: int, lsn: int) -> RawRecord | None:
        position = 0
        while True:
            for replica in self._replicas[position:]:
                try:
                    record = decode_record(replica, offset, self.epoch)
                except UnknownFormat as error:
                    raise UnknownFormat(f"{self.name} at {offset}: {error}") from error
                if record is not None and record.lsn == lsn:
                    self._mixed = self._mixed or replica is not self._replicas[0]
                    return record
            position = len(self._replicas)
            if not self._load_next():
                return None

    def _load_next(self) -> bool:
        """Read one more replica that has the file with a good header."""
        while self._waiting:
            node = self._waiting.pop(0)
            try:
                content = node.read(self.name, 0, node.size(self.name))
            except StoreError:
                continue  # absent or unusable here; if it is so everywhere, records() ends
            try:
                check_file_header(content[:FILE_HEADER_BYTES], self._store_id, self.epoch, self.first_lsn)
            except UnknownFormat as error:
                raise UnknownFormat(f"{node.path}/{self.name}: {error}") from error
            except WrongStore as error:
                logger.warning("%s/%s is left out: %s", node.path, self.name, error)
                continue
            except JournalCorrupt as error:
                logger.warning("%s/%s is left out: %s", node.path, self.name, error)
                self._headless.append(content)
                continue
            self._replicas.append(content)
            return True
        return False
