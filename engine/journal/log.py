"""JournalLog: appending records to m+1 replicas, epoch by epoch.

append() writes (write(2)) to all replicas of the current epoch: the records are ordered.
sync() makes them durable. What is not yet durable is kept in memory, so that when a
replica fails a new epoch on healthy nodes takes over that tail, synced, before anything
of it is acknowledged. An epoch is opened at the first append, so opening a store to read
writes nothing.

Concurrency: append() and take_over() are called by one task at a time (the index holds
its turn); sync() may run beside append().
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from engine import limits
from engine.crash_sites import CrashSite, reached
from engine.errors import NodeUnavailable, StoreError, WritesStopped
from engine.interfaces import Node
from engine.journal.records import (
    FILE_HEADER_BYTES,
    Epoch,
    RawRecord,
    decode_payload,
    encode_epoch,
    encode_file_header,
    encode_header,
    epoch_name,
    journal_name,
    riding_locations,
)
from engine.types import JournalLocation

SYNC_WORKERS_MAX = 16

ChooseReplicas = Callable[[int, set[str]], list[str]]  # (how many, excluded) → node ids


class ReplicaFailed(Exception):
    """A replica of the current epoch can't be written or synced; take_over() is next."""

    def __init__(self, node_id: str, reason: str) -> None:
        super().__init__(f"journal replica {node_id}: {reason}")
        self.node_id = node_id
        self.reason = reason


