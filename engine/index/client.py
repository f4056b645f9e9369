"""IndexClient: the Index of a process that joined a store.

Commits cross the index socket; the keymap is read from its file, frames that ride in the
journal from the nodes. When the index process restarts the client reconnects, and a
commit in flight is sent again with the same request id: the index answers what it
answered (or decides it for the first time). One event loop per client.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import ByteStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from engine import limits
from engine.changes import Change, CommitResult, Origin
from engine.errors import IndexUnavailable, StoreError
from engine.index.page import PageReader
from engine.index.server import SOCKET_NAME
from engine.index.sockets import connect
from engine.index.wire import (
    AskCall,
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
    encode,
    raise_error,
    server_decoder,
)
from engine.interfaces import Confirm, FeedBatch, Node
from engine.journal.reading import read_journal_frame
from engine.keymap.reader import SqliteKeymap
from engine.types import JournalLocation

RETRY_SECONDS = 10.0
RECONNECT_SECONDS = 0.1
FEED_BATCHES_MAX = 64
OUTBOX_BYTES_MAX = 2 * limits.COMMIT_BYTES_MAX  # more waits for the socket

logger = logging.getLogger("objfs.index")


class ConnectionLost(StoreError):
    """The index went away while a call was in flight."""


_LOST = (ConnectionLost, anyio.BrokenResourceError, anyio.ClosedResourceError)


class _Call:
    def __init__(self) -> None:
        self.done = anyio.Event()
        self.reply: Reply | None = None


class IndexClient:
    """See the module; made by open_index_client()."""

    def __init__(self, directory: Path, nodes: Mapping[str, Node], owner: str) -> None:
        self.keymap = SqliteKeymap(directory / "keymap.sqlite")
        self.on_reconnect: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._directory = directory
        self._nodes = nodes
        self._owner = owner
        self._page = PageReader(directory / "page")
        self._outbox: list[bytes] | None = None  # None: not connected
        self._outbox_bytes = 0
        self._posted = anyio.Event()  # something is in the outbox
        self._sent = anyio.Event()  # the outbox was taken
        self._connected = anyio.Event()
        self._calls: dict[int, _Call] = {}
        self._feeds: dict[int, MemoryObjectSendStream[FeedBatch]] = {}
        self._awaited: dict[int, str] = {}  # by feed: subscribers whose confirmations changes wait for
        self._next_call = 0

    # -- Index -----------------------------------------------------------------

    async def commit(self, change: Change, origin: Origin, *, durable: bool = True) -> CommitResult:
        if not origin.request_id:  # the token that makes a retry safe
            origin = msgspec.structs.replace(origin, request_id=secrets.token_hex(8))
        reply = await self._call(lambda call: CommitCall(call, change, origin, durable))
        assert reply.result is not None, "a commit's reply carries its result"
        return reply.result

    async def freshen(self) -> None:
        """Nothing to wait for: the index applies before it answers, and every keymap read
        starts a new snapshot of the same file."""

    def durable_lsn(self) -> int:
        return self._page.durable_lsn()

    async def wait_durable(self, lsn: int) -> None:
        if self._page.durable_lsn() < lsn:
            await self._call(lambda call: DurableCall(call, lsn))

    async def rotate_journal(self) -> int:
        return (await self._call(lambda call: AskCall(call, "rotate_journal"))).count or 0

    async def request_seal(self) -> None:
        await self._call(lambda call: AskCall(call, "request_seal"))

    def seal_request(self) -> int:
        return self._page.seal_request()

    def condemned_lsn(self) -> int:
        return self._page.condemned_lsn()

    async def recount(self) -> list[str]:
        return (await self._call(lambda call: AskCall(call, "recount"))).lines

    async def heal_journal(self) -> None:
        await self._call(lambda call: AskCall(call, "heal_journal"))

    async def journal_under_redundancy(self) -> int:
        return (await self._call(lambda call: AskCall(call, "journal_under_redundancy"))).count or 0

    async def subscribe(
        self, *, subscriber_id: str, confirms: bool, from_lsn: int | None = None
    ) -> AsyncIterator[tuple[FeedBatch, Confirm]]:
        while True:
            try:
                await self._wait_connected(RETRY_SECONDS)
                number, batches = await self._open_feed(subscriber_id, confirms, from_lsn)
            except _LOST:
                await anyio.sleep(RECONNECT_SECONDS)
                continue

            async def confirm(number: int = number) -> None:
                if confirms and number in self._feeds:
                    # With the connection the subscription ended: nobody waits for it any more.
                    with suppress(*_LOST):
                        await self._send(ConfirmCall(number))

            try:
                async for batch in batches:
                    if batch.awaited:
                        if number in self._feeds:
                            self._awaited[number] = subscriber_id
                        continue
                    yield batch, confirm
                    if batch.dropped and confirms:
                        return
                    if from_lsn is not None:
                        from_lsn = batch.last_lsn + 1
            finally:
                self._awaited.pop(number, None)
                await self._unsubscribe(number)
            # The feed was cut: what happened meanwhile is unknown to a follower of now.
            if from_lsn is None:
                yield FeedBatch(0, 0, [], [], dropped=True), _nothing

    async def read_frame(self, location: JournalLocation, chunk_id: bytes | None = None) -> bytes:
        return await read_journal_frame(self._nodes, location, chunk_id)

    def awaits(self, subscriber_id: str) -> bool:
        return subscriber_id in self._awaited.values()

    async def aclose(self) -> None:
        self.keymap.close()
        self._page.close()

    # -- the connection --------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection until cancelled."""
        first = True
        while True:
            try:
                stream = await connect(self._directory / SOCKET_NAME)
            except OSError:
                await anyio.sleep(RECONNECT_SECONDS)
                continue
            async with stream:
                await self._converse(stream, first)
            first = False

    async def _converse(self, stream: ByteStream, first: bool) -> None:
        self._page.reopen()
        self.keymap.reopen()
        try:
            await stream.send(encode(Hello(self._owner)))
            self._outbox, self._outbox_bytes, self._posted = [], 0, anyio.Event()
            self._connected.set()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_posted, stream)
                if not first and self.on_reconnect is not None:
                    tasks.start_soon(self.on_reconnect)
                reader = FrameReader(stream)
                while True:
                    await self._receive(server_decoder.decode(await reader.read()))
        except* (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.info("the index process went away; reconnecting")
        finally:
            self._outbox = None
            self._sent.set()
            if self._connected.is_set():  # else callers wait on it still: it must not be swapped under them
                self._connected = anyio.Event()
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.done.set()
            feeds, self._feeds = self._feeds, {}
            self._awaited.clear()
            for feed in feeds.values():
                feed.close()

    async def _receive(self, message: Reply | FeedPush) -> None:
        if isinstance(message, FeedPush):
            feed = self._feeds.get(message.subscription)
            if feed is not None:
                try:
                    feed.send_nowait(message.batch)
                except anyio.WouldBlock:
                    # Waiting here would hold up every answer: the follower starts afresh.
                    feed.close()
                    await self._unsubscribe(message.subscription)
            return
        call = self._calls.pop(message.call, None)
        if call is not None:
            call.reply = message
            call.done.set()

    async def _call(self, make: Callable[[int], ClientMessage]) -> Reply:
        """Send a call and wait for its reply, over reconnects. Raises IndexUnavailable, and
        whatever the reply reports."""
        deadline = anyio.current_time() + RETRY_SECONDS
        while True:
            await self._wait_connected(deadline - anyio.current_time())
            self._next_call += 1
            number, call = self._next_call, _Call()
            self._calls[number] = call
            try:
                await self._send(make(number))
                await call.done.wait()
            except _LOST:
                await anyio.sleep(RECONNECT_SECONDS)
            finally:
                self._calls.pop(number, None)
            if call.reply is not None:
                raise_error(call.reply)
                return call.reply

    async def _wait_connected(self, seconds: float) -> None:
        with anyio.move_on_after(max(seconds, 0)):
            await self._connected.wait()
            return
        raise IndexUnavailable("the index process does not answer; is objfs serve running?")

    async def _send(self, message: ClientMessage) -> None:
        """Hand the message to the connection's sender. What a lost connection swallows is
        sent again by _call()."""
        if self._outbox is None:
            raise ConnectionLost("the index process went away")
        self._outbox.append(encode(message))
        self._outbox_bytes += len(self._outbox[-1])
        self._posted.set()
        while self._outbox is not None and self._outbox_bytes > OUTBOX_BYTES_MAX:
            await self._sent.wait()

    async def _send_posted(self, stream: ByteStream) -> None:
        while True:
            await self._posted.wait()
            self._posted = anyio.Event()
            outbox, self._outbox, self._outbox_bytes = self._outbox or [], [], 0
            self._sent.set()
            self._sent = anyio.Event()
            await stream.send(b"".join(outbox))

    async def _unsubscribe(self, number: int) -> None:
        if self._feeds.pop(number, None) is not None:
            with anyio.CancelScope(shield=True), suppress(*_LOST):
                await self._send(UnsubscribeCall(number))

    async def _open_feed(
        self, subscriber_id: str, confirms: bool, from_lsn: int | None
    ) -> tuple[int, MemoryObjectReceiveStream[FeedBatch]]:
        self._next_call += 1
        number = self._next_call
        send, receive = anyio.create_memory_object_stream[FeedBatch](FEED_BATCHES_MAX)
        self._feeds[number] = send
        await self._send(SubscribeCall(number, subscriber_id, confirms, from_lsn))
        return number, receive


async def _nothing() -> None:
    """Confirms a batch nobody waits for."""


@asynccontextmanager
async def open_index_client(
    directory: Path, *, nodes: Mapping[str, Node], owner: str, join_seconds: float = RETRY_SECONDS
) -> AsyncIterator[IndexClient]:
    """Join the index whose socket lies in `directory`. Raises IndexUnavailable."""
    deadline = anyio.current_time() + join_seconds
    while True:  # the owner may still be opening: its keymap appears with its socket
        try:
            stream = await connect(directory / SOCKET_NAME)
        except OSError:
            if anyio.current_time() > deadline:
                raise IndexUnavailable(f"nobody answers at {directory / SOCKET_NAME}") from None
            await anyio.sleep(RECONNECT_SECONDS)
            continue
        await stream.aclose()
        break
    client = IndexClient(directory, nodes, owner)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.run)
        try:
            yield client
        finally:
            tasks.cancel_scope.cancel()
            await client.aclose()
