"""The mark: which chunks something names.

Every version, noncurrent version and uploaded part names chunks; the nodes of a manifest
tree are chunks too, and are named with what they lead to. So are the chunks some process
holds (engine.pins). The set only grows: extend() adds what was published since, whether
it is still there or not, so that a chunk outside the set has been named by nothing from
the first snapshot until the last extend().

Memory is bounded: the set is a scratch database in DATA/index, which is never synced and
is removed at the end. Belongs to one task, which holds the care lock: nobody drops chunks
meanwhile. Rows are worked on in threads, one at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from pathlib import Path

import anyio.to_thread
import msgspec

from engine.care.pace import Meter, Report, silent
from engine.changes import CompleteUpload, PutPart, PutVersion, Record
from engine.errors import CollectionStopped, StoreError
from engine.interfaces import KeymapReader, StoredChunk
from engine.opening import Parts
from engine.pins import held_chunks
from engine.read_path import ContentReader
from engine.types import ChunkEntry, Manifest, SliceEntry, TreeEntry

SCRATCH_NAME = "collection.scratch"
MANIFESTS_AT_ONCE = 2000
TREES_AT_ONCE = 32
IDS_AT_ONCE = 500
CACHE_KIBIBYTES = 64 * 1024

# fresh: found but not looked up in the keymap yet. trees: nodes to expand, once each.
_TABLES = """
CREATE TABLE live (scope INTEGER, chunk_id BLOB, PRIMARY KEY (scope, chunk_id)) WITHOUT ROWID;
CREATE TABLE fresh (scope INTEGER, chunk_id BLOB, PRIMARY KEY (scope, chunk_id)) WITHOUT ROWID;
CREATE TABLE trees (scope INTEGER, chunk_id BLOB, chunk_length INTEGER, length INTEGER, expanded INTEGER,
    PRIMARY KEY (scope, chunk_id)) WITHOUT ROWID;
