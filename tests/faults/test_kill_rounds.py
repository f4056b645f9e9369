"""Whatever is killed, and when, nothing acknowledged is lost. The short version of
tools/kill-rounds, which runs hundreds of rounds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

running = pytest.importorskip("running")  # tools/running.py, on the path by conftest.py

from expectation import Broken  # noqa: E402
from kill_rounds import KillRounds, run  # noqa: E402

ROUNDS, ROUNDS_TO_NOTICE = 6, 12
pytestmark = pytest.mark.skipif(not running.can_mount(), reason="no /dev/fuse here")


def test_what_was_acknowledged_survives_kills_and_power_cuts(tmp_path: Path) -> None:
    seed = int(os.environ.get("OBJFS_TEST_SEED", "11"))
    done = run(ROUNDS, seed, tmp_path)
    assert done["power cut"] and done["unsynced writes lost"], f"no power was cut under load (seed {seed}): {done}"
    assert done["put"] and done["replace"], f"a door was idle (seed {seed}): {done}"


def test_the_rounds_notice_a_server_that_does_not_sync_its_journal(tmp_path: Path) -> None:
    broken = Path(__file__).with_name("without_sync.py")
    kills = KillRounds(tmp_path, 1, [sys.executable, broken, "journal"])
    try:
        # Either something is gone, or the store says that its journal is and does not open.
        with pytest.raises((Broken, running.Failed), match=r"none of|journal"):
            for _ in range(ROUNDS_TO_NOTICE):
                kills.round()
    finally:
        kills.close()
