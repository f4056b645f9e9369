"""Clients at two gateway workers and a mount share keys, conditional writes and all; what
they were answered could have been one after another, also while processes are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

running = pytest.importorskip("running")  # tools/running.py, on the path by conftest.py

from linearizability import violation  # noqa: E402
from recorded import History, SharingClient, SharingMountClient, SharingS3Client, prepare, run_together  # noqa: E402
from served import ServedStore  # noqa: E402

SEED = int(os.environ.get("OBJFS_TEST_SEED", "3"))
WORK_SECONDS = float(os.environ.get("OBJFS_TEST_SECONDS", "8"))
pytestmark = pytest.mark.skipif(not running.can_mount(), reason="no /dev/fuse here")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedStore]:
    served = ServedStore(tmp_path)
    try:
        served.start()
        prepare(served)
        yield served
    finally:
        served.close()


def clients_of(served: ServedStore, history: History) -> list[SharingClient]:
    return [
        *(SharingS3Client(f"s{number}", SEED * 10 + number, history, served) for number in range(4)),
        *(SharingMountClient(f"m{number}", SEED * 10 + 5 + number, history, served) for number in range(2)),
    ]


def test_answers_of_both_doors_are_linearizable(served: ServedStore) -> None:
    history = History()
    run_together(clients_of(served, history), lambda: time.sleep(WORK_SECONDS))
    assert violation(history.calls) is None, violation(history.calls)
    missing = {
        "get",
        "put",
        "put-if-new",
        "put-if-match",
        "delete",
        "read",
        "rename",
        "rename-if-new",
        "create",
        "take",
    }
    missing.difference_update(history.counts)
    assert not missing, f"never done (seed {SEED}): {missing}"
    assert not history.counts["unknown"], "nothing was killed"


def test_answers_are_linearizable_while_processes_are_killed(served: ServedStore) -> None:
    history = History()
    rng = random.Random(SEED)

    def kill() -> None:
        for victim in ("gateway", "index", "mount", "gateway", "index"):
            time.sleep(WORK_SECONDS / 6)
            for pid in served.processes(victim)[: rng.randint(1, 2)]:
                served.signal(pid, signal.SIGKILL)
        time.sleep(WORK_SECONDS / 3)

    run_together(clients_of(served, history), kill)
    assert violation(history.calls) is None, violation(history.calls)
    assert len(history.calls) > 50, history.counts
