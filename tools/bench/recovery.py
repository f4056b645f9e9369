"""How long a large store takes to open after kill -9, and its index to be rebuilt.

    python tools/bench/recovery.py [--objects N] [--directory DIR] [--keep]

A process of its own makes N small objects, straight through the index, with checkpoints as
a server would make them, and is killed in the middle of writing. Then, each in a process
of its own: opening after the crash, after a clean close, and rebuild-index with all nodes
and with m missing. Prints a table, and JSON with --json FILE. Processor time is that of the
whole process, start included: what counts on a busy machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

from engine.care.checkpoint import checkpoint
from engine.care.rebuild import rebuild_index
from engine.changes import CreateBucket, Origin, PutVersion
from engine.frames import encode_frame
from engine.opening import Opening, Parts, init_store, open_parts
from engine.types import ChunkEntry, Content, Manifest, NewChunk

ORIGIN = Origin(requester="bench")
SIZE = 200  # bytes of an object
AT_ONCE = 512  # commits in flight
CHECKPOINT_EVERY = 200_000  # records: as often as a server would


def _change(number: int) -> PutVersion:
    plain = hashlib.sha256(b"%d" % number).digest() * (SIZE // 32)
    chunk_id = hashlib.sha256(plain).digest()
    chunk = NewChunk(chunk_id, len(plain), frame=encode_frame(chunk_id, plain))
    content = Content(Manifest([ChunkEntry(chunk_id, len(plain))]), [chunk])
    key = f"{number % 1000:03}/{number:08}"
    return PutVersion("bench", key, content, hashlib.md5(plain).hexdigest(), {"content-type": "text/plain"})


async def _write(parts: Parts, first: int, last: int) -> None:
    async def some(lane: int) -> None:
        for number in range(first + lane, last, AT_ONCE):
            await parts.index.commit(_change(number), ORIGIN)

    async with anyio.create_task_group() as tasks:
        for lane in range(AT_ONCE):
            tasks.start_soon(some, lane)


async def make(data: Path, objects: int) -> None:
    async with open_parts(data, Opening.OWN) as parts:
        await parts.index.commit(CreateBucket("bench"), ORIGIN)
        for first in range(0, objects, CHECKPOINT_EVERY):
            last = min(first + CHECKPOINT_EVERY, objects)
            await _write(parts, first, last)
            if last < objects:  # the last stretch is replayed
                await checkpoint(parts, force=True)
            print(f"made {last}", flush=True)
        print("ready", flush=True)
        await _write(parts, objects, objects + 10**9)  # until it is killed


async def measure_open(data: Path) -> None:
    started = time.monotonic()
    async with open_parts(data, Opening.OWN) as parts:
        seconds = time.monotonic() - started
        cpu = time.process_time()
        found = {"seconds": seconds, "cpu_seconds": cpu, "objects": parts.index.keymap.counters()["objects"]}
        print(json.dumps(found), flush=True)


async def measure_rebuild(data: Path) -> None:
    result = await rebuild_index(data)
    found = {"seconds": result.seconds, "cpu_seconds": time.process_time(), "objects": result.objects}
    print(json.dumps({**found, "replayed": result.replayed_records}))


def _run(step: str, data: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, "--directory", str(data)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(found.stdout)
    return result


def _make_and_kill(data: Path, objects: int) -> float:
    command = [sys.executable, __file__, "--step", "make", "--directory", str(data), "--objects", str(objects)]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {time.monotonic() - started:6.1f} s  {line.strip()}", file=sys.stderr)
            if line.strip() == "ready":
                break
        else:
            raise SystemExit("the process that makes the objects has failed")
        time.sleep(1.0)  # it goes on writing
        process.send_signal(signal.SIGKILL)
    return time.monotonic() - started


def measure(data: Path, objects: int) -> dict[str, dict[str, float]]:
    init_store(data)
    found = {"made": {"seconds": _make_and_kill(data, objects), "objects": objects}}
    found["opened after kill -9"] = _run("open", data)
    found["opened after a clean close"] = _run("open", data)
    found["index rebuilt"] = _run("rebuild", data)
    for number in (1, 2):
        os.rename(data / "nodes" / str(number), data / f"away{number}")
    found["index rebuilt, 2 of 6 nodes missing"] = _run("rebuild", data)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where the store is made (default: temporary)")
    parser.add_argument("--keep", action="store_true", help="leave the store there")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--step", choices=("make", "open", "rebuild"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        steps = {"make": lambda data: make(data, arguments.objects), "open": measure_open, "rebuild": measure_rebuild}
        anyio.run(steps[arguments.step], arguments.directory)
        return
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="objfs-recovery-"))
    try:
        found = measure(directory / "data", arguments.objects)
    finally:
        if not arguments.keep:
            shutil.rmtree(directory / "data", ignore_errors=True)
            if arguments.directory is None:
                shutil.rmtree(directory, ignore_errors=True)
    for what, result in found.items():
        rest = ", ".join(
            f"{value:.2f} s of processor time" if name == "cpu_seconds" else f"{int(value):,} {name}"
            for name, value in result.items()
            if name != "seconds"
        )
        print(f"{what:<40}{result['seconds']:8.2f} s   {rest}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
