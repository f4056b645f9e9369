"""No process holds keys in memory: not those it committed, not those it listed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine import limits

ROOT = Path(__file__).resolve().parents[2]
KEYS = 3000
TIMES = 4
# Whoever holds the keys alone, without anything about them, has grown by twice this at the end.
GROWTH_BYTES_MAX = (TIMES - 1) * KEYS * limits.KEY_BYTES_MAX // 2


def test_memory_does_not_grow_with_the_number_of_keys(tmp_path: Path) -> None:
    script = Path(__file__).with_name("many_keys.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data"), str(KEYS), str(TIMES)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    held = [int(line) for line in run.stdout.splitlines()]
    assert len(held) == TIMES
    assert held[-1] - held[0] < GROWTH_BYTES_MAX, held
