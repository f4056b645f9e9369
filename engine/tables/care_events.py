"""Journal records → rows of store_journal: what happened to the store itself.

Segments opened, sealed, damaged, repaired, checked, condemned and deleted; chunks moved;
nodes added, changed and removed; journal files dropped. A record tells all of it: nothing
is looked up. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from engine.changes import (
    Condemn,
    DeleteSegments,
    DropJournal,
    FragmentsDamaged,
    FragmentsRepaired,
    MoveChunks,
    OpenSegment,
    Record,
    RemoveNode,
    SealSegment,
    SegmentsScrubbed,
    SetNode,
    Spare,
)
from engine.tables.rows import Row, microseconds, segment_id_text
from engine.types import SegmentLocation


class Told(Struct, frozen=True):
    """What one row says beside who did it and when."""

    segment_id: int | None = None
    node_id: str | None = None
    journal_lsn: int | None = None
    chunks: int | None = None
    details: str | None = None


def care_rows(records: Iterable[Record]) -> Iterator[Row]:
    for record in records:
        origin, change = record.origin, record.change
        who = (origin.requester or None, origin.request_id or None)
        for told in _told(change):
            segment_id = None if told.segment_id is None else segment_id_text(told.segment_id)
            kind = type(change).__struct_config__.tag
            head = (f"{record.lsn:016x}", str(kind).upper(), microseconds(record.time_ns))
            yield (*head, segment_id, told.node_id, told.journal_lsn, told.chunks, told.details, *who)


def _told(change: object) -> Iterator[Told]:
    match change:
        case OpenSegment():
            yield Told(change.segment_id, details=f"code {change.k}+{change.m} on {', '.join(change.node_ids)}")
        case SealSegment():
            yield Told(change.segment_id, details=_not_whole(change.fragments_lost))
        case FragmentsRepaired():
            yield Told(change.segment_id, details=_not_whole(change.fragments_lost))
        case FragmentsDamaged():
            indexes = ", ".join(map(str, change.indexes))
            yield Told(change.segment_id, details=f"fragments {indexes}: {change.reason or 'no reason given'}")
        case SegmentsScrubbed():
            yield from (Told(segment_id) for segment_id in change.segment_ids)
        case Condemn() | Spare():
            yield from map(_container, change.containers)
        case DeleteSegments():
            for segment_id in change.segment_ids:
                yield Told(segment_id, chunks=change.dead_chunks)
        case DropJournal():
            details = f"an index snapshot stands at LSN {change.snapshot_lsn}"
            yield Told(journal_lsn=change.before_lsn, chunks=change.dead_chunks, details=details)
        case MoveChunks():
            yield from _moved(change)
        case SetNode():
            where = f" in {change.domain}" if change.domain else ""
            yield Told(node_id=change.node_id, details=f"{change.state} at {change.path}{where}")
        case RemoveNode():
            yield Told(node_id=change.node_id)
        case _:
            return  # of an object, a bucket or a user


def _not_whole(indexes: list[int]) -> str | None:
    return f"not whole: {', '.join(map(str, indexes))}" if indexes else None


def _container(container: int) -> Told:
    return Told(container) if container > 0 else Told(journal_lsn=-container)


def _moved(change: MoveChunks) -> Iterator[Told]:
    """One row for each segment chunks were moved to."""
    counts: dict[int, int] = {}
    for chunk in change.moves:
        if isinstance(chunk.location, SegmentLocation):
            counts[chunk.location.segment_id] = counts.get(chunk.location.segment_id, 0) + 1
    for segment_id, chunks in sorted(counts.items()):
        yield Told(segment_id, chunks=chunks)
