"""Processes that are stopped, given up by the others, and wake: what was acknowledged is
there, nothing wrong is served, and every answer could have been one after another."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import anyio.from_thread
import anyio.to_thread
import pytest

running = pytest.importorskip("running")  # tools/running.py, on the path by conftest.py

from linearizability import violation  # noqa: E402
from recorded import History, SharingMountClient, SharingS3Client, prepare, run_together  # noqa: E402
from served import ServedStore, wait_until  # noqa: E402

from engine import limits  # noqa: E402
from engine.index.client import open_index_client  # noqa: E402
from engine.types import SegmentState  # noqa: E402

SEED = int(os.environ.get("OBJFS_TEST_SEED", "5"))
LARGE_BYTES = 200_000  # does not ride in the journal: it lies in the worker's segment
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not running.can_mount(), reason="no /dev/fuse here")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the servers are processes of their own, whatever runs here


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedStore]:
    served = ServedStore(tmp_path)
    try:
        served.start()
        prepare(served)
        yield served
    finally:
        for pid in served.store.processes():
            served.signal(pid, signal.SIGCONT)
        served.close()


async def open_segments(served: ServedStore, owner_pid: int) -> int:
    """How many segments of the process the index knows as open."""
    async with open_index_client(served.data / "index", nodes={}, owner="observer") as index:
        segments = list(index.keymap.segments())
    return sum(f"-{owner_pid}-" in segment.owner and segment.state is SegmentState.OPEN for segment in segments)


def check(history: History) -> None:
    found = violation(history.calls)
    assert found is None, found


async def test_a_worker_whose_segment_was_sealed_while_it_was_stopped_loses_nothing(served: ServedStore) -> None:
    history = History()
    clients = [SharingS3Client(f"s{number}", SEED * 10 + number, history, served, LARGE_BYTES) for number in range(5)]
    sealed_under_it = []

    def stop_and_wake() -> None:
        for _ in range(2):
            time.sleep(1.5)
            worker = served.processes("gateway")[0]
            before = anyio.from_thread.run(open_segments, served, worker)
            served.signal(worker, signal.SIGSTOP)
            (index,) = served.processes("index")
            served.signal(index, signal.SIGKILL)
            wait_until(lambda old=index: served.processes("index") not in ([], [old]), "a new index process")  # type: ignore[misc]
            time.sleep(2.5)  # its segment is sealed, the other worker goes on
            after = anyio.from_thread.run(open_segments, served, worker)
            sealed_under_it.append(before > 0 and after == 0)
            served.signal(worker, signal.SIGCONT)
        time.sleep(2.5)

    await anyio.to_thread.run_sync(run_together, clients, stop_and_wake)
    check(history)
    assert any(sealed_under_it), "the stopped worker had no open segment, so nothing was tried"
    assert history.counts["put"] > 10
    served.stop()
    served.store.objfs("fsck")


def test_a_mount_stopped_for_longer_than_its_lease_shows_nothing_old(served: ServedStore) -> None:
    history = History()
    clients = [
        *(SharingS3Client(f"s{number}", SEED * 10 + number, history, served) for number in range(3)),
        *(SharingMountClient(f"m{number}", SEED * 10 + 5 + number, history, served) for number in range(2)),
    ]

    def stop_and_wake() -> None:
        time.sleep(1.5)
        (mount,) = served.processes("mount")
        served.signal(mount, signal.SIGSTOP)
        time.sleep(limits.LEASE_SECONDS + 2)
        served.signal(mount, signal.SIGCONT)
        time.sleep(2)

    run_together(list(clients), stop_and_wake)
    check(history)
    assert history.counts["read"] > 10 and history.counts["put"] > 5, history.counts


def test_an_index_and_workers_that_stand_still_for_a_moment_answer_in_order(served: ServedStore) -> None:
    history = History()
    clients = [
        *(SharingS3Client(f"s{number}", SEED * 10 + number, history, served) for number in range(4)),
        SharingMountClient("m0", SEED * 10 + 5, history, served),
    ]

    def stop_and_wake() -> None:
        for role in ("index", "gateway", "index", "gateway"):
            time.sleep(0.7)
            victim = served.processes(role)[-1]
            served.signal(victim, signal.SIGSTOP)
            time.sleep(1.2)
            served.signal(victim, signal.SIGCONT)
        time.sleep(1)

    run_together(list(clients), stop_and_wake)
    check(history)
    assert history.counts["put"] > 5, history.counts
