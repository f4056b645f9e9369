"""Chunks and segments in the keymap: where every frame lies, and what may lie where.

Used inside the writer's transaction; one thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import msgspec

from engine.changes import (
    Change,
    CompleteUpload,
    FragmentsDamaged,
    FragmentsRepaired,
    MoveChunks,
    OpenSegment,
    PutPart,
    PutVersion,
    SealSegment,
    SegmentsScrubbed,
)
from engine.errors import PreconditionFailed, StoreError, WritesStopped
from engine.keymap.rows import decode_location, encode
from engine.keymap.state import State
from engine.types import (
    Bucket,
    ChunkEntry,
    Content,
    JournalLocation,
    Location,
    NewChunk,
    Segment,
    SegmentLocation,
    SegmentState,
    SliceEntry,
    TreeEntry,
)

_UNPLACED = b""  # never committed: the record's place is known once it is written
_NOWHERE = 0  # the container of what is _UNPLACED
_IDS_AT_ONCE = 500
decode_segment = msgspec.msgpack.Decoder(Segment).decode


def new_chunks(change: Change) -> Sequence[NewChunk]:
    """The chunks a change brings along, stored or riding."""
    if isinstance(change, PutVersion | PutPart | CompleteUpload):
        return change.content.new_chunks
    return change.moves if isinstance(change, MoveChunks) else ()


def find_segment(db: sqlite3.Connection, segment_id: int) -> Segment | None:
    row = db.execute("SELECT body FROM segments WHERE segment_id = ?", (segment_id,)).fetchone()
    return None if row is None else decode_segment(row[0])


def container_of(location: Location) -> int:
    """What a frame lies in: its segment's id, or minus the first LSN of its journal file."""
    return location.segment_id if isinstance(location, SegmentLocation) else -location.first_lsn


def check_locations(db: sqlite3.Connection, chunks: Sequence[NewChunk]) -> None:
    """Raises WritesStopped if a chunk names a place that is not, or no longer, there."""
    known: dict[int, Segment | None] = {}
    for chunk in chunks:
        place = chunk.location
        if place is None:
            continue
        if place.segment_id not in known:
            known[place.segment_id] = find_segment(db, place.segment_id)
        segment = known[place.segment_id]
        if segment is None:
            raise WritesStopped(f"segment {place.segment_id:016x} is not known to the index; write again")
        # Recovery may have cut what its writer, still running, has since synced into nothing.
        end = place.stripe_offset + place.fragment_length
        if segment.state is SegmentState.SEALED and end > (segment.frames_end or segment.size):
            raise WritesStopped(f"segment {place.segment_id:016x} was sealed meanwhile; write again")


def check_named(db: sqlite3.Connection, content: Content) -> None:
    """Raises WritesStopped if the manifest names a chunk that is neither known nor brought
    along: it was collected since the writer matched it. Pins prevent that; this is what
    makes sure that no manifest ever dangles."""
    brought = {chunk.chunk_id for chunk in content.new_chunks}
    named = {
        entry.chunk_id for entry in content.manifest.entries if isinstance(entry, ChunkEntry | SliceEntry | TreeEntry)
    }
    wanted = list(named - brought)
    for start in range(0, len(wanted), _IDS_AT_ONCE):
        some = wanted[start : start + _IDS_AT_ONCE]
        places = ", ".join("?" * len(some))
        select = f"SELECT count(*) FROM chunks WHERE scope = ? AND chunk_id IN ({places})"
        if db.execute(select, (content.manifest.scope, *some)).fetchone()[0] != len(some):
            raise WritesStopped("a chunk this content shares with deleted content is gone; write it again")


def note_named(state: State, content: Content) -> None:
    """A condemned container that something accepted now names is as if condemned now: what
    was marked before says no longer what is dead in it (see DeleteSegments.as_of_lsn).
    Pins end with their process, even when its last commit is still on its way."""
    if state.db.execute("SELECT 1 FROM condemned LIMIT 1").fetchone() is None:
        return
    entries = content.manifest.entries
    if any(isinstance(entry, TreeEntry) for entry in entries):  # whose leaves are not looked at here
        state.db.execute("UPDATE condemned SET lsn = ?", (state.lsn,))
        return
    named = list({entry.chunk_id for entry in entries if isinstance(entry, ChunkEntry | SliceEntry)})
    for start in range(0, len(named), _IDS_AT_ONCE):
        some = named[start : start + _IDS_AT_ONCE]
        places = ", ".join("?" * len(some))
        select = f"SELECT container FROM chunks WHERE scope = ? AND chunk_id IN ({places})"
        update = f"UPDATE condemned SET lsn = ? WHERE container IN ({select})"
        state.db.execute(update, (state.lsn, content.manifest.scope, *some))


def insert_chunks(state: State, chunks: Sequence[NewChunk], bucket: Bucket) -> None:
    """Take in chunks the keymap does not know; what it knows keeps its place, unless that
    is condemned. A riding chunk is _UNPLACED until place_chunks(), in the same
    transaction, says where its record lies."""
    for chunk in chunks:
        if chunk.location is not None:
            stored, location, container = chunk.location.length, encode(chunk.location), chunk.location.segment_id
        else:
            assert chunk.frame is not None, "a new chunk is stored or rides along"
            stored, location, container = len(chunk.frame), _UNPLACED, _NOWHERE
        inserted = state.db.execute(
            "INSERT OR IGNORE INTO chunks (scope, chunk_id, length, stored, location, container, bucket_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (chunk.scope, chunk.chunk_id, chunk.length, stored, location, container, bucket.bucket_id),
        ).rowcount
        if inserted:
            state.count(chunks=1, chunk_bytes=chunk.length, stored_bytes=stored)
        else:
            _leave_condemned(state, chunk, stored, location, container)


