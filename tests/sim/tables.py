"""The tables' files as they are at each of their crash sites, and what becomes of them.

The tables live in a process of their own over a real file, so the site is not where that
process ends here: what the file is at that moment is kept, as kill -9 would leave it, and
put back later, under a store that has gone on since.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import trio

from engine.care.checkpoint import checkpoint
from engine.changes import CreateBucket, DeleteKey, Origin, PutVersion, SetTags
from engine.crash_sites import CrashSite, watch
from engine.store import Opening, Store, init_store, open_store

ORIGIN = Origin(requester="test")
RELATIONS = ("inventory", "journal", "store_journal", "chunks", "chunk_references", "segments", "protection")
TABLES = "tables.duckdb*"
Rows = dict[str, list[Any]]


class TablesWorld:
    """A store whose tables were read and written, and their files at each site they reached."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._images = folder / "images"
        self._seen: dict[CrashSite, int] = {}
        init_store(self.data, k=2, m=1)
        trio.run(self._live)
        self.rows = trio.run(self._rows)

    async def _live(self) -> None:
        async with open_store(self.data, Opening.OWN) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await _write(store, 12)
            await checkpoint(store.parts, force=True)
            await _write(store, 8)
            with watch(self._reached):
                for _ in range(3):
                    await store.query("SELECT count(*) FROM journal")
                    await _write(store, 5)
            self._forget_tables()

    def _reached(self, site: CrashSite) -> None:
        self._seen[site] = self._seen.get(site, 0) + 1
        if site.name.startswith("TABLES_"):
            self._copy(self.data / "index", self._image(site, self._seen[site]))

    def _image(self, site: CrashSite, times: int) -> Path:
        return self._images / f"{site.name} {times}"

    def _forget_tables(self) -> None:
        for left in (self.data / "index").glob(TABLES):
            left.unlink()

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for file in source.glob(TABLES):
            if file.is_file():
                shutil.copy(file, target)

    def times(self, site: CrashSite) -> int:
        """How often it was reached."""
        return self._seen.get(site, 0)

    def rows_after_crash(self, site: CrashSite, times: int, *, tear: random.Random | None = None) -> Rows:
        """What the tables show when they are taken up from that moment on. `tear`: as much of
        the end of their log as it says is torn off."""
        self._forget_tables()
        self._copy(self._image(site, times), self.data / "index")
        log = self.data / "index" / "tables.duckdb.wal"
        if tear is not None and log.exists():
            with log.open("r+b") as file:
                file.truncate(tear.randint(0, log.stat().st_size))
        return trio.run(self._rows)

    async def _rows(self) -> Rows:
        async with open_store(self.data, Opening.OWN) as store:
            found = {}
            for name in RELATIONS:
                rows = (await store.query(f"FROM {name}")).to_pylist(maps_as_pydicts="strict")
                found[name] = sorted((list(row.items()) for row in rows), key=repr)
            return found


async def _write(store: Store, count: int) -> None:
    dice = random.Random(count)
    for number in range(count):
        key = f"key {dice.randrange(6)}"
        with store.pins.hold():
            if dice.random() < 0.6 or store.keymap.head("bucket", key) is None:
                writer = store.open_writer()
                await writer.write(dice.randbytes(dice.choice((0, 3, 5000, 100_000))))
                await store.commit(PutVersion("bucket", key, await writer.finish(), etag=f"{number}"), ORIGIN)
            elif dice.random() < 0.5:
                await store.commit(SetTags("bucket", key, {"n": str(number)}), ORIGIN)
            else:
                await store.commit(DeleteKey("bucket", key), ORIGIN)
