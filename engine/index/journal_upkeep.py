"""Keeping the journal's replicas: which nodes may hold them, and copies that are lacking.

The part of LocalIndex that looks after what is written already; it decides nothing and
orders nothing. Everything here runs on the index's event loop, files are worked on in
threads. Commits are held up (`_turn`) only for as long as a file is being closed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import anyio
import anyio.to_thread

from engine.crash_sites import CrashSite, reached
from engine.index import upkeep
from engine.index.replicas import RETURNED, choose_replicas
from engine.index.room import CommitRoom
from engine.interfaces import Node
from engine.journal.log import JournalLog
from engine.journal.recovery import heal_replicas
from engine.keymap.reader import SqliteKeymap
from engine.types import NodeEntry, NodeState

ROTATE_SECONDS = 1.0  # how long commits are held up at once to close a journal file

logger = logging.getLogger("objfs.index")


class JournalUpkeep:
    """See the module; LocalIndex is one, and sets all of these."""

    keymap: SqliteKeymap
    _nodes: Mapping[str, Node]
    _store_id: str
    _copies: int
    _log: JournalLog
    _commit_room: CommitRoom | None
    _turn: anyio.Lock  # nothing is appended while it is held
    _durable_lsn: int
    _behind: set[str]

    async def wait_durable(self, lsn: int) -> None:
        raise NotImplementedError

    @property
    def failed_replicas(self) -> set[str]:
        return self._log.failed

    @property
    def behind(self) -> set[str]:
        """Nodes that may miss some of the journal, until they are healthy again."""
        return self._behind | self._log.failed

    def distrust(self, node_ids: Sequence[str]) -> None:
        """These nodes miss the newest epoch: maintenance takes them for stale. Until it has
        noted so they hold no epoch, unless so few remain that nothing could be noted."""
        healthy = self._healthy()
        behind = [node_id for node_id in node_ids if node_id in healthy]
        for node_id in behind:
            logger.warning("node %s is behind the journal (was an old copy put back?) and is repaired", node_id)
        self._behind.update(behind)
        if len(healthy.difference(behind)) >= self._copies:
            self._log.distrust(behind)

    def forgive(self, node_id: str) -> None:
        """The node is healthy: later epochs may use it again."""
        self._behind.discard(node_id)
        self._log.forgive(node_id)

    def try_again(self, node_id: str) -> None:
        """Later epochs may use a node that failed, for want of others. It may miss what was
        written meanwhile, so it is behind still."""
        self._behind.add(node_id)
        self._log.forgive(node_id)

    async def journal_under_redundancy(self) -> int:
        """Journal records, snapshots and archives that fewer than m+1 healthy nodes have whole."""
        first, end, healthy = self.keymap.journal_first_lsn(), self._log.end_lsn, self._healthy()
        return await anyio.to_thread.run_sync(
            lambda: upkeep.thin(dict(self._nodes), healthy, self._copies, first_lsn=first, end_lsn=end)
        )

    async def repair_journal(self) -> None:
        """Bring journal files, snapshots and archives back to m+1 replicas on healthy nodes."""
        healthy = self._healthy()
        if not healthy.issuperset(self._log.members) and len(healthy) >= self._copies:
            async with self._turn:
                if self._durable_lsn == self._log.end_lsn:
                    self._log.retire()
        await self.wait_durable(self.keymap.applied_lsn())
        first, being_written = self.keymap.journal_first_lsn(), bool(self._log.members)
        await anyio.to_thread.run_sync(
            lambda: upkeep.repair(
                dict(self._nodes),
                healthy,
                self._copies,
                self._store_id,
                first_lsn=first,
                open_for_writing=being_written,
            )
        )

    async def heal_journal(self) -> None:
        """Read every replica of every journal file; those that differ from what is good
        are copied to quarantine and written anew. The file being written is closed first."""
        await self.heal_returned([])
        await self.repair_journal()

    async def heal_returned(self, node_ids: Collection[str]) -> set[str]:
        """heal_journal() also of these nodes, which are to be healthy; without making up for
        replicas that are missing. Returns nodes that could not be healed."""
        end = await self.rotate_journal()
        healthy = self._healthy().union(node_ids)
        return await anyio.to_thread.run_sync(lambda: heal_replicas(dict(self._nodes), healthy, self._store_id, end))

    async def rotate_journal(self) -> int:
        while True:
            # Not for what is just being appended: it may be given up, and its LSN never come.
            await self.wait_durable(self._log.written_lsn)
            async with self._turn:  # nothing is appended now, so one sync makes all of it durable
                with anyio.move_on_after(ROTATE_SECONDS):
                    await self.wait_durable(self._log.end_lsn)
                if self._durable_lsn == self._log.end_lsn:
                    self._log.retire()
                    reached(CrashSite.JOURNAL_ROTATED)
                    return self._log.end_lsn

    def _healthy(self) -> set[str]:
        return {
            place.node_id
            for place in self.keymap.nodes()
            if place.state is NodeState.HEALTHY and place.node_id in self._nodes
        }

    def _choose_replicas(self, count: int, excluded: set[str]) -> list[str]:
        """Up to `count` node ids that can be written, in separate domains where possible.
        From the log's thread."""
        with self.keymap.snapshot() as keymap:
            places = keymap.nodes()
        if len(places) < self._copies:  # a store being made: not all of its nodes are registered yet
            known = {place.node_id for place in places}
            places += [NodeEntry(node_id, "") for node_id in sorted(self._nodes) if node_id not in known]
        short = self._commit_room.short if self._commit_room is not None else set()
        roomy = choose_replicas(places, self._nodes, count, excluded | short, self._log.epoch)
        if len(roomy) == count:
            return roomy
        chosen = choose_replicas(places, self._nodes, count, excluded, self._log.epoch)
        if len(chosen) < count == self._copies:
            # Else a store of m+1 nodes could not even be told that one was replaced or added.
            known = {place.node_id for place in places}
            new = [NodeEntry(one, "", state=NodeState.REBUILDING) for one in sorted(self._nodes) if one not in known]
            returned = choose_replicas([*places, *new], self._nodes, count, excluded, self._log.epoch, RETURNED)
            chosen += returned[: count - len(chosen)]
        return chosen