def _leave_condemned(state: State, chunk: NewChunk, stored: int, location: bytes, container: int) -> None:
    """The chunk's own copy counts from now on if the known one lies where nothing stays."""
    select = """SELECT stored FROM chunks WHERE scope = ? AND chunk_id = ?
        AND container IN (SELECT container FROM condemned)"""
    found = state.db.execute(select, (chunk.scope, chunk.chunk_id)).fetchone()
    if found is not None:
        _put(state, chunk.scope, chunk.chunk_id, stored, location, container)
        state.count(stored_bytes=stored - found[0])


def _put(state: State, scope: int, chunk_id: bytes, stored: int, location: bytes, container: int) -> None:
    state.db.execute(
        "UPDATE chunks SET stored = ?, location = ?, container = ? WHERE scope = ? AND chunk_id = ?",
        (stored, location, container, scope, chunk_id),
    )


def _find(db: sqlite3.Connection, scope: int, chunk_id: bytes) -> tuple[int, bytes] | None:
    select = "SELECT stored, location FROM chunks WHERE scope = ? AND chunk_id = ?"
    row: tuple[int, bytes] | None = db.execute(select, (scope, chunk_id)).fetchone()
    return row


def place_chunks(db: sqlite3.Connection, locations: Mapping[bytes, JournalLocation], *, scope: int = 0) -> None:
    """Say where the frames lie that ride in the records decided in this transaction.
    Chunks that lie somewhere already stay there."""
    db.executemany(
        "UPDATE chunks SET location = ?, container = ? WHERE scope = ? AND chunk_id = ? AND location = ?",
        [
            (encode(location), container_of(location), scope, chunk_id, _UNPLACED)
            for chunk_id, location in locations.items()
        ],
    )


def move_riding(db: sqlite3.Connection, locations: Mapping[bytes, JournalLocation], *, scope: int = 0) -> None:
    """Frames that lie in a journal file lie in another one now (a new epoch took over its
    tail). What lies in a segment by now stays there."""
    for chunk_id, location in locations.items():
        found = _find(db, scope, chunk_id)
        if found is None:
            continue
        if found[1] == _UNPLACED or isinstance(decode_location(found[1]), JournalLocation):
            db.execute(
                "UPDATE chunks SET location = ?, container = ? WHERE scope = ? AND chunk_id = ?",
                (encode(location), container_of(location), scope, chunk_id),
            )


def apply_moves(state: State, change: MoveChunks) -> None:
    """Chunks that are still where they were copied from now lie at their new places."""
    for number, chunk in enumerate(change.moves):
        found = _find(state.db, chunk.scope, chunk.chunk_id)
        if found is None or chunk.location is None:
            continue
        if number < len(change.before) and found[1] != encode(change.before[number]):
            continue  # moved by someone else meanwhile: this copy is not the one that counts
        location = chunk.location
        _put(state, chunk.scope, chunk.chunk_id, location.length, encode(location), location.segment_id)
        state.count(stored_bytes=location.length - found[0])


def _write_segment(state: State, segment: Segment) -> None:
    state.db.execute(
        "INSERT INTO segments VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET open = excluded.open, body = excluded.body",
        (segment.segment_id, segment.state is SegmentState.OPEN, encode(segment)),
    )


def open_segment(state: State, change: OpenSegment) -> None:
    if find_segment(state.db, change.segment_id) is not None:
        raise WritesStopped(f"segment {change.segment_id:016x} exists already; open one under another id")
    _write_segment(
        state,
        Segment(
            change.segment_id,
            change.k,
            change.m,
            change.node_ids,
            owner=change.owner,
            writer_epoch=change.writer_epoch,
            code=change.code,
        ),
    )


def _known(state: State, segment_id: int) -> Segment:
    segment = find_segment(state.db, segment_id)
    if segment is None:
        raise StoreError(f"segment {segment_id:016x} is not known to the index")
    return segment


def seal_segment(state: State, change: SealSegment) -> None:
    """Raises WritesStopped if the segment was sealed at another size meanwhile."""
    segment = _known(state, change.segment_id)
    if segment.state is SegmentState.SEALED and segment.size != change.size:
        raise WritesStopped(f"segment {change.segment_id:016x} was sealed meanwhile at {segment.size} bytes")
    sealed = msgspec.structs.replace(
        segment,
        state=SegmentState.SEALED,
        size=change.size,
        stripes=change.stripes,
        frames_end=change.frames_end,
        fragments_lost=change.fragments_lost,
        never_synced=change.fragments_lost,
    )
    _write_segment(state, sealed)


def repair_fragments(state: State, change: FragmentsRepaired) -> None:
    """Raises PreconditionFailed if something else was found damaged meanwhile."""
    segment = _known(state, change.segment_id)
    if change.if_lost is not None and segment.fragments_lost != change.if_lost:
        raise PreconditionFailed("if_lost")
    repaired = msgspec.structs.replace(
        segment,
        node_ids=change.node_ids,
        fragments_lost=change.fragments_lost,
        never_synced=[index for index in segment.never_synced if index in change.fragments_lost],
    )
    _write_segment(state, repaired)


def damage_fragments(state: State, change: FragmentsDamaged) -> None:
    segment = _known(state, change.segment_id)
    damaged = sorted({*segment.fragments_lost, *change.indexes}.intersection(range(segment.k + segment.m)))
    _write_segment(state, msgspec.structs.replace(segment, fragments_lost=damaged))


def note_scrubbed(state: State, change: SegmentsScrubbed) -> None:
    for segment_id in change.segment_ids:
        segment = find_segment(state.db, segment_id)
        if segment is not None:  # else it was deleted while it was read
            _write_segment(state, msgspec.structs.replace(segment, scrubbed_ns=change.time_ns))
