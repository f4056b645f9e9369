"""Scrubbing what is replicated whole: journal files, epoch files, node descriptors, index
snapshots and archives. Every record of every replica is read and checked.

A damaged journal replica, epoch file or piece file is copied to its node's quarantine and
healed from the others; what cannot be healed is told. Called by scrub(); reading in
threads, throttled.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from engine import pieces
from engine.care.pace import Meter, Throttle
from engine.errors import JournalCorrupt, NodeUnavailable, StoreError
from engine.frames import decode_frame
from engine.index import snapshots
from engine.interfaces import Node, StoredChunk
from engine.journal import archive
from engine.journal.reading import EPOCH_BYTES_MAX, FileKey, list_files
from engine.journal.records import (
    FILE_HEADER_BYTES,
    check_file_header,
    decode_epoch,
    decode_record,
    epoch_name,
    journal_name,
)
from engine.journal.recovery import epoch_of, set_aside_copy
from engine.nodes.descriptor import read_node_descriptor
from engine.opening import Parts
from engine.types import JournalLocation, NodeEntry

logger = logging.getLogger("objfs.care")


class CopiesFound(Struct):
    """What was checked, and (node id, file, reason) of what is damaged."""

    copies: int = 0
    checked_bytes: int = 0
    damaged: list[tuple[str, str, str]] = []
    problems: list[str] = []


async def scrub_copies(parts: Parts, throttle: Throttle, meter: Meter) -> CopiesFound:
    work = _Copies(parts, throttle, meter)
    await work.journal()
    await anyio.to_thread.run_sync(work.epochs)
    await anyio.to_thread.run_sync(work.descriptors, parts.index.keymap.nodes())
    await work.piece_files()
    if work.journal_damaged:
        await parts.index.heal_journal()
    return work.found


class _Copies:
    def __init__(self, parts: Parts, throttle: Throttle, meter: Meter) -> None:
        self.found = CopiesFound()
        self.journal_damaged = False
        self._parts = parts
        self._throttle = throttle
        self._meter = meter
        self._nodes: Mapping[str, Node] = dict(parts.nodes.nodes)
        self._store_id = parts.descriptor.store_id

    def _note(self, node_id: str, name: str, reason: str) -> None:
        logger.warning("node %s: %s: %s", node_id, name, reason)
        self.found.damaged.append((node_id, name, reason))

    async def _pay(self, size: int) -> None:
        await self._throttle.take(size)
        self._meter.total = (self._meter.total or 0) + size
        self._meter.add(size)
        self.found.copies += 1
        self.found.checked_bytes += size

    # -- journal -----------------------------------------------------------------

    async def journal(self) -> None:
        files = await anyio.to_thread.run_sync(list_files, self._nodes)
        newest = max(files, default=None)
        durable = self._parts.index.durable_lsn()
        first_lsn = self._parts.index.keymap.journal_first_lsn()
        for key, sizes in sorted(files.items()):
            # Replicas of the file being written may differ behind what is durable; one of a
            # node that was away is short, which matters only where too few others are whole.
            size = None if key == newest else max(sizes.values())
            enough = list(sizes.values()).count(max(sizes.values())) > self._parts.descriptor.m
            for node_id, length in sorted(sizes.items()):
                await self._pay(length)
                reason = await anyio.to_thread.run_sync(self._check_replica, node_id, key, size, durable, enough)
                if reason is not None:
                    self._note(node_id, journal_name(*key), reason)
                    self.journal_damaged = True
            if key[1] >= first_lsn:
                await self._riding(key)

    def _check_replica(self, node_id: str, key: FileKey, size: int | None, durable: int, enough: bool) -> str | None:
        """What is wrong with one replica; None if it is whole or its node is gone."""
        epoch, lsn = key
        node, name = self._nodes[node_id], journal_name(*key)
        try:
            content = node.read(name, 0, node.size(name))
            check_file_header(content[:FILE_HEADER_BYTES], self._store_id, epoch, lsn)
            offset = FILE_HEADER_BYTES
            while offset < len(content) and (size is not None or lsn <= durable):
                record = decode_record(content, offset, epoch)
                if record is None or record.lsn != lsn:
                    return f"record {lsn} at {offset} is damaged"
                offset, lsn = offset + record.length, lsn + 1
        except JournalCorrupt as error:
            return str(error)
        except StoreError as error:
            return self._unless_gone(node, error)
        if size is not None and len(content) < size and not enough:
            return f"the file is {len(content)} bytes long, other replicas have {size}"
        return None

    def _unless_gone(self, node: Node, error: StoreError) -> str | None:
        try:
            node.check()
        except StoreError:
            return None  # the node is lost, which is told as such
        return str(error)

    async def _riding(self, key: FileKey) -> None:
        """Chunks that ride in the file are where the index says, and hash to their names."""
        with self._parts.index.keymap.snapshot() as keymap:
            chunks = await anyio.to_thread.run_sync(keymap.chunks_in, -key[1])
        if chunks:
            missing = await anyio.to_thread.run_sync(self._unreadable, chunks)
            still = [chunk for chunk in missing if await self._still_there(chunk)]
            self.found.problems += [
                f"chunk {chunk.chunk_id.hex()} cannot be read from {journal_name(*key)} on any node" for chunk in still
            ]

    def _unreadable(self, chunks: list[StoredChunk]) -> list[StoredChunk]:
        return [chunk for chunk in chunks if not any(self._holds(node, chunk) for node in self._nodes.values())]

    def _holds(self, node: Node, chunk: StoredChunk) -> bool:
        location = chunk.location
        assert isinstance(location, JournalLocation), "it was listed as riding in a journal file"
        try:
            frame = node.read(journal_name(location.epoch, location.first_lsn), location.offset, location.length)
            return hashlib.sha256(decode_frame(frame, chunk.chunk_id)).digest() == chunk.chunk_id
        except StoreError:
            return False

    async def _still_there(self, chunk: StoredChunk) -> bool:
        """Whether it still lies where it could not be read: it may have moved meanwhile."""
        found = self._parts.index.keymap.locations([chunk.chunk_id], chunk.scope)
        return found.get(chunk.chunk_id) == chunk.location

    # -- small files ---------------------------------------------------------------

    def epochs(self) -> None:
        """Every epoch file of every node; a damaged one is written again from another's."""
        good: dict[str, bytes] = {}
        bad: list[tuple[Node, str]] = []
        for node_id, node in self._nodes.items():
            for name in _listed(node, "journal/", ".epoch"):
                try:
                    content = node.read(name, 0, EPOCH_BYTES_MAX)
                    epoch = decode_epoch(content, self._store_id)
                except StoreError as error:
                    reason = self._unless_gone(node, error)
                    if reason is not None:
                        self._note(node_id, name, reason)
                        if isinstance(error, NodeUnavailable):  # else it is another release's or store's
                            bad.append((node, name))
                    continue
                self.found.copies += 1
                self.found.checked_bytes += len(content)
                if epoch is None or epoch_name(epoch.number) != name:
                    self._note(node_id, name, "it is damaged, or another epoch's")
                    bad.append((node, name))
                else:
                    good.setdefault(name, content)
        opened = {number for number, _ in list_files(self._nodes)}
        for node, name in bad:
            if name in good:
                self._heal_epoch(node, name, good[name])
            elif epoch_of(name) not in opened and epoch_of(name) < max(opened, default=0):
                self._set_unopened_aside(node, name)
            else:
                self.found.problems.append(f"{name} is good on no node")

    def _set_unopened_aside(self, node: Node, name: str) -> None:
        """No file of the journal is of that epoch: it was begun and never opened, else every
        healthy node would know it."""
        try:
            node.quarantine(name, "the epoch file is damaged, and the epoch was never opened")
        except StoreError as error:
            self.found.problems.append(f"{name} on node {node.node_id} is damaged and cannot be set aside: {error}")

    def _heal_epoch(self, node: Node, name: str, content: bytes) -> None:
        try:
            set_aside_copy(node, name, "the epoch file is damaged")
            node.write_whole(name, content)
        except StoreError as error:
            self.found.problems.append(f"{name} on node {node.node_id} is damaged and cannot be written anew: {error}")

    def descriptors(self, places: list[NodeEntry]) -> None:
        for place in places:
            node = self._nodes.get(place.node_id)
            if node is None or not Path(node.path).is_dir():
                continue
            self.found.copies += 1
            try:
                found = read_node_descriptor(Path(node.path), self._store_id)
            except StoreError as error:
                self._note(place.node_id, "objfs-node.json", str(error))
                continue
            if (found.node_id, found.generation) != (place.node_id, place.generation):
                self._note(place.node_id, "objfs-node.json", f"it is that of node {found.node_id}")

    # -- piece files -----------------------------------------------------------------

    async def piece_files(self) -> None:
        """Index snapshots and archives. A damaged copy is set aside where another is whole,
        which it is then made up from."""
        for prefix, suffix, magic in (
            (snapshots.PREFIX, ".snapshot", snapshots.MAGIC),
            (archive.PREFIX, ".archive", archive.MAGIC),
        ):
            whole: set[str] = set()
            bad: list[tuple[Node, str, str]] = []
            for node in self._nodes.values():
                for name in await anyio.to_thread.run_sync(_listed, node, prefix, suffix):
                    reason = await self._check_piece_file(node, name, magic)
                    if reason is None:
                        whole.add(name)
                    else:
                        bad.append((node, name, reason))
            for node, name, reason in bad:
                if await anyio.to_thread.run_sync(_exists, node, name):  # else a checkpoint dropped it meanwhile
                    await self._heal_piece_file(node, name, reason, name in whole)

    async def _check_piece_file(self, node: Node, name: str, magic: bytes) -> str | None:
        try:
            await self._pay(await anyio.to_thread.run_sync(node.size, name))
            await anyio.to_thread.run_sync(pieces.check_copy, node, name, magic)
        except StoreError as error:
            return await anyio.to_thread.run_sync(self._unless_gone, node, error)
        return None

    async def _heal_piece_file(self, node: Node, name: str, reason: str, whole: bool) -> None:
        self._note(node.node_id, name, reason)
        if whole:
            try:
                await anyio.to_thread.run_sync(node.quarantine, name, reason)
            except StoreError as error:
                self.found.problems.append(f"{name} on node {node.node_id} is damaged and cannot be set aside: {error}")
                return
            self.journal_damaged = True
        else:
            self.found.problems.append(f"{name} is good on no node")


def _exists(node: Node, name: str) -> bool:
    try:
        node.size(name)
    except StoreError:
        return False
    return True


def _listed(node: Node, prefix: str, suffix: str) -> list[str]:
    def names() -> Iterator[str]:
        for name in node.list(prefix):
            if name.endswith(suffix):
                yield name

    try:
        return list(names())
    except StoreError:
        return []  # the node is lost, which is told as such
