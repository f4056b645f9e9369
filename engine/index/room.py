"""Room for what is committed: what the index refuses while the disks are full.

Content that rides in a record needs room on the journal's nodes and in the keymap's
directory. While there is too little, it is refused when it is asked for; what makes room
goes on, out of the reserve if need be; and once half of the reserve is lent, so is
everything else that could wait. Looked at after so many records or bytes, not after so
much time: a full disk is refused the same way in every run. One task at a time.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from engine.care.reserve import LEND_BYTES, Reserve, Rooms
from engine.changes import (
    AbortUpload,
    Change,
    CompleteUpload,
    Condemn,
    DeleteBucket,
    DeleteKey,
    DeleteSegments,
    DeleteUser,
    DropJournal,
    FragmentsDamaged,
    FragmentsRepaired,
    MoveChunks,
    OpenSegment,
    PutPart,
    PutVersion,
    RemoveNode,
    Rename,
    SealSegment,
    SegmentsScrubbed,
    SetNode,
    Spare,
)
from engine.errors import NodeFull
from engine.limits import RIDING_ROOM_BYTES_MIN
from engine.types import InlineEntry

LOOK_RECORDS = 64
LOOK_BYTES = 256 * 1024
_MAKE_ROOM = (
    AbortUpload
    | Condemn
    | DeleteBucket
    | DeleteKey
    | DeleteSegments
    | DeleteUser
    | DropJournal
    | FragmentsDamaged
    | FragmentsRepaired
    | MoveChunks
    | OpenSegment
    | RemoveNode
    | Rename
    | SealSegment
    | SegmentsScrubbed
    | SetNode
    | Spare
)


class CommitRoom:
    """`copies` nodes with room are needed. `directory` is the keymap's."""

    def __init__(self, reserve: Reserve, directory: Path, copies: int) -> None:
        self.short: set[str] = set()  # nodes with too little room, as last looked
        self._reserve = reserve
        self._directory = directory
        self._copies = copies
        self._room = 0
        self._reserve_bytes = 0
        self._records_left = self._bytes_left = 0

    def is_due(self, records: int, size: int) -> bool:
        """Whether look() is due before a batch; counts it."""
        self._records_left -= records
        self._bytes_left -= size
        return self._room < RIDING_ROOM_BYTES_MIN or min(self._records_left, self._bytes_left) < 0

    def look(self, healthy: Collection[str]) -> None:
        """Blocking. See what room there is, and lend some of the reserve where there is none."""
        found = self._reserve.look()
        rooms = {node_id: room for node_id, room in found.room.items() if node_id in healthy}
        self.short = {node_id for node_id, room in rooms.items() if room < RIDING_ROOM_BYTES_MIN}
        best = sorted(rooms.values(), reverse=True)[: self._copies]
        self._room = min([*best, self._index_room(found)])
        self._reserve_bytes = max(found.target.values(), default=0)
        self._records_left, self._bytes_left = LOOK_RECORDS, LOOK_BYTES
        if self.short or self._room < RIDING_ROOM_BYTES_MIN:
            self._reserve.lend(LEND_BYTES)

    def _index_room(self, found: Rooms) -> int:
        device = os.stat(self._directory).st_dev
        for node_id, other in found.device.items():
            if other == device:
                return found.room[node_id]
        filesystem = os.statvfs(self._directory)
        return filesystem.f_bavail * filesystem.f_frsize

    def refuse(self, change: Change) -> None:
        """Raises NodeFull for what there is no room for."""
        riding = riding_bytes(change)
        if self._room - riding >= RIDING_ROOM_BYTES_MIN or isinstance(change, _MAKE_ROOM):
            self._room -= riding
            return
        if riding or self._room < -self._reserve_bytes // 2:
            raise NodeFull("the nodes are full; delete something and run objfs gc, or add nodes")


def riding_bytes(change: Change) -> int:
    """Bytes of content that ride in the change."""
    if not isinstance(change, PutVersion | PutPart | CompleteUpload):
        return 0
    riding = sum(len(chunk.frame) for chunk in change.content.new_chunks if chunk.frame is not None)
    return riding + sum(len(one.content) for one in change.content.manifest.entries if isinstance(one, InlineEntry))
