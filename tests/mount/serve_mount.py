"""Run by the tests as a process of its own: mounts a store and, on its standard input,
takes commands that play another door (one JSON list a line; answers likewise).

    python serve_mount.py DATA DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import trio

from engine.care.collect import collect
from engine.changes import CreateBucket, DeleteKey, Door, Origin, PutVersion, SetBucketVersioning
from engine.store import Store, open_store
from engine.types import Versioning
from objfs.mount import pinning
from objfs.mount.mount import run_mount


async def other_door(store: Store, request: list[Any]) -> Any:
    """What an S3 client would do."""
    origin = Origin(request_id=f"other-{trio.current_time()}", door=Door.S3)
    match request:
        case ["bucket", bucket]:
            await store.commit(CreateBucket(bucket), origin)
        case ["put", bucket, key, text]:
            etag = hashlib.md5(text.encode()).hexdigest()
            with store.pins.hold():
                writer = store.open_writer()
                await writer.write(text.encode())
                await store.commit(PutVersion(bucket, key, await writer.finish(), etag, new_file=True), origin)
        case ["fill", bucket, key, text, times]:
            return await other_door(store, ["put", bucket, key, text * times])
        case ["delete", bucket, key]:
            await store.commit(DeleteKey(bucket, key, new_file=True), origin)
        case ["delete newest", bucket, key]:
            await store.freshen()
            newest = store.keymap.head(bucket, key)
            assert newest is not None
            await store.commit(DeleteKey(bucket, key, version_id=newest.version_id, new_file=True), origin)
        case ["get", bucket, key]:
            await store.freshen()
            version = store.keymap.head(bucket, key)
            if version is None or version.delete_marker:
                return None
            content = await store.read_range(version.manifest, 0, version.size)
            return [hashlib.sha256(content).hexdigest(), version.size, version.etag]
        case ["versioning", bucket]:
            await store.commit(SetBucketVersioning(bucket, Versioning.ENABLED), origin)
        case ["versions", bucket, key]:
            page = store.keymap.list_versions(bucket, key)
            return [[version.size, version.delete_marker] for version in page.versions if version.key == key]
        case ["collect"]:
            result = await collect(store.parts, compact=True, wait_seconds=20)
            return [result.freed_bytes, result.reasons]
        case ["free", content_bytes]:
            store.space = lambda: (1 << 40, content_bytes)  # type: ignore[method-assign]
        case _:
            raise AssertionError(request)
    return True


async def serve(data: Path, directory: str) -> None:
    stop = trio.Event()

    async def watch_signals(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                stop.set()

    async def take_commands() -> None:
        received = b""
        async for piece in trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())):
            *lines, received = (received + piece).split(b"\n")
            for line in lines:
                print(json.dumps(await other_door(store, json.loads(line))), flush=True)

    async with open_store(data) as store, trio.open_nursery() as nursery:
        await nursery.start(watch_signals)
        nursery.start_soon(take_commands)
        await run_mount(store, directory, ready=lambda: print('"ready"', flush=True), stop=stop)
        print('"unmounted"', flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    pinning.RENEW_SECONDS = 0.5
    trio.run(serve, Path(sys.argv[1]), sys.argv[2])
