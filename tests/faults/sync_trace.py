"""Judges when an answer was given: were its bytes safe on enough nodes by then?

The log of the lossy filesystem says, in order and with the time, what became safe on
every node; the client notes when each answer reached it, by the same clock. So for every
record of the journal, and every stripe its content lies in, there is a moment from which
a power cut could not take it any more: that moment must lie before the answer.

- a commit record (with the content that rides in it) is safe on m+1 nodes: any m may go;
- a stripe is safe on all k+m nodes of its segment, so that any m of them may go;
- so are their files' headers, and their names up to the top of the node;
- the epoch file that says which records count is safe on m+1 nodes.

The store is read with the engine's own readers, after it was stopped.
"""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lossy.disk import ROOT

from engine.changes import Change, CompleteUpload, DeleteKey, PutVersion, Rename
from engine.journal.reading import FileKey
from engine.journal.records import FILE_HEADER_BYTES, RawRecord, decode_payload, epoch_name, journal_name
from engine.journal.recovery import JournalScan
from engine.nodeset import NodeSet
from engine.segments.format import FILE_HEADER_BYTES as SEGMENT_HEADER_BYTES
from engine.segments.format import STRIPE_HEADER_BYTES, fragment_name
from engine.store import Store
from engine.types import ChunkEntry, JournalLocation, Manifest, SegmentLocation, TreeEntry

NEVER = 1 << 62


@dataclass(frozen=True)
class Answered:
    """An acknowledged change of a key that nobody else uses. `kind`: put, delete, rename."""

    kind: str
    key: str
    time_ns: int
    size: int = 0


@dataclass
class _Inode:
    """Which bytes became safe when: (start, end, time), in the order of their time."""

    synced: list[tuple[int, int, int]] = field(default_factory=list)


class SafeSince:
    """From when on bytes and names were safe, by the log."""

    def __init__(self, log: Path) -> None:
        self._inodes: dict[int, _Inode] = {}
        self._names: dict[tuple[int, str], list[tuple[int, int]]] = {}  # → (inode, since when), one after another
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if "synced" in event:
                file = self._inodes.setdefault(event["synced"], _Inode())
                for change in event["changes"]:
                    if change[0] == "write":
                        file.synced.append((change[1], change[1] + change[2], event["time_ns"]))
            else:
                directory, name, inode = event["bound"]
                if inode is not None:
                    self._names.setdefault((directory, name), []).append((inode, event["time_ns"]))

    def bytes_of(self, path: str, offset: int, length: int) -> int:
        """The time from which bytes [offset, offset+length) of the file and its name were
        safe; NEVER if they were not. A file that repair put in its place later is as good."""
        *directories, name = path.split("/")
        inode, since = ROOT, 0
        for directory in directories:
            inode, bound = self._names.get((inode, directory), [(0, NEVER)])[-1]
            since = max(since, bound)
        times = [
            max(since, bound, self._covered(self._inodes.get(file, _Inode()).synced, offset, offset + length))
            for file, bound in self._names.get((inode, name), [])
        ]
        return min(times, default=NEVER)

    def _covered(self, synced: Sequence[tuple[int, int, int]], start: int, end: int) -> int:
        """When the last byte of [start, end) was first synced."""
        since = 0
        open_ranges = [(start, end)] if end > start else []
        for first, stop, moment in synced:
            left = []
            for low, high in open_ranges:
                if stop <= low or first >= high:
                    left.append((low, high))
                    continue
                since = moment
                left += [(low, first)] if low < first else []
                left += [(stop, high)] if stop < high else []
            open_ranges = left
            if not open_ranges:
                return since
        return NEVER if open_ranges else since


