"""The index socket's server side: one task per call, so calls pipeline and their commits
share a batch. Knows the Index protocol only."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import anyio
import msgspec
from anyio.abc import ByteStream, TaskGroup

from engine import limits
from engine.changes import CommitResult
from engine.errors import StoreError
from engine.index.local import LocalIndex
from engine.index.sockets import listen
from engine.index.wire import (
    AskCall,
    BadMessage,
    ClientMessage,
    CommitCall,
    ConfirmCall,
    DurableCall,
    FeedPush,
    FrameReader,
    Hello,
    Reply,
    SubscribeCall,
    UnsubscribeCall,
    client_decoder,
    encode,
    error_reply,
)
from engine.interfaces import Confirm

SOCKET_NAME = "index.sock"
CALLS_MAX = limits.COMMIT_QUEUE_MAX  # in flight per connection; more wait in the socket

logger = logging.getLogger("objfs.index")


OwnerGone = Callable[[str], Awaitable[None]]


async def serve_index(index: LocalIndex, directory: Path, *, on_owner_gone: OwnerGone) -> None:
    """Serve until cancelled. `on_owner_gone` is told the owner name of each connection
    that ended, so that its open segments can be sealed."""
    listener = await listen(directory / SOCKET_NAME)

    async def handle(stream: ByteStream) -> None:
        connection = _Connection(index, stream)
        try:
            async with stream:
                await connection.run()
        finally:
            if connection.owner:
                try:
                    await on_owner_gone(connection.owner)
                except StoreError as error:
                    logger.warning("sealing the segments of %s: %s", connection.owner, error)

    async with listener:
        await listener.serve(handle)


class _Connection:
    def __init__(self, index: LocalIndex, stream: ByteStream) -> None:
        self.owner = ""
        self._index = index
        self._stream = stream
        self._sending = anyio.Lock()
        self._in_flight = 0  # commits
        self._landed = anyio.Event()  # one of them was answered
        self._outbox: list[bytes] = []
        self._posted = anyio.Event()
        self._slots = anyio.CapacityLimiter(CALLS_MAX)
        self._confirms: dict[int, list[Confirm]] = {}
        self._following: dict[int, anyio.CancelScope] = {}

    async def run(self) -> None:
        reader = FrameReader(self._stream)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_posted)
                while True:
                    try:
                        message = client_decoder.decode(await reader.read())
                    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                        break
                    except (BadMessage, msgspec.DecodeError) as error:
                        logger.warning("index socket: connection dropped: %s", error)
                        break
                    await self._dispatch(message, tasks)
                tasks.cancel_scope.cancel()
        except* (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("a client of the index went away in the middle of an answer")

    async def _dispatch(self, message: ClientMessage, tasks: TaskGroup) -> None:
        match message:
            case Hello():
                self.owner = message.owner
            case ConfirmCall():
                waiting = self._confirms.get(message.subscription)
                if waiting:
                    await waiting.pop(0)()
            case SubscribeCall():
                tasks.start_soon(self._feed, message)
            case UnsubscribeCall():
                following = self._following.get(message.subscription)
                if following is not None:
                    following.cancel()
            case CommitCall():
                await self._commit(message)
            case DurableCall() | AskCall():
                await self._slots.acquire_on_behalf_of(message.call)
                tasks.start_soon(self._answer, message)

    async def _commit(self, message: CommitCall) -> None:
        """The hot path: no task per commit, and answers of one batch share a send."""
        call = message.call
        while self._in_flight >= CALLS_MAX:
            await self._landed.wait()
        self._in_flight += 1

        def done(result: CommitResult | None, error: StoreError | None) -> None:
            self._in_flight -= 1
            if self._in_flight == CALLS_MAX - 1:
                self._landed.set()
                self._landed = anyio.Event()
            self._post(Reply(call, result=result) if error is None else error_reply(call, error))

        try:
            await self._index.submit(message.change, message.origin, message.durable, done)
        except StoreError as error:
            done(None, error)

    async def _answer(self, message: DurableCall | AskCall) -> None:
        try:
            reply = await self._decide(message)
        except StoreError as error:
            reply = error_reply(message.call, error)
        finally:
            self._slots.release_on_behalf_of(message.call)
        self._post(reply)

    async def _decide(self, message: DurableCall | AskCall) -> Reply:
        match message:
            case DurableCall():
                await self._index.wait_durable(message.lsn)
                return Reply(message.call)
            case AskCall():
                if message.question == "recount":
                    return Reply(message.call, lines=await self._index.recount())
                if message.question == "request_seal":
                    await self._index.request_seal()
                    return Reply(message.call)
                if message.question == "heal_journal":
                    await self._index.heal_journal()
                    return Reply(message.call)
                if message.question == "rotate_journal":
                    return Reply(message.call, count=await self._index.rotate_journal())
                if message.question == "journal_under_redundancy":
                    return Reply(message.call, count=await self._index.journal_under_redundancy())
                raise StoreError(f"the index does not know the question {message.question!r}")

    async def _feed(self, message: SubscribeCall) -> None:
        confirms = self._confirms.setdefault(message.call, [])
        with anyio.CancelScope() as self._following[message.call]:
            batches = self._index.subscribe(
                subscriber_id=message.subscriber_id, confirms=message.confirms, from_lsn=message.from_lsn
            )
            async with aclosing(batches):  # type: ignore[type-var]  # an async generator
                async for batch, confirm in batches:
                    if message.confirms and not batch.awaited:
                        confirms.append(confirm)
                    await self._send(encode(FeedPush(message.call, batch)))
        del self._following[message.call], self._confirms[message.call]

    def _post(self, message: Reply) -> None:
        self._outbox.append(encode(message))
        self._posted.set()

    async def _send_posted(self) -> None:
        while True:
            await self._posted.wait()
            self._posted = anyio.Event()
            outbox, self._outbox = self._outbox, []
            await self._send(b"".join(outbox))

    async def _send(self, messages: bytes) -> None:
        async with self._sending:
            await self._stream.send(messages)
