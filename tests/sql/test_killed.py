"""The tables process may be killed at any instruction; what it left is taken up or made anew."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.changes import CreateBucket, DeleteKey, Origin, PutVersion, Rename, SetTags
from engine.store import Opening, Store, init_store, open_store

pytestmark = pytest.mark.anyio
ORIGIN = Origin(requester="test")
RELATIONS = ["inventory", "journal", "store_journal", "chunks", "chunk_references", "segments", "protection", "space"]
SITES = [
    ("TABLES_LOADED", 1),
    ("TABLES_RECALLED", 1),
    ("TABLES_RECALLED", 2),
    ("TABLES_WRITTEN", 1),
    ("TABLES_WRITTEN", 3),
    ("TABLES_COMMITTED", 2),
]


async def write(store: Store, rng: random.Random, count: int) -> None:
    for _ in range(count):
        key = f"key {rng.randrange(20)}"
        with store.pins.hold():
            if rng.random() < 0.6 or store.keymap.head("bucket", key) is None:
                text = rng.randbytes(rng.choice([0, 3, 5_000, 200_000]))
                writer = store.open_writer()
                await writer.write(text)
                etag = hashlib.md5(text).hexdigest()
                await store.commit(PutVersion("bucket", key, await writer.finish(), etag), ORIGIN)
            elif rng.random() < 0.4:
                await store.commit(SetTags("bucket", key, {"n": str(rng.randrange(9))}), ORIGIN)
            elif rng.random() < 0.5:
                await store.commit(Rename("bucket", key, "bucket", f"key {rng.randrange(20)}"), ORIGIN)
            else:
                await store.commit(DeleteKey("bucket", key), ORIGIN)


async def all_rows(store: Store) -> dict[str, list[Any]]:
    found = {}
    for name in RELATIONS:
        rows = (await store.query(f"FROM {name}")).to_pylist(maps_as_pydicts="strict")
        found[name] = sorted((list(row.items()) for row in rows), key=repr)
    return found


def start_tables(data: Path, site: str, times: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killed_tables.py")), str(data), site, str(times)],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def killed_tables(data: Path, site: str, times: int, store: Store, rng: random.Random) -> None:
    """Run a tables process while the store is written to, until it is killed."""
    process = start_tables(data, site, times)
    try:
        with anyio.fail_after(90):  # it gets there in a few
            while process.poll() is None:
                await write(store, rng, 5)
                await anyio.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, site


async def test_a_killed_tables_process_leaves_tables_that_are_exact_again(tmp_path: Path) -> None:
    data, rng = tmp_path / "data", random.Random(7)
    init_store(data)
    async with open_store(data, Opening.OWN) as store:
        await store.commit(CreateBucket("bucket"), ORIGIN)
        await write(store, rng, 60)
        for site, times in SITES:
            if site in ("TABLES_LOADED", "TABLES_RECALLED"):
                for left in (data / "index").glob("tables.duckdb*"):
                    left.unlink()
            await killed_tables(data, site, times, store, rng)
            taken_up = await all_rows(store)
            (data / "index" / "tables.duckdb").unlink()
            assert await all_rows(store) == taken_up, (site, times)
