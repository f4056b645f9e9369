"""Making, opening and joining a store.

The process that takes DATA/lock owns the store: it runs the index in itself, serves the
index socket and maintenance. Every other process joins over the socket. Both get the
same Parts; only where commits are decided differs.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import anyio
import msgspec

from engine.care.rot import RotReports
from engine.changes import OpenSegment, Origin, SealSegment, SetNode
from engine.coding import check_code
from engine.errors import IndexUnavailable, StoreError, StoreInUse, WritesStopped
from engine.index.client import open_index_client
from engine.index.local import LocalIndex
from engine.index.opening import open_local_index
from engine.index.server import SOCKET_NAME, serve_index
from engine.index.sockets import answers
from engine.interfaces import Index
from engine.maintenance import ORIGIN, Maintenance
from engine.nodes.descriptor import (
    NodeDescriptor,
    NodePlace,
    StoreDescriptor,
    check_agreement,
    read_store_descriptor,
    write_node_descriptor,
    write_store_descriptor,
)
from engine.nodes.directory import DirectoryNode
from engine.nodeset import NodeOpener, NodeSet
from engine.pins import Pins
from engine.secrets import RootKeys, create_store_key, new_access_key, new_secret_key, write_root_keys
from engine.segments.plane import SegmentPlane
from engine.types import NodeEntry, NodeState

JOIN_SECONDS = 10.0
IDLE_SEAL_SECONDS = 30.0
SEAL_RETRY_SECONDS = 5.0
SEAL_POLL_SECONDS = 0.25

logger = logging.getLogger("objfs.store")


class Opening(Enum):
    """How a process wants the store. A server's workers only ever JOIN: one that starts
    just as the index process dies must not take its place."""

    OWN = "own"
    JOIN = "join"
    EITHER = "either"


@dataclass
class Parts:
    """What a Store is made of, the same in the owner and in a process that joined it."""

    data: Path
    descriptor: StoreDescriptor
    nodes: NodeSet
    index: Index
    plane: SegmentPlane
    pins: Pins

    async def journal_under_redundancy(self) -> int:
        return await self.index.journal_under_redundancy()

    async def recount(self) -> list[str]:
        return await self.index.recount()

    async def tables_lag(self) -> int | None:
        """Records the tables are behind, or None while nobody runs them."""
        from engine.tables.client import applied_lsn  # the status of a store must not import duckdb

        applied = await applied_lsn(self.data)
        return None if applied is None else max(self.index.keymap.applied_lsn() - applied, 0)


# -- making a store ------------------------------------------------------------


def init_store(
    data: str | Path,
    *,
    k: int = 4,
    m: int = 2,
    nodes: list[tuple[str, str]] | None = None,
    root_access_key: str | None = None,
    root_secret_key: str | None = None,
    reserve_bytes: int | None = None,
) -> list[str]:
    """Make a store at DATA over `nodes` (path, domain); default k+m directories under
    DATA/nodes. `reserve_bytes` are kept aside on each (None: engine.care.reserve decides).
    Returns warnings about the layout. Raises StoreError if DATA holds a store,
    a node path is taken, or the code does not fit the nodes."""
    data = Path(data).absolute()
    check_code(k, m)
    if (data / "store.json").exists():
        raise StoreError(f"{data} holds a store already; choose another --data, or use it as it is")
    if nodes is None:
        nodes = [(str(data / "nodes" / str(number)), "") for number in range(1, k + m + 1)]
    if len(nodes) < k + m:
        raise StoreError(f"code {k}+{m} needs at least {k + m} nodes, {len(nodes)} were named; add --node")
    paths = [os.path.abspath(path) for path, _ in nodes]
    if len(set(paths)) < len(paths):
        raise StoreError("a node path is named twice; every node needs a directory of its own")
    store_id = secrets.token_hex(16)
    places = [
        NodePlace(node_id=f"node{number}", path=path, domain=domain)
        for number, (path, (_, domain)) in enumerate(zip(paths, nodes, strict=True), 1)
    ]
    descriptor = StoreDescriptor(store_id=store_id, k=k, m=m, nodes=places, reserve_bytes=reserve_bytes)
    for place in places:
        directory = Path(place.path)
        if directory.is_dir() and any(directory.iterdir()):
            raise StoreError(f"node directory {directory} is not empty; empty it or name another")
    data.mkdir(parents=True, exist_ok=True)
    for place in places:
        Path(place.path).mkdir(parents=True, exist_ok=True)
        write_node_descriptor(
            Path(place.path), NodeDescriptor(store_id=store_id, node_id=place.node_id, k=k, m=m, domain=place.domain)
        )
    create_store_key(data)
    write_root_keys(data, RootKeys(root_access_key or new_access_key(), root_secret_key or new_secret_key()))
    opened = NodeSet(descriptor)
    try:
        wanted = min(opened.reserve.look().target.values())
        opened.reserve.refill()
        # Last: from here on DATA is a store.
        write_store_descriptor(data, msgspec.structs.replace(descriptor, reserve_bytes=wanted))
        return opened.warnings()
    finally:
        opened.close()


# -- opening and joining -------------------------------------------------------


@asynccontextmanager
async def open_parts(
    data: Path, opening: Opening = Opening.EITHER, *, node_opener: NodeOpener = DirectoryNode
) -> AsyncIterator[Parts]:
    """Own the store, or join its owner. Raises NotAStore, UnknownFormat, StoreInUse (when
    its owner does not answer, or with Opening.OWN), WritesStopped."""
    data = data.absolute()
    descriptor = read_store_descriptor(data)
    try:
        if opening is not Opening.JOIN:
            with owner_lock(data) as owned:
                if owned:
                    async with _own(data, descriptor, node_opener) as parts:
                        yield parts
                    return
        if opening is Opening.OWN:
            raise StoreInUse(f"{data} is open in another process; stop it first")
        async with _join(data, descriptor, node_opener) as parts:
            yield parts
    except BaseExceptionGroup as group:
        error = _only_error(group)
        if error is None:
            raise
        raise error from None


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The one error of a group the task groups of an open store wrapped it in."""
    if len(group.exceptions) > 1:
        return None
    (error,) = group.exceptions
    return _only_error(error) if isinstance(error, BaseExceptionGroup) else error