CREATE INDEX unexpanded ON trees (expanded) WHERE expanded = 0;
"""

_Tree = tuple[int, TreeEntry]  # with its scope


@asynccontextmanager
async def marking(parts: Parts, *, report: Report = silent) -> AsyncIterator[Mark]:
    """A mark over everything named now. Raises CollectionStopped when something names a
    chunk the keymap does not have, or a manifest's tree can't be read."""
    path = parts.data / "index" / SCRATCH_NAME
    _remove(path)  # left by a process that was killed
    mark = Mark(parts, path, report)
    try:
        await mark.begin()
        yield mark
    finally:
        mark.close()
        _remove(path)


def _remove(path: Path) -> None:
    for suffix in ("", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class Mark:
    """See the module; made by marking()."""

    def __init__(self, parts: Parts, path: Path, report: Report) -> None:
        self._parts = parts
        self._report = report
        self._reader = ContentReader(parts.plane, parts.index)
        self.lsn = 0  # everything published up to here is in the set
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
        self._db.executescript(_TABLES)
        self._db.execute("BEGIN EXCLUSIVE")  # never ended: nobody else reads it, nothing of it must last

    async def begin(self) -> None:
        with self._parts.index.keymap.snapshot() as reader:
            self.lsn = reader.applied_lsn()
            meter = Meter("mark", reader.counters()["versions"], self._report, unit="versions")
            manifests = reader.manifests()
            while count := await anyio.to_thread.run_sync(self._add_some, manifests):
                meter.add(count)
            meter.tell()
        await self._settle(strict=True)

    async def extend(self) -> int:
        """Add what was published since; the LSN up to which the set is complete now. What a
        pin may still bring to the index must have been waited for."""
        target = self._parts.index.keymap.applied_lsn()
        while self.lsn < target:
            before = self.lsn
            await self._follow(target)
            if self.lsn == before:
                raise CollectionStopped(
                    f"the journal does not tell what happened after LSN {before}; nothing was deleted, collect again"
                )
        # What was published and is gone again may name what was never taken in: no harm.
        await self._settle(strict=False)
        return self.lsn

    async def split(self, chunks: Sequence[StoredChunk]) -> tuple[list[StoredChunk], list[StoredChunk]]:
        """(named, dead)."""
        return await anyio.to_thread.run_sync(self._split, chunks)

    def close(self) -> None:
        self._db.close()

    # -- adding ----------------------------------------------------------------

    async def _follow(self, target: int) -> None:
        feed = self._parts.index.subscribe(subscriber_id="collection", confirms=False, from_lsn=self.lsn + 1)
        async with aclosing(feed) as batches:  # type: ignore[type-var]
            async for batch, _ in batches:
                if batch.dropped:
                    return  # too slow for the feed's window: the journal has it
                records = [record for record in batch.records if record.lsn > self.lsn]
                if records and records[0].lsn != self.lsn + 1:
                    raise CollectionStopped(
                        f"the journal does not tell what happened between LSN {self.lsn} and {records[0].lsn}; "
                        "nothing was deleted, collect again"
                    )
                await anyio.to_thread.run_sync(self._add, [found for record in records for found in _named_by(record)])
                self.lsn = records[-1].lsn if records else self.lsn
                if self.lsn >= target:
                    return

    def _add_some(self, manifests: Iterator[Manifest]) -> int:
        some = list(islice(manifests, MANIFESTS_AT_ONCE))
        self._add(some)
        return len(some)

    def _add(self, manifests: Iterable[Manifest]) -> None:
        chunks: set[tuple[int, bytes]] = set()
        trees: set[tuple[int, bytes, int, int]] = set()
        for manifest in manifests:
            for entry in manifest.entries:
                if isinstance(entry, ChunkEntry | SliceEntry):
                    chunks.add((manifest.scope, entry.chunk_id))
                elif isinstance(entry, TreeEntry):
                    chunks.add((manifest.scope, entry.chunk_id))
                    trees.add((manifest.scope, entry.chunk_id, entry.chunk_length, entry.length))
        self._insert(chunks)
        self._db.executemany("INSERT OR IGNORE INTO trees VALUES (?, ?, ?, ?, 0)", sorted(trees))

    def _insert(self, chunks: Iterable[tuple[int, bytes]]) -> None:
        self._db.executemany(
            """INSERT OR IGNORE INTO fresh SELECT ?1, ?2
            WHERE NOT EXISTS (SELECT 1 FROM live WHERE scope = ?1 AND chunk_id = ?2)""",
            sorted(chunks),
        )

    async def _settle(self, *, strict: bool) -> None:
        """Expand every tree, take in what is held, and (`strict`) see that the keymap has
        every chunk that is named."""
        held = await anyio.to_thread.run_sync(held_chunks, self._parts.data / "index")
        # A held chunk may have been let go and dropped in the past: it need not be there.
        await anyio.to_thread.run_sync(
            lambda: self._db.executemany("INSERT OR IGNORE INTO live VALUES (0, ?)", ((one,) for one in sorted(held)))
        )
        while trees := await anyio.to_thread.run_sync(self._unexpanded):
            for scope, tree in trees:
                if not strict and not self._parts.index.keymap.locations([tree.chunk_id], scope):
                    continue
                node = await self._load(tree)
                await anyio.to_thread.run_sync(self._add, [msgspec.structs.replace(node, scope=scope)])
            await anyio.to_thread.run_sync(self._note_expanded, trees)
        with self._parts.index.keymap.snapshot() as reader:
            while await anyio.to_thread.run_sync(self._look_up, reader, strict):
                pass

    def _unexpanded(self) -> list[_Tree]:
        select = "SELECT scope, chunk_id, chunk_length, length FROM trees WHERE expanded = 0 LIMIT ?"
        rows = self._db.execute(select, (TREES_AT_ONCE,))
        return [(scope, TreeEntry(chunk_id, chunk_length, length)) for scope, chunk_id, chunk_length, length in rows]

    def _note_expanded(self, trees: Sequence[_Tree]) -> None:
        update = "UPDATE trees SET expanded = 1 WHERE scope = ? AND chunk_id = ?"
        self._db.executemany(update, [(scope, tree.chunk_id) for scope, tree in trees])

    async def _load(self, tree: TreeEntry) -> Manifest:
        try:
            return await self._reader.load(tree)
        except (StoreError, msgspec.MsgspecError) as error:
            raise CollectionStopped(
                f"the manifest in chunk {tree.chunk_id.hex()} can't be read ({error}), so what it names is not known; "
                "nothing was deleted; run objfs repair, then collect again"
            ) from error

    def _look_up(self, reader: KeymapReader, strict: bool) -> int:
        """Move some of what is fresh to what is live."""
        rows = self._db.execute("SELECT scope, chunk_id FROM fresh LIMIT ?", (IDS_AT_ONCE,)).fetchall()
        for scope in {scope for scope, _ in rows if strict}:
            wanted = [chunk_id for of, chunk_id in rows if of == scope]
            known = reader.locations(wanted, scope)
            lost = next((chunk_id for chunk_id in wanted if chunk_id not in known), None)
            if lost is not None:
                raise CollectionStopped(
                    f"chunk {lost.hex()} is named but the index does not know it; "
                    "nothing was deleted; run objfs fsck, then objfs rebuild-index"
                )
        self._db.executemany("INSERT OR IGNORE INTO live VALUES (?, ?)", rows)
        self._db.executemany("DELETE FROM fresh WHERE scope = ? AND chunk_id = ?", rows)
        return len(rows)

    # -- asking ----------------------------------------------------------------

    def _split(self, chunks: Sequence[StoredChunk]) -> tuple[list[StoredChunk], list[StoredChunk]]:
        named: list[StoredChunk] = []
        dead: list[StoredChunk] = []
        select = "SELECT 1 FROM live WHERE scope = ? AND chunk_id = ?"
        for chunk in chunks:
            found = self._db.execute(select, (chunk.scope, chunk.chunk_id)).fetchone()
            (dead if found is None else named).append(chunk)
        return named, dead


def _named_by(record: Record) -> list[Manifest]:
    change = record.change
    return [change.content.manifest] if isinstance(change, PutVersion | PutPart | CompleteUpload) else []
