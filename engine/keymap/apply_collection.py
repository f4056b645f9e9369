"""Condemning containers and dropping what is dead in them. Called by apply.decide().

A container is what frames lie in: a segment (its id) or a journal file (minus its first
LSN). These are the only changes that remove chunks from the keymap, and they refuse to
unless exactly as many are there as the caller found dead.
"""

from __future__ import annotations

import sqlite3

from msgspec.structs import replace

from engine.changes import CommitResult, Condemn, DeleteSegments, DropJournal, RemoveNode, Spare
from engine.errors import CollectionStopped, StoreError
from engine.keymap.chunks import decode_segment, find_segment
from engine.keymap.rows import encode
from engine.keymap.state import State
from engine.types import Segment, SegmentState


def _done(state: State) -> CommitResult:
    return CommitResult(state.lsn, state.time_ns)


def _mark_segment(db: sqlite3.Connection, segment: Segment, condemned_lsn: int) -> None:
    body = encode(replace(segment, condemned_lsn=condemned_lsn))
    db.execute("UPDATE segments SET body = ? WHERE segment_id = ?", (body, segment.segment_id))


def condemn(state: State, change: Condemn) -> CommitResult:
    segments = [find_segment(state.db, container) for container in change.containers if container > 0]
    if any(segment is None or segment.state is SegmentState.OPEN for segment in segments):
        raise CollectionStopped("only sealed segments the index knows can be condemned; start again")
    state.db.executemany(
        "INSERT INTO condemned VALUES (?, ?) ON CONFLICT DO UPDATE SET lsn = excluded.lsn",
        [(container, state.lsn) for container in change.containers],
    )
    for segment in segments:
        if segment is not None:
            _mark_segment(state.db, segment, state.lsn)
    return _done(state)


def spare(state: State, change: Spare) -> CommitResult:
    for container in change.containers:
        state.db.execute("DELETE FROM condemned WHERE container = ?", (container,))
        segment = find_segment(state.db, container) if container > 0 else None
        if segment is not None:
            _mark_segment(state.db, segment, 0)
    return _done(state)


def delete_segments(state: State, change: DeleteSegments) -> CommitResult:
    """Raises CollectionStopped."""
    for segment_id in change.segment_ids:
        segment = find_segment(state.db, segment_id)
        if segment is None or not segment.condemned_lsn:
            raise CollectionStopped(f"segment {segment_id:016x} is not condemned; nothing was deleted")
    places = [(segment_id,) for segment_id in change.segment_ids]
    for place in places:
        _expect_unnamed(state.db, "container = ?", place, change.as_of_lsn)
    _expect(sum(_count(state.db, "container = ?", place) for place in places), change.dead_chunks, "the segments")
    for place in places:
        _drop_chunks(state, "container = ?", place)
        state.db.execute("DELETE FROM segments WHERE segment_id = ?", place)
        state.db.execute("DELETE FROM condemned WHERE container = ?", place)
        state.db.execute("INSERT OR REPLACE INTO deleted_segments VALUES (?, ?)", (*place, state.lsn))
    return _done(state)


def drop_journal(state: State, change: DropJournal) -> CommitResult:
    """Raises CollectionStopped."""
    if change.snapshot_lsn < change.before_lsn - 1 or change.before_lsn > state.lsn:
        raise CollectionStopped(
            f"a snapshot at LSN {change.snapshot_lsn} does not stand for the journal before {change.before_lsn}"
        )
    inside, limits = "container < 0 AND container > ?", (-change.before_lsn,)
    _expect(_count(state.db, inside, limits), change.dead_chunks, "the journal")
    stray = f"{inside} AND container NOT IN (SELECT container FROM condemned)"
    _expect(_count(state.db, stray, limits), 0, "the journal outside of what is condemned")
    _expect_unnamed(state.db, inside, limits, change.as_of_lsn)
    _drop_chunks(state, inside, limits)
    state.db.execute(f"DELETE FROM condemned WHERE {inside}", limits)
    state.db.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'journal_first_lsn'", (change.before_lsn,))
    return _done(state)


def _count(db: sqlite3.Connection, where: str, parameters: tuple[int, ...]) -> int:
    (count,) = db.execute(f"SELECT count(*) FROM chunks WHERE {where}", parameters).fetchone()
    return int(count)


def _expect(found: int, expected: int, where: str) -> None:
    if found != expected:
        raise CollectionStopped(
            f"{found} chunks lie in {where} where {expected} were found dead; nothing was deleted, collect again"
        )


def _expect_unnamed(db: sqlite3.Connection, where: str, parameters: tuple[int, ...], as_of_lsn: int) -> None:
    """Since the mark that found the dead, nothing may have named what lies there."""
    (newest,) = db.execute(f"SELECT max(lsn) FROM condemned WHERE {where}", parameters).fetchone()
    if as_of_lsn and newest is not None and newest > as_of_lsn:
        raise CollectionStopped(
            f"LSN {newest} names something that was to be deleted; nothing was deleted, collect again"
        )


def _drop_chunks(state: State, where: str, parameters: tuple[int, ...]) -> None:
    select = f"SELECT count(*), coalesce(sum(length), 0), coalesce(sum(stored), 0) FROM chunks WHERE {where}"
    count, length, stored = state.db.execute(select, parameters).fetchone()
    state.db.execute(f"DELETE FROM chunks WHERE {where}", parameters)
    state.count(chunks=-count, chunk_bytes=-length, stored_bytes=-stored)


def remove_node(state: State, change: RemoveNode) -> CommitResult:
    """Raises StoreError while a segment names the node."""
    for (body,) in state.db.execute("SELECT body FROM segments"):
        segment = decode_segment(body)
        if change.node_id in segment.node_ids:
            raise StoreError(f"segment {segment.segment_id:016x} still names node {change.node_id}; drain it first")
    if state.db.execute("DELETE FROM nodes WHERE node_id = ?", (change.node_id,)).rowcount == 0:
        raise StoreError(f"there is no node {change.node_id}")
    return CommitResult(state.lsn, state.time_ns, removed=True)