@contextmanager
def owner_lock(data: Path) -> Iterator[bool]:
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            yield False
        else:
            # Who removes DATA/lock under an open store lets a second process lock the new file.
            yield not answers(data / "index" / SOCKET_NAME)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _own(data: Path, descriptor: StoreDescriptor, node_opener: NodeOpener) -> AsyncIterator[Parts]:
    nodes = NodeSet(descriptor, node_opener)
    try:
        check_agreement(data, descriptor, list(nodes.described.values()))
        async with open_local_index(
            data / "index",
            nodes.nodes,
            store_id=descriptor.store_id,
            m=descriptor.m,
            missing=nodes.missing,
            reserve=nodes.reserve,
        ) as index:
            await _register_nodes(index, nodes)
            maintenance = Maintenance(index, nodes)
            await maintenance.seal_left_open()
            rot = RotReports(index, nodes.nodes)
            plane = _open_plane(index, nodes, _owner_name(), rot)
            pins = Pins(data / "index", index.condemned_lsn)
            parts = Parts(data, descriptor, nodes, index, plane, pins)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(maintenance.run, parts)
                tasks.start_soon(_seal_when_asked, plane, index)
                tasks.start_soon(rot.run)
                tasks.start_soon(_serve_index, index, data, maintenance)
                try:
                    yield parts
                finally:
                    with anyio.CancelScope(shield=True):
                        await plane.aclose()
                    pins.close()
                    index.keep_subscribers()
                    tasks.cancel_scope.cancel()
    finally:
        nodes.close()


async def _serve_index(index: LocalIndex, data: Path, maintenance: Maintenance) -> None:
    async def owner_gone(owner: str) -> None:
        await maintenance.seal_orphans(owner=owner)

    await serve_index(index, data / "index", on_owner_gone=owner_gone)


