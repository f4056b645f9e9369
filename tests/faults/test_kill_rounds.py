"""Whatever is killed, and when, nothing acknowledged is lost. The short version of
tools/kill-rounds, which runs hundreds of rounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

running = pytest.importorskip("running")  # tools/running.py, on the path by conftest.py

from kill_rounds import run  # noqa: E402

ROUNDS = 8


@pytest.mark.skipif(not running.can_mount(), reason="no /dev/fuse here")
def test_what_was_acknowledged_survives_kills_and_power_cuts(tmp_path: Path) -> None:
    seed = int(os.environ.get("OBJFS_TEST_SEED", "11"))
    done = run(ROUNDS, seed, tmp_path)
    assert done["power cut"] and done["unsynced writes lost"], f"no power was cut under load (seed {seed}): {done}"
    assert done["put"] and done["replace"], f"a door was idle (seed {seed}): {done}"
