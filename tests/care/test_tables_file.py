"""A tables file that is not the one that was closed is set aside and begun anew."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.tables.database import Database


def make(path: Path) -> None:
    database = Database(str(path), "store")
    rows = [(f"chunk{number}" * 10, number) for number in range(5000)]
    with database.transaction():
        database.execute("CREATE TABLE filler (name VARCHAR, number BIGINT)")
        database._connection.executemany("INSERT INTO filler VALUES (?, ?)", rows[:500])
        database.execute("INSERT INTO filler SELECT repeat(name, 20), number + range FROM filler, range(40)")
        database.advance(41, 41, "print")
    database.close()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 8
    path.write_bytes(content)


def zero(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    before = bytes(content)
    content[offset : offset + 4096] = bytes(len(content[offset : offset + 4096]))
    if content == before:
        content[offset] = 1
    path.write_bytes(content)


def truncate(path: Path, offset: int) -> None:
    os.truncate(path, offset)


def extend(path: Path, offset: int) -> None:
    with path.open("ab") as file:
        file.write(random.Random(offset).randbytes(4096))


@pytest.mark.parametrize("harm", [flip, zero, truncate, extend])
def test_a_tables_file_harmed_anywhere_is_begun_anew(tmp_path: Path, harm: Callable[[Path, int], None]) -> None:
    path = tmp_path / "tables.duckdb"
    make(path)
    whole, left = path.read_bytes(), path.with_name("tables.duckdb.sum").read_bytes()
    size = len(whole)
    for offset in (0, 10, 4096 + 8, 8192 + 8, 12288, size // 3, size // 2, size - 4096, size - 1):
        path.write_bytes(whole)
        path.with_name("tables.duckdb.sum").write_bytes(left)
        harm(path, offset)
        database = Database(str(path), "store")
        assert database.applied_lsn == 0, f"{harm.__name__} at {offset} of {size} went unnoticed"
        database.close()
        assert path.with_name("tables.duckdb.damaged").exists()


def test_a_tables_file_that_was_closed_is_kept_and_one_of_a_crash_too(tmp_path: Path) -> None:
    path = tmp_path / "tables.duckdb"
    make(path)
    for cleanly in (True, False):
        database = Database(str(path), "store")
        assert database.applied_lsn == 41
        assert not path.with_name("tables.duckdb.sum").exists(), "it would speak of a file that changes"
        database.close()
        if not cleanly:
            path.with_name("tables.duckdb.sum").unlink()
    assert Database(str(path), "store").applied_lsn == 41