@asynccontextmanager
async def _join(data: Path, descriptor: StoreDescriptor, node_opener: NodeOpener) -> AsyncIterator[Parts]:
    nodes = NodeSet(descriptor, node_opener)
    owner = _owner_name()
    try:
        async with open_index_client(
            data / "index", nodes=nodes.nodes, owner=owner, join_seconds=JOIN_SECONDS
        ) as index:
            rot = RotReports(index, nodes.nodes)
            plane = _open_plane(index, nodes, owner, rot)
            index.on_reconnect = plane.seal  # the new index has sealed our open segment by now
            pins = Pins(data / "index", index.condemned_lsn)
            parts = Parts(data, descriptor, nodes, index, plane, pins)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_follow_nodes, index, nodes)
                tasks.start_soon(_seal_when_asked, plane, index)
                tasks.start_soon(rot.run)
                try:
                    yield parts
                finally:
                    with anyio.CancelScope(shield=True):
                        await plane.aclose()
                    pins.close()
                    tasks.cancel_scope.cancel()
    except IndexUnavailable as error:
        raise StoreInUse(f"{data} is open in another process that does not answer ({error})") from error
    finally:
        nodes.close()


async def _follow_nodes(index: Index, nodes: NodeSet) -> None:
    """Open, once a second, nodes that came back or were added; let go of removed ones."""
    while True:
        places = index.keymap.nodes()
        nodes.keep_only(places)
        for place in places:
            await anyio.to_thread.run_sync(nodes.probe, place)
        await anyio.sleep(1.0)


async def _register_nodes(index: LocalIndex, nodes: NodeSet) -> None:
    """Tell the index about nodes store.json names and it does not know, or that were found
    where store.json says and the index does not: moved, or replaced just before a crash."""
    known = {place.node_id: place for place in index.keymap.nodes()}
    for place in nodes.descriptor.nodes:
        entry, found = known.get(place.node_id), place.node_id in nodes.nodes
        if entry is None:
            state = NodeState.HEALTHY if found else NodeState.LOST
        elif found and place.generation > entry.generation:
            state = NodeState.REBUILDING
        elif found and place.generation == entry.generation and place.path != entry.path:
            state = entry.state
        else:
            continue
        try:
            await index.commit(SetNode(place.node_id, place.path, place.domain, state, place.generation), ORIGIN)
        except WritesStopped as error:
            # What is there can be read; the next opening tries again, and maintenance before.
            logger.warning("node %s is not taken in for now: %s", place.node_id, error)


def _open_plane(index: Index, nodes: NodeSet, owner: str, rot: RotReports) -> SegmentPlane:
    async def announce(change: OpenSegment | SealSegment) -> None:
        await index.commit(change, Origin(requester=owner))

    async def report_failure(node_id: str, reason: str) -> None:
        for place in index.keymap.nodes():
            if place.node_id == node_id and place.state is NodeState.HEALTHY:
                logger.warning("node %s failed: %s", node_id, reason)
                lost = SetNode(node_id, place.path, place.domain, NodeState.LOST, place.generation)
                try:
                    await index.commit(lost, ORIGIN)
                except WritesStopped as error:
                    logger.warning("that node %s failed is noted later: %s", node_id, error)

    def usable() -> list[NodeEntry]:
        return [
            place for place in index.keymap.nodes() if place.state is NodeState.HEALTHY and place.node_id in nodes.nodes
        ]

    return SegmentPlane(
        nodes=nodes.nodes,
        k=nodes.descriptor.k,
        m=nodes.descriptor.m,
        owner=owner,
        store_id=nodes.descriptor.store_id,
        announce=announce,
        segment_of=index.keymap.segment,
        healthy=usable,
        report_failure=report_failure,
        report_rot=rot.report,
        rooms=lambda: nodes.reserve.look().room,
    )


async def _seal_when_asked(plane: SegmentPlane, index: Index) -> None:
    """An open segment nobody appends to is sealed, so that it can be repaired and read
    without its owner; and every one when collection asks for it."""
    answered = index.seal_request()
    while True:
        await anyio.sleep(SEAL_POLL_SECONDS)
        asked = index.seal_request()
        if asked != answered or plane.idle_seconds() > IDLE_SEAL_SECONDS:
            try:
                await plane.seal()
                answered = asked
            except (WritesStopped, IndexUnavailable) as error:
                # Tried again; a segment that stays open harms nobody but who wants to repair it.
                logger.warning("a segment stays open for now: %s", error)
                await anyio.sleep(SEAL_RETRY_SECONDS)


def _owner_name() -> str:
    return f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
