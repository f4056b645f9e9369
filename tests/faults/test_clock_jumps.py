"""A clock that jumps backwards: the times of records go on rising, across restarts too,
and what is newest stays newest."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.changes import CreateBucket, Origin, PutVersion, SetBucketVersioning
from engine.store import Store, init_store, open_store
from engine.types import Versioning

ORIGIN = Origin(requester="test")
HOUR_NS = 3_600 * 10**9
pytestmark = pytest.mark.anyio


class Clock:
    """In place of time.time_ns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: self.now_ns)


async def put(store: Store, content: bytes) -> int:
    """The time of the new version."""
    with store.pins.hold():
        writer = store.open_writer()
        await writer.write(content)
        result = await store.commit(PutVersion("bucket", "key", await writer.finish(), etag="e"), ORIGIN)
    assert result.version is not None
    return result.version.last_modified_ns


async def check(store: Store, times: list[int], newest: bytes) -> None:
    assert times == sorted(set(times)), "record times rise, whatever the clock does"
    head = store.keymap.head("bucket", "key")
    assert head is not None and head.last_modified_ns == times[-1]
    assert bytes(await store.read_range(head.manifest, 0, head.size)) == newest
    shown = [version.last_modified_ns for version in store.keymap.list_versions("bucket").versions]
    assert shown == times[::-1], "versions are listed newest first"


async def test_record_times_rise_though_the_clock_jumps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, times = tmp_path / "data", []
    init_store(data)
    clock = Clock(monkeypatch)
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await store.commit(SetBucketVersioning("bucket", Versioning.ENABLED), ORIGIN)
        times.append(await put(store, b"before"))
        clock.now_ns -= HOUR_NS
        times += [await put(store, b"after the jump"), await put(store, b"and again")]
        await check(store, times, b"and again")
    clock.now_ns -= HOUR_NS
    async with open_store(data) as store:
        times.append(await put(store, b"reopened"))
        await check(store, times, b"reopened")
    for path in (data / "index").glob("keymap.sqlite*"):
        path.unlink()
    clock.now_ns -= HOUR_NS
    async with open_store(data) as store:
        await check(store, times, b"reopened")
        times.append(await put(store, b"rebuilt"))
        await check(store, times, b"rebuilt")
        assert await store.fsck() == []
