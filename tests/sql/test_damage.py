"""A damaged tables file is made anew, whenever the damage shows; no query is answered from it."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from sql_lab import Lab, memory_nodes, opened, put

from engine.changes import CreateBucket
from engine.tables import database
from engine.tables.database import Database

pytestmark = pytest.mark.anyio
ASKED = ["inventory", "journal", "chunks", "chunk_references", "segments", "protection", "space"]
OBJECTS = 300


async def rows(lab: Lab) -> dict[str, Any]:
    return {name: sorted(map(repr, await lab.rows(f"FROM {name}"))) for name in ASKED}


async def fill(lab: Lab) -> None:
    """Rows that do not compress, so that the file has blocks to damage."""
    rng = random.Random(3)
    await lab.commit(CreateBucket("bbb"))
    for number in range(OBJECTS):
        noise = {f"m{n}": rng.randbytes(500).hex() for n in range(2)}
        await lab.commit(put("bbb", f"key {number}", b"%d" % number, user_metadata=noise))


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.parametrize("summed", [True, False])
async def test_damage_anywhere_in_the_file_is_never_answered_from(tmp_path: Path, summed: bool) -> None:
    """With the sum of a clean close, and without, as kill -9 leaves it."""
    nodes, path = memory_nodes(), tmp_path / "index" / "tables.duckdb"
    async with opened(tmp_path, nodes) as lab:
        await fill(lab)
        expected = await rows(lab)
    whole = path.read_bytes()
    assert len(whole) > 4 * 256 * 1024
    for offset in range(0, len(whole), 150_000):
        path.write_bytes(whole)
        damage(path, offset)
        if not summed:
            path.with_name(path.name + ".sum").unlink(missing_ok=True)
        async with opened(tmp_path, nodes) as lab:
            assert await rows(lab) == expected, offset


@pytest.mark.parametrize("length", [0, 1, 4096, 300_000])
async def test_a_file_cut_short_is_made_anew(tmp_path: Path, length: int) -> None:
    nodes, path = memory_nodes(), tmp_path / "index" / "tables.duckdb"
    async with opened(tmp_path, nodes) as lab:
        await fill(lab)
        expected = await rows(lab)
    os.truncate(path, length)
    path.with_name(path.name + ".sum").unlink(missing_ok=True)
    async with opened(tmp_path, nodes) as lab:
        assert await rows(lab) == expected


async def test_damage_found_by_a_query_is_mended_and_the_query_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has run for hours notices, without a restart."""
    found: list[str] = []
    run = database.Cursor.run

    def damaged_once(cursor: database.Cursor, sql: str) -> Any:
        if not found:
            found.append(sql)
            run(cursor, "SELECT 1")  # it ends as any query does
            raise database.TablesDamaged("Corrupt database file: computed checksum 1 does not match 2")
        return run(cursor, sql)

    async with opened(tmp_path, memory_nodes()) as lab:
        await lab.commit(CreateBucket("bbb"))
        await lab.commit(put("bbb", "k"))
        monkeypatch.setattr(database.Cursor, "run", damaged_once)
        assert len(await lab.rows("FROM inventory")) == 1
        await lab.commit(put("bbb", "k2"))
        assert len(await lab.rows("FROM inventory")) == 2
        assert len(await lab.rows("FROM journal")) == 2
    assert found == ["FROM inventory"]


async def test_a_batch_that_cannot_be_written_has_the_tables_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, memory_nodes()) as lab:
        await lab.commit(CreateBucket("bbb"))
        await lab.commit(put("bbb", "k"))
        assert len(await lab.rows("FROM inventory")) == 1
        insert, failures = Database.insert, []

        def failing_once(self: Database, table: str, some: Any) -> None:
            if table == "versions" and not failures:
                failures.append(table)
                self.execute("SELECT error('a rotten block')")
            insert(self, table, some)

        monkeypatch.setattr(Database, "insert", failing_once)
        await lab.commit(put("bbb", "k2"))
        assert len(await lab.rows("FROM inventory")) == 2
        assert len(await lab.rows("FROM journal")) == 2
        assert failures == ["versions"]
