"""Following the change feed: what other doors change is taken out of the kernel's caches.

A change at another door is answered only once this mount has confirmed it, so each batch
is worked off in this order: open files learn what became of them, the kernel is told in
a thread of its own (it may block on a directory some request of ours has locked, and
that request needs the loop), then the batch is confirmed. No lock is held meanwhile.
Nobody waits for a mount that confirms nothing for LEASE_WAIT_SECONDS; so one that stood
still, or was held up by the kernel, gives the kernel nothing to keep (state.may_be_kept)
until it has subscribed anew.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
import pyfuse3
import trio
from pyfuse3 import FileNameT, InodeT

from engine import limits
from engine.changes import Touched
from engine.errors import NoSuchBucket, StoreError
from engine.interfaces import Confirm, FeedBatch
from objfs.mount.inodes import Directory, File, Inode
from objfs.mount.names import ROOT, Name, prefix, split_name
from objfs.mount.state import MountState

RETRY_SECONDS = 0.5

logger = logging.getLogger("objfs.mount")


@dataclass(slots=True)
class Invalidations:
    """What to tell the kernel: names first, since that waits for lookups under way, which
    may still bring in the inodes."""

    names: dict[tuple[InodeT, str], None] = field(default_factory=dict)
    inodes: dict[InodeT, bool] = field(default_factory=dict)  # → attributes only

    def add_inode(self, node: Inode) -> None:
        # Pages of open files go by themselves when the kernel sees the new time or size.
        self.inodes[node.inode] = isinstance(node, Directory) or node.open_file is not None

    def send(self) -> None:
        """Blocking; call in a thread."""
        for parent, component in self.names:
            with _unknown_is_fine():
                pyfuse3.invalidate_entry(parent, FileNameT(component.encode()))
        for inode, attributes_only in self.inodes.items():
            with _unknown_is_fine():
                pyfuse3.invalidate_inode(inode, attr_only=attributes_only)


class Follower:
    def __init__(self, state: MountState) -> None:
        self._state = state
        self._thread = trio.CapacityLimiter(1)

    async def follow(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled; after a broken feed, drops every cache and subscribes
        again."""
        from_lsn = self._state.keymap.applied_lsn() + 1
        task_status.started()
        while True:
            try:
                self._state.followed, self._state.behind_since = True, None
                await self._follow_from(from_lsn)
                raise StoreError("the change feed ended")
            except* (StoreError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as group:
                self._state.followed = False
                logger.warning("change feed: %s; caching nothing until it is back", group.exceptions[0])
                await trio.sleep(RETRY_SECONDS)
                from_lsn = self._state.keymap.applied_lsn() + 1
                await self._drop_everything()

    async def _follow_from(self, from_lsn: int) -> None:
        """Batches are received at once and worked off by another task: the feed shares its
        connection with replies, and the kernel may let a notification wait for one."""
        feed = self._state.store.index.subscribe(subscriber_id=self._state.mount_id, confirms=True, from_lsn=from_lsn)
        send, receive = trio.open_memory_channel[tuple[float, FeedBatch, Confirm]](limits.FEED_RECORDS_MAX)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_ourselves)
                nursery.start_soon(self._work_off, receive)
                nursery.start_soon(self._clear_doubts)
                async with send:
                    async for batch, confirm in feed:
                        now = time.monotonic()
                        if self._state.behind_since is None:
                            self._state.behind_since = now
                        await send.send((now, batch, confirm))
                nursery.cancel_scope.cancel()
        finally:
            if isinstance(feed, AsyncGenerator):
                with trio.CancelScope(shield=True):
                    await feed.aclose()  # ends the subscription now, not when it is collected

    async def _watch_ourselves(self) -> None:
        """Raises StoreError when this process stood still so long that nobody may wait for
        it any more."""
        self._state.alive_at = time.monotonic()
        while True:
            await trio.sleep(limits.LEASE_STALL_SECONDS / 4)
            now = time.monotonic()
            if now - self._state.alive_at > limits.LEASE_STALL_SECONDS:
                raise StoreError(f"stood still for {now - self._state.alive_at:.1f} s")
            self._state.alive_at = now

    async def _work_off(self, batches: trio.MemoryReceiveChannel[tuple[float, FeedBatch, Confirm]]) -> None:
        """Raises StoreError when it took so long that nobody may wait for us any more."""
        async for received, batch, confirm in batches:
            self._state.behind_since = received
            await self._take(batch)
            await confirm()
            if time.monotonic() - received > limits.LEASE_SECONDS:
                raise StoreError("the kernel was slow to drop what it kept")
            if not batches.statistics().current_buffer_used:
                self._state.behind_since = None

    async def _clear_doubts(self) -> None:
        while True:
            doubtful = await self._state.wait_doubtful()
            await self._send(Invalidations(names=dict.fromkeys(doubtful)))
            self._state.doubtful -= doubtful

    async def _take(self, batch: FeedBatch) -> None:
        """Raises StoreError if changes do not wait for us any more."""
        if batch.dropped:
            raise StoreError("fell behind")
        foreign = any(record.origin.mount_id != self._state.mount_id for record in batch.records)
        if foreign and not batch.touched:  # caught up from the journal: names unknown
            await self._drop_everything()
        elif foreign:
            await self._send(self.plan(batch.touched))

    async def _drop_everything(self) -> None:
        """Everything the kernel knows may be stale."""
        plan = Invalidations()
        for node in self._state.table:
            self._refresh(node)
            plan.add_inode(node)
        for name in self._state.table.known_below(ROOT):
            self._forget_name(name, plan)
        await self._send(plan)

    async def _send(self, plan: Invalidations) -> None:
        if plan.names or plan.inodes:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(plan.send, limiter=self._thread)

    # -- what a change touches -------------------------------------------------

    def plan(self, touched: Sequence[Touched]) -> Invalidations:
        """Bring our own state up to the present and say what the kernel must drop."""
        plan = Invalidations()
        for one in touched:
            if not one.bucket:
                continue
            node = self._state.table.find(one.file_id) if one.file_id else None
            if node is not None:
                self._refresh(node)
                plan.add_inode(node)
            name = (one.bucket, one.key.rstrip("/"))
            if one.key.endswith("/") or not one.key:
                self._touch_below(name, plan)
            self._touch_up(name, plan)
        return plan

    def _touch_below(self, directory: Name, plan: Invalidations) -> None:
        for known in self._state.table.known_below(directory):
            self._touch_name(known, plan)

    def _touch_up(self, name: Name, plan: Invalidations) -> None:
        """The name, and the directories above that came or went with it."""
        self._touch_name(name, plan)
        while name[1]:
            name, _ = split_name(name)
            known = self._state.table.known_name(name)
            if known is None:
                continue
            if isinstance(known, Directory):
                known.changed_ns = max(known.changed_ns, time.time_ns())
                plan.add_inode(known)
            if not self._leads_to(name, known):
                self._forget_name(name, plan)

    def _touch_name(self, name: Name, plan: Invalidations) -> None:
        known = self._state.table.known_name(name)
        if known is None:
            return
        self._refresh(known)
        plan.add_inode(known)
        if not self._leads_to(name, known):
            self._forget_name(name, plan)

    def _forget_name(self, name: Name, plan: Invalidations) -> None:
        parent, component = split_name(name)
        above = self._state.table.known_name(parent)
        self._state.table.untell(name)
        self._state.replaced(name)
        if above is not None:
            plan.names[above.inode, component] = None

    def _leads_to(self, name: Name, known: Inode) -> bool:
        """Whether the name still leads to what the kernel was told."""
        bucket, key = name
        try:
            if not key:
                self._state.keymap.bucket(bucket)
                return True
            parent, component = split_name(name)
            child = self._state.keymap.lookup(bucket, prefix(parent), component)
        except NoSuchBucket:
            return False
        if child is None:
            return False
        if child.is_directory:
            return isinstance(known, Directory)
        return child.version is not None and child.version.file_id == known.inode

    def _refresh(self, node: Inode) -> None:
        if isinstance(node, File):
            node.cached_lsn = 0
            if node.open_file is not None:
                node.open_file.refresh()


@contextmanager
def _unknown_is_fine() -> Iterator[None]:
    """What the kernel does not know, or no longer, need not be dropped."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
            raise
