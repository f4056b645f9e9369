"""Plays worlds, one seed after another. tools/soak is its command line."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sim.world import World, describe, replay_command

STEPS = 60
WORLD_SECONDS_MAX = 300  # of real time: a world that takes longer hangs


def play(seed: int, steps: int, *, verbose: bool = False) -> str | None:
    """One world; what went wrong in it, or None."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="objfs-sim-", dir=shared if shared.is_dir() else None))
    tell = (lambda line: print(line, flush=True)) if verbose else None
    faulthandler.dump_traceback_later(WORLD_SECONDS_MAX, exit=True)
    try:
        World(seed, folder, steps, tell=tell).play()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return describe(error)
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder, ignore_errors=True)
    return None


def play_on(seed: int, steps: int, minutes: float, *, worlds: int = 1, stride: int = 1, verbose: bool = False) -> int:
    """From `seed` on until the minutes are over and so many worlds were played. The exit status."""
    end, count = time.monotonic() + 60 * minutes, 0
    while True:
        print(f"seed {seed} …", flush=True)
        wrong = play(seed, steps, verbose=verbose)
        if wrong is not None:
            print(wrong)
            print(f"FAILED: seed {seed}, {steps} steps; replay it with:\n    {replay_command(seed, steps)}")
            return 1
        count, seed = count + 1, seed + stride
        if time.monotonic() >= end and count >= worlds:
            print(f"{count} worlds of {steps} steps, no promise broken")
            return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/soak", description="Play simulated worlds against the model.")
    parser.add_argument("--seed", type=int, default=1, help="the first world (default 1)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each world (default {STEPS})")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="go on for so long (default: no longer than --worlds take)"
    )
    parser.add_argument("--worlds", type=int, default=1, help="play at least so many (default 1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--verbose", action="store_true", help="tell every step")
    parser.add_argument("--stride", type=int, default=1, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a world
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    logging.basicConfig(level=logging.INFO if asked.verbose else logging.CRITICAL, format="    %(message)s")
    if asked.jobs == 1:
        return play_on(
            asked.seed,
            asked.steps,
            asked.minutes,
            worlds=asked.worlds,
            stride=asked.stride,
            verbose=asked.verbose,
        )
    command = [sys.executable, sys.argv[0], "--steps", str(asked.steps), "--minutes", str(asked.minutes)]
    command += ["--worlds", str(-(-asked.worlds // asked.jobs))]
    started = [
        subprocess.Popen([*command, "--seed", str(asked.seed + number), "--stride", str(asked.jobs)])
        for number in range(asked.jobs)
    ]
    return max(process.wait() for process in started)
