"""Asking the tables: over the socket where a server runs, else in this process.

Imports neither DuckDB nor Arrow before a query needs them. Works under trio and asyncio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread
import msgspec

from engine.errors import BY_NAME, IndexUnavailable, StoreError, StoreInUse
from engine.index.sockets import connect
from engine.index.wire import BadMessage, FrameReader
from engine.journal.archive import read_archives
from engine.pins import Pins
from engine.quarantine import list_quarantined
from engine.tables.wire import SOCKET_NAME, Answer, Question, answer_decoder, encode

if TYPE_CHECKING:
    import pyarrow

    from engine.changes import Record
    from engine.interfaces import Index, Node
    from engine.tables.service import LoadTree, TablesService

TABLES_NAME = "tables.duckdb"
STATUS_SECONDS = 2.0
ARCHIVED_RECORDS_AT_ONCE = 1000
TAKE_OVER_SECONDS = 10.0  # for a tables process that starts, or ends, right now


class _Descriptor(Protocol):
    @property
    def store_id(self) -> str: ...
    @property
    def m(self) -> int: ...


class _Nodes(Protocol):
    @property
    def nodes(self) -> Mapping[str, Node]: ...


class StoreParts(Protocol):
    """What of an open store the tables need."""

    data: Path

    @property
    def pins(self) -> Pins: ...
    @property
    def descriptor(self) -> _Descriptor: ...
    @property
    def nodes(self) -> _Nodes: ...
    @property
    def index(self) -> Index: ...


async def query(data: Path, sql: str) -> pyarrow.Table:
    """Ask the server of the store at DATA. Raises QueryFailed, IndexUnavailable (nobody serves)."""
    import pyarrow

    async with _asked(data, Question(sql)) as (reader, answer):
        if answer.error is not None:
            raise BY_NAME.get(answer.error, StoreError)(answer.message)
        pieces: list[bytes] = []
        while piece := await reader.read():
            pieces.append(piece)
    with pyarrow.ipc.open_stream(b"".join(pieces)) as stream:
        return stream.read_all()


async def applied_lsn(data: Path) -> int | None:
    """How far the tables of the store at DATA are; None while nobody serves them."""
    with anyio.move_on_after(STATUS_SECONDS):
        try:
            async with _asked(data, Question()) as (_, answer):
                return answer.applied_lsn
        except IndexUnavailable:
            return None
    return None


def tables_service(parts: StoreParts, load_tree: LoadTree) -> TablesService:
    """The tables of an open store, to be run. `load_tree` reads a node of a manifest's tree."""
    from engine.tables.service import TablesService

    async def archived(from_lsn: int) -> AsyncIterator[list[Record]]:
        records = read_archives(parts.nodes.nodes, descriptor.store_id, from_lsn - 1)
        while some := await anyio.to_thread.run_sync(lambda: list(islice(records, ARCHIVED_RECORDS_AT_ONCE))):
            yield some

    path, descriptor = parts.data / "index" / TABLES_NAME, parts.descriptor
    return TablesService(
        parts.index,
        load_tree,
        path,
        store_id=descriptor.store_id,
        m=descriptor.m,
        archives=archived,
        hold_pin=parts.pins.hold,
        set_aside=lambda: list_quarantined(dict(parts.nodes.nodes)),
    )


async def query_tables(parts: StoreParts, load_tree: LoadTree, sql: str) -> pyarrow.Table:
    """Ask whoever serves the tables; if nobody does, bring them up to date here, then ask.
    Raises QueryFailed, StoreInUse."""
    deadline = anyio.current_time() + TAKE_OVER_SECONDS
    while True:
        try:
            return await query(parts.data, sql)
        except IndexUnavailable:
            service = tables_service(parts, load_tree)
        try:
            return await _query_here(service, sql)
        except StoreInUse:  # a tables process that is not answering yet, or another command like this one
            if anyio.current_time() > deadline:
                raise
        await anyio.sleep(0.1)


async def _query_here(service: TablesService, sql: str) -> pyarrow.Table:
    outcome: list[pyarrow.Table] = []
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(service.run)
            outcome.append(await service.query(sql))
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None
    return outcome[0]


def _first(error: BaseException) -> BaseException:
    """One error speaks for a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def _asked(data: Path, question: Question) -> AsyncIterator[tuple[FrameReader, Answer]]:
    """Put the question and read the answer's head; the connection stays open inside.
    Raises IndexUnavailable."""
    try:
        stream = await connect(data / "index" / SOCKET_NAME)
    except OSError as error:
        raise IndexUnavailable("nobody serves the tables") from error
    try:
        async with stream:
            await stream.send(encode(question))
            reader = FrameReader(stream)
            yield reader, answer_decoder.decode(await reader.read())
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, BadMessage) as error:
        raise IndexUnavailable("the tables process went away while it was asked; try again") from error
    except msgspec.MsgspecError as error:
        raise IndexUnavailable("the tables process speaks another release's protocol; restart the server") from error
