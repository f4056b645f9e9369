"""Store: the one facade both doors use. (Signatures first; see read_path, write_path.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from engine.changes import Change, CommitResult, Origin
from engine.interfaces import Buffer, Index, KeymapReader
from engine.types import Content, Manifest


class ContentWriter(Protocol):
    """Streams content in. Memory is bounded (a few MiB); write() pushes back."""

    size: int

    async def write(self, data: Buffer) -> None: ...  # NodeFull, WritesStopped
    async def finish(self) -> Content: ...  # every stripe named is synced; small content rides inside
    async def abort(self) -> None: ...


class Store(Protocol):
    index: Index
    keymap: KeymapReader

    async def freshen(self) -> None:
        """Call on arrival of a read: afterwards keymap shows all that was answered."""
        ...

    async def commit(self, change: Change, origin: Origin, *, durable: bool = True) -> CommitResult: ...
    def open_writer(self, *, sequential: bool = True) -> ContentWriter: ...
    def read(self, manifest: Manifest, offset: int = 0, length: int | None = None) -> AsyncIterator[memoryview]:
        """Verified bytes of [offset, offset+length), in pieces of at most 1 MiB, with
        read-ahead of a few pieces. Raises Unreadable before yielding wrong bytes."""
        ...

    async def read_range(self, manifest: Manifest, offset: int, length: int) -> memoryview: ...
    async def rewrite(self, base: Manifest, size: int, dirty: Sequence[tuple[int, Buffer]]) -> Content:
        """The content `base` cut or zero-extended to `size`, with `dirty` (offset, bytes;
        ascending, not overlapping, within size) laid over it. Only dirty ranges are stored
        again; clean parts are slices of base; never-written ranges are holes."""
        ...

    async def concatenate(self, manifests: Sequence[Manifest]) -> Content:
        """One manifest over several (multipart completion); large ones become a tree."""
        ...

    async def aclose(self) -> None: ...


@asynccontextmanager
async def open_store(data: str | Path) -> AsyncIterator[Store]:
    """`async with open_store(DATA) as store`: as a client when a server has it open, else
    itself (takes DATA/lock). Errors: NotAStore, UnknownFormat, StoreInUse, WritesStopped.

    Beyond the protocol above Store has: users (lookup(access_key) -> Credential|None, add,
    list), query(sql) -> pyarrow.Table, status() -> dict, fsck() -> list[str],
    replace_node(node_id, path), space() -> (total, free), check_space(bytes) raising NodeFull,
    expand(manifest) -> async iterator of leaf entries, bucket names via keymap.
    """
    raise NotImplementedError
    yield
