"""Answers SQL on DATA/index/tables.sock. A client that hangs up ends its query.

Works under trio and asyncio. Knows the service and the socket, no journal.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import pyarrow
from anyio.abc import ByteStream

from engine.errors import QueryFailed, StoreError
from engine.index.sockets import listen
from engine.index.wire import BadMessage, FrameReader
from engine.tables.service import TablesService
from engine.tables.wire import (
    PIECE_BYTES,
    PROTOCOL,
    QUESTION_BYTES_MAX,
    SOCKET_NAME,
    Answer,
    Question,
    encode,
    framed,
    question_decoder,
)

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64


async def serve_tables(
    service: TablesService,
    directory: Path,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run the service and answer on DIRECTORY/tables.sock until cancelled."""
    slots = anyio.CapacityLimiter(CONNECTIONS_MAX)
    async with anyio.create_task_group() as tasks:
        await tasks.start(service.run)
        path = directory / SOCKET_NAME
        listener = await listen(path)

        async def handle(stream: ByteStream) -> None:
            async with stream, slots:
                await _converse(service, stream)

        try:
            async with listener:
                task_status.started()
                await listener.serve(handle)
        finally:
            path.unlink(missing_ok=True)


async def _converse(service: TablesService, stream: ByteStream) -> None:
    reader = FrameReader(stream)
    try:
        while True:
            payload = await reader.read()
            if len(payload) > QUESTION_BYTES_MAX:
                raise BadMessage(f"a question of {len(payload)} bytes on the tables socket")
            question = question_decoder.decode(payload)
            if question.protocol != PROTOCOL:
                raise BadMessage(f"protocol {question.protocol} on the tables socket")
            await _answer_unless_gone(service, question, stream, reader)
    except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return  # the client hung up
    except (BadMessage, msgspec.MsgspecError) as error:
        log.warning("closing a connection: %s", error)


async def _answer_unless_gone(
    service: TablesService, question: Question, stream: ByteStream, reader: FrameReader
) -> None:
    """Answer; nothing may come from the client meanwhile but its hanging up."""
    answered = False
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            # Gone either way: what came of a second question is dropped with the connection.
            with contextlib.suppress(
                anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError, BadMessage
            ):
                await reader.read()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        await _answer(service, question, stream)
        answered = True
        tasks.cancel_scope.cancel()
    if not answered:
        raise anyio.EndOfStream


async def _answer(service: TablesService, question: Question, stream: ByteStream) -> None:
    if question.sql is None:
        await stream.send(encode(Answer(applied_lsn=service.applied_lsn)))
        return
    try:
        table = await service.query(question.sql)
    except StoreError as error:
        await stream.send(encode(Answer(error=type(error).__name__, message=str(error))))
        return
    try:
        content = await anyio.to_thread.run_sync(_ipc_stream, table)
    except pyarrow.ArrowException as error:
        failure = QueryFailed(f"the result cannot be sent: {error}")
        await stream.send(encode(Answer(error="QueryFailed", message=str(failure))))
        return
    await stream.send(encode(Answer(applied_lsn=service.applied_lsn)))
    for start in range(0, len(content), PIECE_BYTES):
        await stream.send(framed(content[start : start + PIECE_BYTES]))
    await stream.send(framed(b""))


def _ipc_stream(table: pyarrow.Table) -> memoryview:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())
