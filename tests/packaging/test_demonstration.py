"""The demonstration holds: tools/demo.py on real input, with real kills and lost nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
STEPS = ["sync", "diff", "dedup", "edit", "multipart", "kill", "two-away", "back"]


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse to mount through")
def test_every_step_of_the_demonstration_holds_and_nothing_is_left_behind() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "tools" / "demo.py"], capture_output=True, text=True, timeout=1200, cwd=PROJECT
    )
    held = [line.removeprefix("held: ") for line in done.stdout.splitlines() if line.startswith("held: ")]
    assert (done.returncode, held) == (0, STEPS), done.stdout + done.stderr
    assert "objfs-demo-" not in Path("/proc/mounts").read_text()