class Judge:
    """Of one stopped store, opened by the caller as `store`."""

    def __init__(self, log: Path, store: Store, nodes: NodeSet, node_paths: dict[str, str], m: int) -> None:
        """`node_paths`: node id → its directory below the top of the lossy filesystem."""
        self._safe = SafeSince(log)
        self._store = store
        self._paths = node_paths
        self._m = m
        self._records: dict[tuple[str, str], list[tuple[FileKey, int, RawRecord, Change]]] = {}
        for key, offset, raw in JournalScan(nodes.nodes, nodes.descriptor.store_id).records(1):
            change = decode_payload(raw).change
            for named in _named(change):
                self._records.setdefault(named, []).append((key, offset, raw, change))

    async def problems(self, answers: Sequence[Answered]) -> list[str]:
        """What was answered too early, in words."""
        found = []
        for answer in answers:
            key, offset, raw, change = self._record_of(answer)
            for what, since in [*self._record(key, offset, raw.length), *await self._content(change)]:
                if since >= answer.time_ns:
                    late = "never" if since == NEVER else f"{(since - answer.time_ns) / 1e6:.1f} ms later"
                    found.append(f"{answer.kind} {answer.key} was answered before it was safe: {what} {late}")
        return found

    def _record_of(self, answer: Answered) -> tuple[FileKey, int, RawRecord, Change]:
        matching = [
            entry
            for entry in self._records.get((answer.kind, answer.key), [])
            if not isinstance(entry[3], PutVersion | CompleteUpload) or entry[3].content.size == answer.size
        ]
        assert matching, f"{answer.kind} {answer.key} was acknowledged and is in no journal record"
        return matching[0]

    # -- from when on something was safe ----------------------------------------

    def _record(self, key: FileKey, offset: int, length: int) -> Iterator[tuple[str, int]]:
        name = journal_name(*key)
        yield f"the record on {self._m + 1} nodes", self._on_copies(name, (0, FILE_HEADER_BYTES), (offset, length))
        yield f"its epoch on {self._m + 1} nodes", self._on_copies(epoch_name(key[0]), (0, 1))

    async def _content(self, change: Change) -> list[tuple[str, int]]:
        if not isinstance(change, PutVersion | CompleteUpload):
            return []
        chunks = [chunk async for chunk in self._chunks(change.content.manifest)]
        locations = self._store.keymap.locations(chunks)
        assert locations.keys() == set(chunks), "every chunk of what was acknowledged is somewhere"
        found = []
        for location in locations.values():
            if isinstance(location, JournalLocation):
                name = journal_name(location.epoch, location.first_lsn)
                found.append(("riding content", self._on_copies(name, (location.offset, location.length))))
            else:
                found.append(self._stripe(location))
        return found

    async def _chunks(self, manifest: Manifest) -> AsyncIterator[bytes]:
        for entry in manifest.entries:
            if isinstance(entry, TreeEntry):
                yield entry.chunk_id
                async for chunk in self._chunks(await self._store.load_tree(entry)):
                    yield chunk
            elif isinstance(entry, ChunkEntry):
                yield entry.chunk_id

    def _stripe(self, location: SegmentLocation) -> tuple[str, int]:
        segment = self._store.keymap.segment(location.segment_id)
        assert segment is not None and len(segment.node_ids) == segment.k + segment.m
        ranges = ((0, SEGMENT_HEADER_BYTES), (location.stripe_offset, STRIPE_HEADER_BYTES + location.fragment_length))
        since = max(
            self._on_node(node_id, fragment_name(location.segment_id, index), *ranges)
            for index, node_id in enumerate(segment.node_ids)
        )
        return f"a stripe on all {len(segment.node_ids)} nodes", since

    def _on_copies(self, name: str, *ranges: tuple[int, int]) -> int:
        times: list[int] = []
        for node_id in self._paths:
            insort(times, self._on_node(node_id, name, *ranges))
        return times[self._m]

    def _on_node(self, node_id: str, name: str, *ranges: tuple[int, int]) -> int:
        return max(self._safe.bytes_of(f"{self._paths[node_id]}/{name}", *part) for part in ranges)


def _named(change: Change) -> Iterator[tuple[str, str]]:
    match change:
        case PutVersion() | CompleteUpload():
            yield "put", change.key
        case DeleteKey():
            yield "delete", change.key
        case Rename():
            yield "rename", change.target_key
        case _:
            return
