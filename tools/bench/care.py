"""The benchmark of care: how fast scrub and repair are beside what the machine can do, and
what they leave for requests at their default limits, as JSON.

    .venv/bin/python tools/bench/care.py [--mebibytes N] [--seconds S] [--connections C]

The first part fills a store in this process and works on it alone: raw sequential reads of
its fragment files, one core's decoding and hashing, scrub, and the repair of one lost node,
each with the files out of the page cache and in it. The second part serves a store and
measures PUT and GET of small objects with nothing else, beside scrub, and beside repair.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench
from running import RunningStore, wait_until

from engine.care.repair import repair
from engine.care.scrub import scrub
from engine.changes import CreateBucket, Origin, PutVersion
from engine.coding import decode, encode
from engine.maintenance import Maintenance
from engine.opening import Parts, init_store, open_parts
from engine.recoding import recompute
from engine.store import Store

ORIGIN = Origin(requester="bench")
MIB = 1024**2
OBJECT_BYTES = 64 * MIB


def main() -> int:
    options = parse()
    directory = Path(tempfile.mkdtemp(prefix="objfs-bench-", dir=options.directory))
    try:
        report: dict[str, Any] = {"machine": bench.machine(directory), "mib_per_second": {}}
        report["mib_per_second"] = anyio.run(alone, directory / "alone", options.mebibytes * MIB)
        if options.seconds:
            report["small_objects_per_second"] = beside_requests(directory / "served", options)
        print(json.dumps(report, indent=2))
        return 0
    finally:
        shutil.rmtree(directory)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures scrub and repair, and prints the rates as JSON.")
    parser.add_argument("--mebibytes", type=int, default=1024, help="of content stored (default %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=8.0,
        help="how long each request rate is measured; 0: not (default %(default)s)",
    )
    parser.add_argument("--connections", type=int, default=16, help="at once, for small objects (default %(default)s)")
    parser.add_argument("--objects", type=int, default=5000, help="small objects put in (default %(default)s)")
    parser.add_argument("--workers", type=int, help="as for objfs serve (default: its default)")
    parser.add_argument("--directory", help="where the store is made (default: the system's temporary directory)")
    return parser.parse_args()


# -- alone ---------------------------------------------------------------------------


async def alone(data: Path, content_bytes: int) -> dict[str, Any]:
    """MiB per second of fragment bytes read (for repair: also of fragments rebuilt)."""

    async def nothing(self: Maintenance, parts: Parts) -> None:
        """Repair starts when it is measured."""

    Maintenance.repair = nothing  # type: ignore[method-assign]
    init_store(data)
    async with open_parts(data) as parts:
        await fill(parts, content_bytes)
        rates: dict[str, Any] = {"one_core": one_core()}
        for name, prepare in (("cold", forget_pages), ("warm", read_all)):
            prepare(data)
            rates[f"sequential_read_{name}"] = sequential_read(data)
            prepare(data)
            result = await scrub(parts, bytes_per_second=None)
            assert not (result.damaged or result.problems), "the store is sound"
            rates[f"scrub_{name}"] = round(result.checked_bytes / result.seconds / MIB)
            rates[f"repair_{name}"] = await repair_rate(parts, lambda prepare=prepare: prepare(data))
        return rates


async def fill(parts: Parts, content_bytes: int) -> None:
    store = Store(parts)
    await store.commit(CreateBucket("bench"), ORIGIN)
    for number in range(max(content_bytes // OBJECT_BYTES, 1)):
        with store.pins.hold():
            writer = store.open_writer()
            for _ in range(OBJECT_BYTES // MIB):
                await writer.write(os.urandom(MIB))
            await store.commit(PutVersion("bench", f"{number}", await writer.finish(), etag="e"), ORIGIN)
    await parts.plane.seal()


async def repair_rate(parts: Parts, prepare: Callable[[], None]) -> dict[str, int]:
    """Of a node that came back with none of its fragments."""
    node = parts.index.keymap.nodes()[0]
    shutil.rmtree(Path(node.path) / "segments")
    held = [segment for segment in parts.index.keymap.segments() if node.node_id in segment.node_ids]
    from engine.changes import FragmentsDamaged

    for segment in held:
        index = segment.node_ids.index(node.node_id)
        await parts.index.commit(FragmentsDamaged(segment.segment_id, [index], "benchmark"), ORIGIN)
    prepare()
    result = await repair(parts, bytes_per_second=None)
    assert not result.left and result.fragments == len(held), "everything can be repaired"
    read = sum(segment.size * segment.k for segment in held)
    return {
        "read": round(read / result.seconds / MIB),
        "rebuilt": round(result.rebuilt_bytes / result.seconds / MIB),
    }


def fragment_files(data: Path) -> list[Path]:
    return sorted(data.glob("nodes/*/segments/*/*"))


def forget_pages(data: Path) -> None:
    for path in fragment_files(data):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(data: Path) -> None:
    for path in fragment_files(data):
        path.read_bytes()


def sequential_read(data: Path) -> int:
    """One file after the other, in pieces of 1 MiB."""
    began, total = time.perf_counter(), 0
    buffer = bytearray(MIB)
    for path in fragment_files(data):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return round(total / (time.perf_counter() - began) / MIB)


def one_core() -> dict[str, int]:
    """MiB of content per second, in stripes of 1 MiB, 4+2."""
    data = os.urandom(MIB)
    whole = {index: bytes(fragment) for index, fragment in enumerate(encode(data, 4, 2))}
    degraded = {index: whole[index] for index in (1, 2, 3, 4)}
    return {
        "sha256": speed(lambda: hashlib.sha256(data).digest()),
        "decode_liberasurecode": speed(lambda: decode(degraded, 4, 2)),
        "decode_isa_l": speed(lambda: recompute(degraded, [0], 4, 2)),
    }


def speed(work: Callable[[], object]) -> int:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.5:
        work()
        count += 1
    return round(count / (time.perf_counter() - began))


# -- beside requests -------------------------------------------------------------------


def beside_requests(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    directory.mkdir()
    store = RunningStore(directory, workers=options.workers, mounted=False)
    try:
        store.start()
        s3 = bench.client(store)
        s3.create_bucket(Bucket=bench.BUCKET)
        signer = bench.Signer(s3)
        for number in range(max(options.mebibytes // 64, 1)):
            s3.put_object(Bucket=bench.BUCKET, Key=f"large/{number}", Body=os.urandom(OBJECT_BYTES))
        rates: dict[str, Any] = {}
        rates["alone"] = put_and_get(store, signer, options)
        with again_and_again(store, "scrub", "--all"):
            rates["beside_scrub"] = put_and_get(store, signer, options)
        rates["alone_again"] = put_and_get(store, signer, options)
        lose_a_node(store)
        with until_healthy(store) as took:
            rates["beside_repair"] = put_and_get(store, signer, options)
        rates["repair_took_seconds"] = took
        for name in ("scrub", "repair"):
            rates[f"kept_beside_{name}"] = {
                method: round(
                    2 * rates[f"beside_{name}"][method] / (rates["alone"][method] + rates["alone_again"][method]), 2
                )
                for method in ("put", "get")
            }
        store.stop()
        return rates
    finally:
        store.abandon()


def put_and_get(store: RunningStore, signer: bench.Signer, options: argparse.Namespace) -> dict[str, float]:
    mark = time.monotonic_ns()
    keys = [f"small/{mark}/{number:06}" for number in range(options.objects)]
    puts = [
        (
            signer.head("put_object", "PUT", bench.SMALL_BYTES, Key=key),
            hashlib.shake_256(key.encode()).digest(bench.SMALL_BYTES),
        )
        for key in keys
    ]
    gets = [(signer.head("get_object", "GET", Key=key), b"") for key in keys]
    return {
        "put": bench.rate(store, puts, options, repeat=False),
        "get": bench.rate(store, gets, options, repeat=True),
    }


@contextmanager
def again_and_again(store: RunningStore, *command: str) -> Iterator[None]:
    """The command in a loop, in processes of its own, while the context lasts."""
    line = " ".join([sys.executable, "-m", "objfs", *command, "--data", str(store.data)])
    looping = subprocess.Popen(
        ["sh", "-c", f"while :; do {line}; done"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        time.sleep(1.5)  # until it has opened the store and reads
        yield
    finally:
        os.killpg(looping.pid, 15)
        looping.wait()


def lose_a_node(store: RunningStore) -> None:
    """Take a node away and give it an empty directory: everything on it is rebuilt."""
    node = store.status()["nodes"][0]
    shutil.rmtree(node["path"])
    wait_until(lambda: store.status()["nodes"][0]["state"] == "lost", "the node to be lost")
    os.mkdir(node["path"])
    store.objfs("node replace", node["id"])


@contextmanager
def until_healthy(store: RunningStore) -> Iterator[list[float]]:
    """Afterwards the list holds how long it took until all was repaired."""
    began, took = time.monotonic(), list[float]()
    yield took
    wait_until(lambda: store.status()["under_redundancy"] == 0, "the repair to end", seconds=600)
    took.append(round(time.monotonic() - began, 1))


if __name__ == "__main__":
    sys.exit(main())
