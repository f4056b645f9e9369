"""A store with everything in it, made of random changes: also those of its care.

Frames are never read here, so chunks "lie" in segments that have no files, and the nodes
of manifests' trees are kept beside the index.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

from sql_lab import Lab, content_of, etag_of, some_change

from engine.changes import (
    AbortUpload,
    Change,
    CompleteUpload,
    Condemn,
    CreateBucket,
    CreateUpload,
    DeleteSegments,
    Door,
    DropJournal,
    FragmentsDamaged,
    FragmentsRepaired,
    MoveChunks,
    OpenSegment,
    Origin,
    PartChoice,
    PutPart,
    PutUser,
    PutVersion,
    RemoveNode,
    SealSegment,
    SegmentsScrubbed,
    SetBucketTags,
    SetNode,
    Spare,
)
from engine.errors import StoreError
from engine.index.local import LocalIndex
from engine.manifests import encode_manifest
from engine.types import (
    ChunkEntry,
    Content,
    Entry,
    HoleEntry,
    InlineEntry,
    Manifest,
    NewChunk,
    NodeState,
    ObjectPart,
    SegmentLocation,
    SegmentState,
    SliceEntry,
    TreeEntry,
    User,
)

STATES = [NodeState.HEALTHY] * 5 + list(NodeState)


class World:
    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.rng = random.Random(seed)
        self.trees: dict[bytes, Manifest] = {}
        self.next_offset = 128
        self.refused = 0

    async def load_tree(self, entry: TreeEntry) -> Manifest:
        return self.trees[entry.chunk_id]

    async def begin(self) -> None:
        for number in range(1, 9):
            await self.lab.commit(SetNode(f"node{number}", f"/disk{number}", f"zone{number % 3}"))
        for bucket in ("red", "blue"):
            await self.lab.commit(CreateBucket(bucket))
        await self.lab.commit(self._open())
        await self.lab.commit(PutUser(User("bob", "AKBOB", b"sealed")))
        await self.lab.commit(SetBucketTags("red", {"team": "ink"}))

    async def step(self) -> Change | None:
        """One change; None where it was refused or there was nothing to do."""
        change = self._care() if self.rng.random() < 0.5 else self._objects()
        if change is None:
            return None
        door = Door.MOUNT if getattr(change, "file_id", None) else self.rng.choice([Door.S3, Door.MOUNT])
        try:
            await self.lab.commit(change, Origin("ann", door=door))
        except StoreError:
            self.refused += 1
            return None
        return change

    async def drop_journal(self) -> None:
        """What rides in the journal moves to a segment; then nothing of it is needed."""
        await self.lab.commit(self._open())
        keymap, named = self.index.keymap, self.named()
        files = [container for container in keymap.containers() if container < 0]
        live = [chunk for container in files for chunk in keymap.chunks_in(container) if chunk.chunk_id in named]
        move = self._move(live)
        if move is not None:
            await self.lab.commit(move)
        await self.lab.commit(Condemn(files))
        dead = sum(len(keymap.chunks_in(container)) for container in files)
        lsn = keymap.applied_lsn()
        await self.lab.commit(DropJournal(lsn + 1, lsn, dead))

    @property
    def index(self) -> LocalIndex:
        return self.lab.index

    # -- objects -------------------------------------------------------------------

    def _objects(self) -> Change | None:
        match self.rng.randrange(8):
            case 0 | 1:
                content = self._content()
                text = repr(content.manifest).encode()
                return PutVersion(self._bucket(), f"large {self.rng.randrange(6)}", content, etag_of(text))
            case 2:
                return CreateUpload(self._bucket(), "part by part", user_metadata={"u": "1"}, tags={"t": "2"})
            case 3 | 4:
                return self._upload()
            case _:
                return some_change(self.rng, self.index)

    def _bucket(self) -> str:
        return self.rng.choice(["red", "blue"])

    def _upload(self) -> Change | None:
        bucket = self._bucket()
        uploads = self.index.keymap.uploads(bucket)
        if not uploads:
            return None
        upload = self.rng.choice(uploads)
        parts = self.index.keymap.parts(upload.upload_id)
        if self.rng.random() < 0.6 or not parts:
            content = self._content() if self.rng.random() < 0.5 else content_of(self.rng.randbytes(3))
            md5 = hashlib.md5(repr(content.manifest).encode()).digest()
            return PutPart(bucket, upload.key, upload.upload_id, self.rng.randrange(1, 4), content, md5)
        if self.rng.random() < 0.3:
            return AbortUpload(bucket, upload.key, upload.upload_id)
        entries = [entry for part in parts for entry in part.manifest.entries]
        choices = [PartChoice(part.number, part.lsn) for part in parts]
        sizes = [ObjectPart(part.number, part.size) for part in parts]
        content = Content(Manifest(entries))
        return CompleteUpload(bucket, upload.key, upload.upload_id, choices, content, "abc-2", sizes, new_file=True)

    def _content(self) -> Content:
        """Chunks in an open segment or riding, slices, holes, inline bytes, and sometimes trees."""
        chunks: list[NewChunk] = []
        entries = self._leaves(chunks)
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            if entries:  # a tree of nothing is never written
                entries = [self._tree(entries, chunks)]
            entries += self._leaves(chunks)
        return Content(Manifest(entries), chunks)

    def _leaves(self, chunks: list[NewChunk]) -> list[Entry]:
        entries: list[Entry] = []
        for _ in range(self.rng.randrange(4)):
            text = b"%d" % self.rng.randrange(60) * 9
            kind = self.rng.randrange(4)
            if kind == 0:
                entries.append(HoleEntry(self.rng.randrange(1, 99)))
            elif kind == 1:
                entries.append(InlineEntry(text))
            else:
                chunk_id = self._chunk(text, chunks)
                whole = ChunkEntry(chunk_id, len(text))
                entries.append(whole if kind == 2 else SliceEntry(chunk_id, len(text), 1, len(text) - 3))
        return entries

    def _tree(self, entries: list[Entry], chunks: list[NewChunk]) -> TreeEntry:
        node = Manifest(entries)
        text = encode_manifest(node)
        chunk_id = self._chunk(text, chunks)
        self.trees[chunk_id] = node
        return TreeEntry(chunk_id, len(text), node.length)

    def _chunk(self, text: bytes, chunks: list[NewChunk]) -> bytes:
        place = self._place(len(text)) if self.rng.random() < 0.7 else None
        if place is None:
            (chunk,) = content_of(text).new_chunks
        else:
            chunk = NewChunk(hashlib.sha256(text).digest(), len(text), location=place)
        if all(known.chunk_id != chunk.chunk_id for known in chunks):
            chunks.append(chunk)
        return chunk.chunk_id

    def _place(self, length: int) -> SegmentLocation | None:
        segments = [s for s in self.index.keymap.segments() if s.state is SegmentState.OPEN]
        if not segments:
            return None
        self.next_offset += 100
        return SegmentLocation(self.rng.choice(segments).segment_id, self.next_offset, 25, 0, length + 96)

    # -- care ------------------------------------------------------------------------

    def _open(self) -> OpenSegment:
        k = self.rng.choice([2, 4])
        names = self.rng.sample([f"node{number}" for number in range(1, 8)], k + 2)
        return OpenSegment(self.rng.getrandbits(62) | 1, k, 2, names, owner="me")

    def _care(self) -> Change | None:
        segments = list(self.index.keymap.segments())
        segment = self.rng.choice(segments) if segments else None
        kind = self.rng.randrange(12)
        if kind <= 1:
            return self._open()
        if kind == 2:
            number = self.rng.randrange(1, 9)
            return SetNode(f"node{number}", f"/disk{number}", state=self.rng.choice(STATES), generation=2)
        if kind == 3:
            return RemoveNode("node8")
        if kind == 4:
            return self._drop_journal()
        if segment is None:
            return None
        indexes = self.rng.sample(range(segment.k + segment.m), self.rng.randrange(3))
        match kind:
            case 5 | 6:
                return SealSegment(segment.segment_id, 10**9, indexes, stripes=7)
            case 7:
                return FragmentsDamaged(segment.segment_id, indexes, "a rotten frame")
            case 8:
                return FragmentsRepaired(segment.segment_id, segment.node_ids[::-1], indexes)
            case 9:
                checked = [s.segment_id for s in segments if self.rng.random() < 0.5]
                return SegmentsScrubbed(checked, self.rng.randrange(1, 10**18))
            case 10:
                return self._condemn_or_spare()
            case _:
                return self._move_or_delete()

    def _condemn_or_spare(self) -> Change | None:
        containers = [c for c in self.index.keymap.containers() if self.rng.random() < 0.5]
        if self.rng.random() < 0.2:
            return Spare(containers)
        sealed = [s.segment_id for s in self.index.keymap.segments() if s.state is SegmentState.SEALED]
        return Condemn([c for c in containers if c < 0 or c in sealed])

    def _move_or_delete(self) -> Change | None:
        """What is named in a condemned container moves; with that done, the container goes."""
        keymap = self.index.keymap
        condemned = [s.segment_id for s in keymap.segments() if s.condemned_lsn]
        if not condemned:
            return None
        segment_id = self.rng.choice(condemned)
        chunks = keymap.chunks_in(segment_id)
        named = self.named()
        live = [chunk for chunk in chunks if chunk.chunk_id in named]
        if not live:
            return DeleteSegments([segment_id], len(chunks))
        return self._move(live)

    def _move(self, live: list[Any]) -> MoveChunks | None:
        moves = [
            NewChunk(chunk.chunk_id, chunk.length, location=place)
            for chunk in live
            if (place := self._place(chunk.length)) is not None
        ]
        return MoveChunks(moves, before=[chunk.location for chunk in live]) if moves else None

    def _drop_journal(self) -> Change | None:
        keymap = self.index.keymap
        files = sorted(-container for container in keymap.containers() if container < 0)
        named = self.named()
        live = [chunk for first in files for chunk in keymap.chunks_in(-first) if chunk.chunk_id in named]
        if live and self.rng.random() < 0.8:
            return self._move(live)
        lsn = keymap.applied_lsn()
        dead = sum(len(keymap.chunks_in(-first)) for first in files)
        return None if live else DropJournal(lsn + 1, lsn, dead)

    # -- by brute force ----------------------------------------------------------------

    def named(self) -> set[bytes]:
        """Every chunk some version or part names."""
        with self.index.keymap.snapshot() as reader:
            return {chunk_id for manifest in reader.manifests() for chunk_id in self.chunks_of(manifest)}

    def chunks_of(self, manifest: Manifest) -> set[bytes]:
        found: set[bytes] = set()
        for entry in manifest.entries:
            if isinstance(entry, TreeEntry):
                found |= {entry.chunk_id} | self.chunks_of(self.trees[entry.chunk_id])
            elif isinstance(entry, ChunkEntry | SliceEntry):
                found.add(entry.chunk_id)
        return found