class JournalLog:
    def __init__(
        self,
        nodes: Mapping[str, Node],
        *,
        store_id: str,
        m: int,
        last_epoch: int,
        end_lsn: int,
        choose: ChooseReplicas,
        skip: int = 0,
    ) -> None:
        """`skip` numbers are left out before the next epoch's: while nodes are missing, they
        may hold epochs of those numbers that were begun and never opened."""
        self.end_lsn = end_lsn  # the newest LSN handed to append()
        self.written_lsn = end_lsn  # the newest LSN written to every replica
        self.epoch = last_epoch + skip
        self._follows = last_epoch  # the newest epoch that was opened
        self._nodes = nodes
        self._store_id = store_id
        self._copies = m + 1
        self._choose = choose
        self._members: list[str] = []  # empty: no epoch is open for writing
        self._first_lsn = 0
        self._size = 0
        self._unsynced_names: set[str] = set()
        self._tail: deque[RawRecord] = deque()
        self._failed: set[str] = set()
        self._changing = threading.Lock()  # an epoch is not opened while a sync notes what it did
        self._pool = ThreadPoolExecutor(SYNC_WORKERS_MAX, thread_name_prefix="journal-sync")

    @property
    def current_name(self) -> str | None:
        return journal_name(self.epoch, self._first_lsn) if self._members else None

    @property
    def members(self) -> list[str]:
        return list(self._members)

    def append(self, records: Sequence[RawRecord]) -> dict[bytes, JournalLocation]:
        """Write records, in LSN order, to every replica. Returns where riding frames lie.
        Blocking, but only for page-cache writes. Raises ReplicaFailed after keeping the
        records in the tail; take_over() then writes them."""
        self._tail.extend(records)
        self.end_lsn = records[-1].lsn
        if not self._members:
            raise ReplicaFailed("", "no epoch is open yet")
        if self._size > limits.JOURNAL_FILE_BYTES_MAX:
            self._create_file(records[0].lsn)
        return self._write(records)

    def sync(self) -> int:
        """Make everything appended so far durable on all replicas; returns up to which
        LSN. Blocking: runs the replicas' fdatasyncs in parallel. Raises ReplicaFailed."""
        with self._changing:
            # What append() is still writing is not part of this sync.
            target, epoch, members = self.written_lsn, self.epoch, list(self._members)
            names = sorted(self._unsynced_names)
            if not members and self._tail and self._tail[0].lsn <= target:
                raise ReplicaFailed("", "no epoch is open, and records before the failure are not synced")
        waiting = [
            (node_id, self._pool.submit(self._sync_file, node_id, name)) for name in names for node_id in members
        ]
        failure: ReplicaFailed | None = None
        for node_id, future in waiting:
            try:
                future.result()
            except StoreError as error:
                failure = ReplicaFailed(node_id, str(error))
        with self._changing:
            if epoch != self.epoch:
                return 0  # a take-over overtook this sync; its own sync counts
            if failure is not None:
                raise failure
            reached(CrashSite.JOURNAL_SYNCED)
            current = self.current_name
            self._unsynced_names.difference_update(name for name in names if name != current)
            while self._tail and self._tail[0].lsn <= target:
                self._tail.popleft()
            return target

    def take_over(self, failed: str) -> dict[bytes, JournalLocation]:
        """Open the next epoch on healthy nodes without `failed` ("" if none failed), write
        the unsynced tail to it and sync it. Returns where its riding frames lie now; all of
        the journal is durable then. Blocking. Raises WritesStopped."""
        if failed:
            self._failed.add(failed)
        while True:
            members = self._choose(self._copies, self._failed)
            if len(members) < self._copies:
                raise WritesStopped(
                    f"the journal needs {self._copies} healthy nodes, {len(members)} can be written "
                    f"({', '.join(members) or 'none'}); bring nodes back or replace them"
                )
            try:
                with self._changing:
                    return self._open_epoch(members)
            except ReplicaFailed as error:
                self._members = []  # of an epoch that was never open: nobody may sync it and be content
                self._failed.add(error.node_id)

    def abandon(self, from_lsn: int) -> None:
        """Forget records from `from_lsn` on, which nobody was told of. Replicas may hold
        some of them, so this epoch is not written to again."""
        while self._tail and self._tail[-1].lsn >= from_lsn:
            self._tail.pop()
        self.end_lsn = from_lsn - 1
        self.written_lsn = min(self.written_lsn, self.end_lsn)
        self._members = []

    @property
    def failed(self) -> set[str]:
        """Replicas that failed since they were last forgiven."""
        return set(self._failed)

    def distrust(self, node_ids: Sequence[str]) -> None:
        """Use these nodes for no epoch until they are forgiven."""
        self._failed.update(node_ids)

    def forgive(self, node_id: str) -> None:
        """The node is healthy again: later epochs may use it."""
        self._failed.discard(node_id)

    def retire(self) -> None:
        """Write to no file of this epoch any more; the next append opens a new one. Only
        when everything is durable."""
        assert not self._tail, "an epoch is retired when it is durable"
        self._members = []

    def close(self) -> None:
        self._pool.shutdown()

    # -- epochs and files ------------------------------------------------------

    def _open_epoch(self, members: list[str]) -> dict[bytes, JournalLocation]:
        self.epoch += 1
        first_lsn = self._tail[0].lsn if self._tail else self.end_lsn + 1
        tail_lsn = self._tail[-1].lsn if self._tail else self.end_lsn
        encoded = encode_epoch(
            Epoch(self.epoch, first_lsn, members, self._store_id, follows=self._follows, tail_lsn=tail_lsn)
        )
        for node_id in members:
            self._guard(node_id, lambda node: node.write_whole(epoch_name(self.epoch), encoded))
            reached(CrashSite.JOURNAL_EPOCH_NAMED)
        for node_id in set(self._choose(len(self._nodes), self._failed)).difference(members):
            self._guard(node_id, lambda node: node.write_whole(epoch_name(self.epoch), encoded))
        reached(CrashSite.JOURNAL_EPOCH_OPENED)
        self._members = members
        self._unsynced_names.clear()
        self._create_file(first_lsn)
        locations = self._write(list(self._tail)) if self._tail else {}
        reached(CrashSite.JOURNAL_TAIL_WRITTEN)
        name = journal_name(self.epoch, self._first_lsn)
        for node_id in members:
            self._guard(node_id, lambda node: node.sync(name))
        self._tail.clear()
        self._follows = self.epoch
        self.written_lsn = self.end_lsn
        return locations

    def _create_file(self, first_lsn: int) -> None:
        name = journal_name(self.epoch, first_lsn)
        header = encode_file_header(self._store_id, self.epoch, first_lsn)
        for node_id in self._members:
            self._guard(node_id, lambda node: node.create(name))
            self._guard(node_id, lambda node: node.append(name, 0, [header]))
        self._first_lsn = first_lsn
        self._size = FILE_HEADER_BYTES
        self._unsynced_names.add(name)
        reached(CrashSite.JOURNAL_FILE_CREATED)

    def _write(self, records: Sequence[RawRecord]) -> dict[bytes, JournalLocation]:
        buffers: list[bytes] = []
        locations: dict[bytes, JournalLocation] = {}
        offset = self._size
        for record in records:
            buffers += (encode_header(record, self.epoch), record.payload)
            if record.attachments:
                buffers.append(record.attachments)
                locations |= riding_locations(decode_payload(record), record, self.epoch, self._first_lsn, offset)
            offset += record.length
        name, start = journal_name(self.epoch, self._first_lsn), self._size
        for node_id in self._members:
            self._guard(node_id, lambda node: node.append(name, start, buffers))
            reached(CrashSite.JOURNAL_PARTLY_WRITTEN)
        self._size = offset
        self.written_lsn = records[-1].lsn
        reached(CrashSite.JOURNAL_WRITTEN)
        return locations

    def _sync_file(self, node_id: str, name: str) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            raise NodeUnavailable(f"node {node_id} is gone")
        node.sync(name)

    def _guard(self, node_id: str, act: Callable[[Node], None]) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            raise ReplicaFailed(node_id, "the node is gone")
        try:
            act(node)
        except StoreError as error:
            raise ReplicaFailed(node_id, str(error)) from error
