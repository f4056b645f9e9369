"""The seams of the store, as protocols. One contract suite in tests/contract runs over
every implementation of each. async methods must run under trio and asyncio (anyio).

Node        a place for fragment and journal files (directory, memory, remote, …)
DataPlane   frames in, locations out; locations in, verified frames out
KeymapReader  the hot, derived maps; synchronous, microseconds, safe on the event loop
Index       the commit order; local (owns the journal) or a client of the index process
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from msgspec import Struct

from engine.changes import Change, CommitResult, Origin, Record, Touched
from engine.types import (
    Bucket,
    JournalLocation,
    Location,
    Manifest,
    NodeEntry,
    Part,
    Segment,
    SegmentLocation,
    Upload,
    User,
    Version,
)

Buffer = bytes | bytearray | memoryview


class NodeSpace(Struct, frozen=True):
    total: int
    free: int  # bytes an append may still use
    device: int  # st_dev, or 0 if unknown: nodes of one device fail together


class Node(Protocol):
    """A storage node. Names are relative POSIX paths ("segments/ab/…"). Blocking calls:
    callers put them in threads; append/pwrite into the page cache and warm reads may
    stay on the loop. Errors: NodeUnavailable, NodeFull, FragmentMissing, WrongStore, and
    FragmentCorrupt from append() if the file does not end at `offset`."""

    node_id: str
    path: str

    def check(self) -> None: ...  # descriptor there and ours, else NodeUnavailable/WrongStore
    def create(self, name: str) -> None: ...  # new empty file; exists: StoreError
    def append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None: ...  # at exactly offset
    def sync(self, name: str) -> None: ...  # fdatasync; first sync of a new file syncs its directories too
    def read(self, name: str, offset: int, length: int) -> bytes: ...  # short at end of file
    def read_warm(self, name: str, offset: int, length: int) -> bytes | None: ...  # at once, or None if it would wait
    def size(self, name: str) -> int: ...
    def truncate(self, name: str, size: int) -> None: ...
    def list(self, prefix: str) -> Iterator[str]: ...
    def delete(self, name: str) -> None: ...
    def rename(self, name: str, target: str) -> None: ...  # of a synced file: atomic, replaces, durable on return
    def quarantine(self, name: str, reason: str) -> None: ...  # set aside, kept, with a note
    def write_whole(self, name: str, content: bytes) -> None: ...  # atomic replace, durable on return
    def space(self) -> NodeSpace: ...
    def reserved(self) -> int: ...  # bytes set aside, taken from space().free; never in list()
    def set_reserve(self, count: int) -> None: ...  # exactly; more than fits: NodeFull, and it stays as it was
    def close(self) -> None: ...


class DataPlane(Protocol):
    """Erasure-coded segments over the nodes. One per process; owns its open segment."""

    async def append(self, frames: Sequence[bytes]) -> list[SegmentLocation]:
        """Pack whole frames into stripes of this process's open segment, write them to
        all nodes; not yet synced. Errors: NodeFull, WritesStopped."""
        ...

    async def sync(self) -> None:
        """Return when every frame appended before the call is synced on all n nodes of
        its segment. If a node failed meanwhile, the stripes not yet synced have been
        written again to a new segment: see `relocated`. Group sync: callers share."""
        ...

    def relocated(self, location: SegmentLocation) -> SegmentLocation:
        """Where a frame appended earlier by this process lies now (after sync)."""
        ...

    async def read(self, locations: Sequence[SegmentLocation], chunk_ids: Sequence[bytes] | None = None) -> list[bytes]:
        """Frames, in order, each verified by its header and XXH3 (and of `chunk_ids`, if
        given); decodes degraded stripes. Errors: Unreadable."""
        ...

    async def seal(self) -> None: ...  # seal this process's open segment if any
    async def aclose(self) -> None: ...  # seals


class ListPage(Struct, frozen=True):
    """A page of a listing. `next_after`: pass as `after` for the next page (None: last).
    Prefixes and versions are each in key order; delete markers are never in it."""

    versions: list[Version]
    common_prefixes: list[str]
    next_after: str | None = None


class VersionsPage(Struct, frozen=True):
    """A page of ListObjectVersions: versions and markers by key, newest first, with
    is_latest set."""

    versions: list[Version]
    common_prefixes: list[str]
    next_key: str | None = None
    next_version_id: str | None = None


class Child(Struct, frozen=True):
    """One name in a directory: a file (`version`, without manifest) or a directory
    (`version` is its marker, or None)."""

    name: str
    is_directory: bool
    version: Version | None


class StoredChunk(Struct, frozen=True):
    """A chunk the keymap knows. `stored` is its frame's length; `bucket_id` the bucket
    whose write brought it."""

    scope: int
    chunk_id: bytes
    length: int
    stored: int
    location: Location
    bucket_id: int


class KeymapReader(Protocol):
    """Point reads and scans over the derived maps. Each call sees one snapshot."""

    def snapshot(self) -> AbstractContextManager[KeymapReader]:
        """A reader of its own, for one thread, whose calls all see the state of one LSN."""
        ...

    def applied_lsn(self) -> int: ...
    def bucket(self, name: str) -> Bucket: ...  # NoSuchBucket
    def buckets(self) -> list[Bucket]: ...
    def head(self, bucket: str, key: str) -> Version | None: ...  # newest; may be a marker; NoSuchBucket
    def version(self, bucket: str, key: str, version_id: str) -> Version | None: ...
    def list_objects(
        self, bucket: str, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> ListPage:
        """Keys > after, with prefix, no markers. A common prefix <= after is skipped. At
        most `limit` versions + prefixes. One range scan; skips to the next prefix at each
        delimiter. Versions come without manifest."""
        ...

    def list_versions(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionsPage: ...
    def upload(self, bucket: str, key: str, upload_id: str) -> Upload: ...  # NoSuchUpload
    def uploads(
        self, bucket: str, prefix: str = "", after_key: str = "", after_upload_id: str = "", limit: int = 1000
    ) -> list[Upload]: ...
    def parts(self, upload_id: str, after: int = 0, limit: int = 10_000) -> list[Part]: ...
    def locations(self, chunk_ids: Iterable[bytes], scope: int = 0) -> dict[bytes, Location]: ...  # unknown: left out
    def matchable(self, chunk_ids: Iterable[bytes], scope: int = 0) -> set[bytes]:
        """Which of the chunks a new manifest may name without bringing them: known, and
        not in a condemned container. Only under a pin taken before (engine.pins)."""
        ...

    def chunks_in(self, container: int, limit: int = -1, after: tuple[int, bytes] = (-1, b"")) -> list[StoredChunk]:
        """By (scope, chunk id), beyond `after`; at most `limit` of them (-1: all). For
        containers see engine.changes.Condemn."""
        ...

    def journal_containers(self) -> dict[int, int]: ...  # containers() of journal files only: quicker
    def containers(self) -> dict[int, int]: ...  # container → bytes of the frames in it that chunks lie at
    def condemned(self) -> dict[int, int]: ...  # container → LSN of the record that condemned it
    def manifests(self, after_lsn: int = 0) -> Iterator[Manifest]:
        """Of every version, delete markers apart, and every part published after the LSN.
        In a snapshot() only: it takes its time."""
        ...

    # everything of one kind, in a snapshot() only: they take their time
    def all_versions(self, bucket: str) -> Iterator[Version]: ...  # markers and older ones too, with manifests
    def all_uploads(self) -> Iterator[Upload]: ...
    def all_parts(self) -> Iterator[Part]: ...
    def all_chunks(self) -> Iterator[StoredChunk]: ...
    def journal_first_lsn(self) -> int: ...  # the oldest LSN the journal still holds
    def was_deleted(self, segment_id: int) -> bool: ...  # a segment that was there and was deleted
    def users(self) -> list[User]: ...
    def user_by_access_key(self, access_key: str) -> User | None: ...
    def nodes(self) -> list[NodeEntry]: ...
    def segment(self, segment_id: int) -> Segment | None: ...
    def segments(self) -> Iterator[Segment]: ...
    def open_segments(self) -> list[Segment]: ...
    # the tree view (design.md section 7); path components are key components
    def lookup(self, bucket: str, parent: str, name: str) -> Child | None:
        """`parent` is "" or ends in "/". A directory (marker or anything below) wins
        over a file of the same name."""
        ...

    def children(self, bucket: str, parent: str, after: str = "", limit: int = 1000) -> list[Child]:
        """Names > after in the directory, in key order, without hidden names (names of
        "", ".", "..", with NUL, over 255 bytes, files shadowed by a directory)."""
        ...

    def names(self, file_id: int) -> list[tuple[str, str]]: ...  # (bucket, key) of every hard link
    def hidden_keys(self) -> int: ...  # keys the tree cannot show
    def counters(self) -> dict[str, int]: ...  # objects, versions, logical_bytes, chunks, chunk_bytes, stored_bytes …


class FeedBatch(Struct, frozen=True):
    """A stretch of the journal, in order. `dropped`: the subscriber fell out of the
    window; it must drop all caches and reread, and if it confirms, subscribe anew.
    `touched` names what changed. `awaited`, with nothing in it: from now on changes wait
    for what this subscriber confirms."""

    first_lsn: int
    last_lsn: int
    records: list[Record]
    touched: list[Touched]
    dropped: bool = False
    awaited: bool = False


Confirm = Callable[[], Awaitable[None]]


class Index(Protocol):
    """The commit order. Errors of commit: whatever the change's docstring names, and
    WritesStopped, IndexUnavailable. A commit whose request_id was answered already
    returns that answer."""

    @property
    def keymap(self) -> KeymapReader: ...

    async def commit(self, change: Change, origin: Origin, *, durable: bool = True) -> CommitResult:
        """Decide, order, apply. Returns once applied and, if `durable`, synced on m+1
        nodes, and after every confirming subscriber but origin.mount_id confirmed."""
        ...

    async def freshen(self) -> None:
        """Return once the keymap has applied everything answered to anyone before the
        call. Usually returns at once, without suspending."""
        ...

    async def wait_durable(self, lsn: int) -> None: ...  # at once if already
    def durable_lsn(self) -> int: ...
    def subscribe(
        self, *, subscriber_id: str, confirms: bool, from_lsn: int | None = None
    ) -> AsyncIterator[tuple[FeedBatch, Confirm]]:
        """The change feed from `from_lsn` on (None: from now). A confirming subscriber
        must await confirm() after each batch within LEASE_WAIT_SECONDS, or it is dropped (its
        next batch says so). Batches of its own changes alone are not sent to a mount."""
        ...

    async def read_frame(self, location: JournalLocation, chunk_id: bytes | None = None) -> bytes:
        """Verified, and of `chunk_id` if given, from any good replica. Errors: Unreadable."""
        ...

    async def journal_under_redundancy(self) -> int: ...  # records whole on fewer than m+1 healthy nodes
    async def heal_journal(self) -> None: ...  # reads every replica and writes damaged ones anew
    async def rotate_journal(self) -> int:
        """Close the current journal file: the next record opens another. Returns the last
        LSN before that; all up to it is durable. Raises WritesStopped."""
        ...

    async def request_seal(self) -> None: ...  # every writer of the store seals its open segment soon
    def seal_request(self) -> int: ...  # grows with every request_seal()
    def condemned_lsn(self) -> int: ...  # of the newest Condemn that is applied; for engine.pins
    async def recount(self) -> list[str]: ...  # counters that disagree with a recount, in words
    def awaits(self, subscriber_id: str) -> bool: ...  # changes wait for what it confirms, as far as known here
    async def aclose(self) -> None: ...
