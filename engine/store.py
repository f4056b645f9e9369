"""Store: the one facade both doors use.

A door writes content through open_writer() or rewrite(), which return once the bytes are
synced in stripes (or ride along), then commits a change that names it; it reads a
version from `keymap` and its bytes through read(). Everything is async under trio and
asyncio; one Store per process, shared by its tasks. Keymap reads are synchronous and
belong on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine import limits
from engine.changes import Change, CommitResult, Origin
from engine.errors import NodeFull
from engine.fsck import check_store
from engine.interfaces import Buffer, Index, KeymapReader
from engine.manifests import cut, merge
from engine.nodes.directory import DirectoryNode
from engine.nodeset import NodeOpener
from engine.opening import Opening, Parts, init_store, open_parts
from engine.read_path import ContentReader
from engine.replacing import replace_node
from engine.secrets import Users
from engine.status import collect_status
from engine.tables.client import query_tables
from engine.types import Content, Entry, HoleEntry, Manifest, TreeEntry
from engine.write_path import ChunkSink, StreamWriter, cut_into, grow

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ContentWriter", "Opening", "Store", "init_store", "open_store"]


class ContentWriter(Protocol):
    """Streams content in. Memory is bounded (a few MiB); write() pushes back."""

    size: int

    async def write(self, data: Buffer) -> None: ...  # NodeFull, WritesStopped
    async def finish(self) -> Content: ...  # every stripe named is synced; small content rides inside
    async def abort(self) -> None: ...


class Store:
    """See the module. Made by open_store()."""

    def __init__(self, parts: Parts) -> None:
        self.index: Index = parts.index
        self.keymap: KeymapReader = parts.index.keymap
        self.users = Users(parts.data, parts.index)
        self.data = parts.data
        self.pins = parts.pins
        self._parts = parts
        self._reader = ContentReader(parts.plane, parts.index)

    @property
    def parts(self) -> Parts:
        """What it is made of, for engine.care."""
        return self._parts

    # -- commits and freshness -------------------------------------------------

    async def freshen(self) -> None:
        """Call on arrival of a read: afterwards keymap shows all that was answered."""
        await self.index.freshen()

    async def commit(self, change: Change, origin: Origin, *, durable: bool = True) -> CommitResult:
        """See Index.commit."""
        return await self.index.commit(change, origin, durable=durable)

    # -- content in ------------------------------------------------------------

    def open_writer(self) -> ContentWriter:
        """Like rewrite(), concatenate() and slice(): only while holding a pin (`pins`) from
        before the first look at the keymap until the commit has returned."""
        return StreamWriter(self._parts.plane, self.keymap, self.pins)

    async def rewrite(self, base: Manifest, size: int, dirty: Sequence[tuple[int, Buffer]]) -> Content:
        """The content `base` cut or zero-extended to `size`, with `dirty` (offset, bytes;
        ascending, not overlapping, within size) laid over it. Only dirty ranges and small
        neighbours are stored again; clean parts are slices of base; never-written ranges
        are holes. Raises NodeFull, WritesStopped, Unreadable."""
        sink = ChunkSink(self._parts.plane, self.keymap, self.pins)
        entries: list[Entry] = []
        position = 0
        for offset, data in dirty:
            assert position <= offset and offset + len(data) <= size, "dirty ranges ascend within size"
            before = await self._clean(base, position, offset)
            absorbed = await self._absorb(before)
            entries += before
            entries += await cut_into([*absorbed, data], sink)
            position = offset + len(data)
        entries += await self._clean(base, position, size)
        manifest = await grow(merge(entries), sink)
        return Content(manifest, await sink.finish())

    async def concatenate(self, manifests: Sequence[Manifest]) -> Content:
        """One manifest over several (multipart completion); large ones become a tree."""
        sink = ChunkSink(self._parts.plane, self.keymap, self.pins)
        manifest = await grow([entry for part in manifests for entry in part.entries], sink)
        return Content(manifest, await sink.finish())

    async def slice(self, manifest: Manifest, offset: int, length: int) -> Content:
        """The range as content of its own; no bytes move (UploadPartCopy)."""
        entries = await cut(manifest.entries, offset, offset + length, self._reader.load, keep_trees=True)
        sink = ChunkSink(self._parts.plane, self.keymap, self.pins)
        grown = await grow(entries, sink)
        return Content(grown, await sink.finish())

    async def _clean(self, base: Manifest, start: int, end: int) -> list[Entry]:
        entries = await cut(base.entries, start, min(end, base.length), self._reader.load, keep_trees=True)
        hole = end - max(start, base.length)
        return [*entries, HoleEntry(hole)] if hole > 0 else entries

    async def _absorb(self, before: list[Entry]) -> list[Buffer]:
        """Take a small last entry off `before` and return its bytes: stored again with the
        dirty range behind it, so that appends and scattered writes don't shred a file."""
        if not before or isinstance(before[-1], HoleEntry) or before[-1].length >= limits.CHUNK_BYTES_MIN:
            return []
        small = Manifest([before.pop()])
        return [await self._reader.read_range(small, 0, small.length)]

    # -- content out -----------------------------------------------------------

    def read(self, manifest: Manifest, offset: int = 0, length: int | None = None) -> AsyncIterator[memoryview]:
        """Verified bytes of [offset, offset+length), in pieces of at most 1 MiB. Raises
        Unreadable before it would yield wrong bytes."""
        return self._reader.read(manifest, offset, length)

    async def read_range(self, manifest: Manifest, offset: int, length: int) -> memoryview:
        return await self._reader.read_range(manifest, offset, length)

    def load_tree(self, entry: TreeEntry) -> Awaitable[Manifest]:
        """A node of a manifest's tree. Raises Unreadable, FragmentCorrupt."""
        return self._reader.load(entry)

    # -- the store itself ------------------------------------------------------

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of content the nodes can hold under the store's code."""
        return self._parts.nodes.space()

    def check_space(self, content_bytes: int) -> None:
        """Raises NodeFull unless `content_bytes` more would fit in the worst case."""
        _, free = self.space()
        if content_bytes > free:
            raise NodeFull(f"the nodes have room for {free} more bytes of content; delete something or add nodes")

    async def query(self, statement: str) -> pyarrow.Table:
        """Run one read-only SQL statement on the tables. Raises QueryFailed."""
        return await query_tables(self._parts, self.load_tree, statement)

    async def status(self) -> dict[str, Any]:
        """What `objfs status --json` prints."""
        return await collect_status(self._parts)

    async def fsck(self) -> list[str]:
        """Check that every version can be read and every counter holds; the problems."""
        return await check_store(self._parts, self._reader)

    async def replace_node(self, node_id: str, path: str | None = None) -> None:
        """Give a lost node an empty directory; repair fills it. Raises StoreError."""
        await replace_node(self._parts, node_id, path)


@asynccontextmanager
async def open_store(
    data: str | Path, opening: Opening = Opening.EITHER, *, node_opener: NodeOpener = DirectoryNode
) -> AsyncIterator[Store]:
    """`async with open_store(DATA) as store`: as a client when a server has it open, else
    itself (takes DATA/lock). Errors: NotAStore, UnknownFormat, StoreInUse, WritesStopped."""
    async with open_parts(Path(data), opening, node_opener=node_opener) as parts:
        yield Store(parts)
