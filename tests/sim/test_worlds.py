"""Worlds that every check plays: fixed seeds, through the same command as tools/soak, so
that a failure replays with the command it prints; and the model against itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORLDS = 24  # about two minutes on two cores
STEPS = 50


def test_no_promise_is_broken_in_any_world() -> None:
    played = subprocess.run(
        [sys.executable, "tests/sim/__main__.py", "--worlds", str(WORLDS), "--steps", str(STEPS), "--jobs", "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert played.returncode == 0, played.stdout[-20_000:] + played.stderr[-5_000:]
    assert played.stdout.count(f"{WORLDS // 2} worlds of {STEPS} steps, no promise broken") == 2
