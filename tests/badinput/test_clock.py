"""A clock that jumps backwards: the order of records, their times and what is derived from
them stay as they were, also over a restart."""

from __future__ import annotations

import shutil
import time
from itertools import pairwise

import pytest

from engine.changes import SetBucketVersioning
from engine.journal.reading import MergedFile
from engine.journal.records import decode_payload
from engine.journal.recovery import JournalScan
from engine.nodes.descriptor import read_store_descriptor
from engine.nodeset import NodeSet
from engine.store import Store, open_store
from engine.types import Versioning
from tests.badinput.world import ORIGIN, Image, put, run

HOUR = 3600 * 10**9
YEAR = 365 * 24 * HOUR


class Clock:
    """time.time_ns() of the engine, set back and forth; one that lost its battery says 1970."""

    def __init__(self) -> None:
        self.shift = 0
        self._real = time.time_ns

    def __call__(self) -> int:
        return max(self._real() + self.shift, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "time_ns", found)
    return found


def record_times(image: Image) -> list[tuple[int, int]]:
    """(LSN, time) of every record of the journal, as the nodes hold it."""
    descriptor = read_store_descriptor(image.data)
    nodes = NodeSet(descriptor)
    try:
        scan = JournalScan(nodes.nodes, descriptor.store_id)
        found = []
        for key in sorted(scan.files):
            merged = MergedFile(nodes.nodes, key, descriptor.store_id)
            found += [(record.lsn, decode_payload(record).time_ns) for _, record in merged.records()]
        return found
    finally:
        nodes.close()


def modified(store: Store, key: str) -> list[int]:
    """Of every version of the key, newest first."""
    page = store.keymap.list_versions("bucket", prefix=key)
    return [version.last_modified_ns for version in page.versions]


@pytest.mark.parametrize("jump", [HOUR, YEAR, 60 * YEAR])
@pytest.mark.parametrize("index_lost", [False, True])
def test_records_and_versions_stay_in_order_when_the_clock_goes_back(
    closed: Image, clock: Clock, jump: int, index_lost: bool
) -> None:
    async def work(rounds: int) -> None:
        async with open_store(closed.data) as store:
            await store.commit(SetBucketVersioning("bucket", Versioning.ENABLED), ORIGIN)
            for number in range(rounds):
                await put(store, "key", f"version {number} of {clock.shift}".encode())
                clock.shift -= jump // rounds
            times = modified(store, "key")
            assert times == sorted(times, reverse=True) and len(set(times)) == len(times)

    run(lambda: work(5))
    if index_lost:
        shutil.rmtree(closed.data / "index")
    clock.shift -= jump
    run(lambda: work(3))  # a server restarted with an earlier clock
    clock.shift += 3 * jump
    run(lambda: work(2))
    clock.shift -= 4 * jump

    async def last() -> None:
        async with open_store(closed.data) as store:
            times = modified(store, "key")
            assert len(times) == 10
            assert times == sorted(times, reverse=True) and len(set(times)) == len(times)
            newest = store.keymap.head("bucket", "key")
            assert newest is not None and newest.last_modified_ns == times[0]

    run(last)
    records = record_times(closed)
    lsns, times = [lsn for lsn, _ in records], [at for _, at in records]
    assert lsns == list(range(1, len(lsns) + 1))
    assert all(earlier < later for earlier, later in pairwise(times)), "record times ascend"
