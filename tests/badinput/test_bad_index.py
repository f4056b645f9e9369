"""DATA/index in any state: all of it can be made again, so the store opens, every listing
and content is right, and nothing has to be asked for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from engine.errors import StoreInUse
from engine.index.sockets import answers
from engine.pins import oldest_pin
from engine.store import Opening, init_store, open_store
from objfs.supervisor import read_announcement
from tests.badinput.world import Image, cut, extend, flip, put, run, swap, zero

DAMAGE: dict[str, Callable[[Path, int], None]] = {"flip": flip, "zero": zero, "cut": cut}
PAGE = 8192  # of the keymap
FRACTIONS = [number / 8 for number in range(8)]


def keymap(image: Image) -> Path:
    return image.data / "index" / "keymap.sqlite"


def places(path: Path) -> list[int]:
    """SQLite's header field by field, b-tree page headers, and all over the file."""
    size = path.stat().st_size
    header = [0, 16, 18, 24, 28, 32, 36, 44, 56, 92, 96, 100, 105]
    return sorted({place for place in [*header, *(int(size * f) for f in FRACTIONS), size - 1] if place < size})


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("number", range(21))
def test_a_damaged_keymap_is_built_again(image: Image, number: int, kind: str) -> None:
    found = places(keymap(image))
    DAMAGE[kind](keymap(image), found[number % len(found)])
    image.check()
    image.check()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_damaged_wal_of_a_killed_process_is_noticed(killed: Image, suffix: str, kind: str, fraction: float) -> None:
    path = keymap(killed).with_name(f"keymap.sqlite{suffix}")
    assert path.stat().st_size, "a killed process leaves it"
    DAMAGE[kind](path, int(path.stat().st_size * fraction))
    killed.check()
    killed.check()


@pytest.mark.parametrize(
    "state", ["empty", "garbage", "text", "extended", "gone", "wal gone", "wal foreign", "foreign"]
)
def test_a_keymap_that_is_none_is_built_again(image: Image, state: str, tmp_path: Path) -> None:
    path, wal = keymap(image), keymap(image).with_name("keymap.sqlite-wal")
    match state:
        case "empty":
            cut(path, 0)
        case "garbage":
            path.write_bytes(os.urandom(100_000))
        case "text":
            path.write_text("SELECT 1")
        case "extended":
            extend(path, os.urandom(PAGE + 100))
        case "gone":
            path.unlink()
        case "wal gone":
            wal.unlink(missing_ok=True)
        case "wal foreign":
            wal.write_bytes(os.urandom(50_000))
        case "foreign":
            init_store(tmp_path / "other")

            async def work() -> None:
                async with open_store(tmp_path / "other"):
                    pass

            run(work)
            shutil.copy(tmp_path / "other" / "index" / "keymap.sqlite", path)
            wal.unlink(missing_ok=True)
    image.check()
    image.check()


def test_a_keymap_older_than_the_journal_is_brought_up_to_date(closed: Image) -> None:
    old = closed.data / "old"
    shutil.copytree(closed.data / "index", old)

    async def work() -> None:
        async with open_store(closed.data) as store:
            await put(store, "newer", b"newer")

    run(work)
    shutil.rmtree(closed.data / "index")
    old.rename(closed.data / "index")
    contents, closed.contents = closed.contents, closed.contents | {"newer": b"newer"}
    try:
        closed.check()
    finally:
        closed.contents = contents


@pytest.mark.parametrize("offset", [0, 8, 15, 16, 23, 24, 32, 4095])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_page_is_made_anew(image: Image, offset: int, kind: str) -> None:
    DAMAGE[kind](image.data / "index" / "page", offset)
    image.check()


def test_what_a_dead_process_left_in_the_index_directory_is_replaced(image: Image) -> None:
    """Sockets, pins and files of names that are used, and a page that is too long."""
    index = image.data / "index"
    for name in ("index.sock", "tables.sock"):
        left = socket.socket(socket.AF_UNIX)
        left.bind(os.path.relpath(index / name))
        left.close()
    (index / "server.json").write_text('{"pid": 999999999, "listen": "127.0.0.1:1"}')
    (index / "page.new").write_bytes(b"x")
    extend(index / "page", b"more" * 5_000)
    image.check()
    assert read_announcement(image.data) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"pid": "x"}',
        b'{"pid": 0, "listen": ""}',
        b'{"pid": -1, "listen": ""}',
        b'{"pid": 99999999999999999999, "listen": ""}',
        b'{"pid": 4611686018427387904, "listen": ""}',
    ],
)
def test_a_server_json_that_is_none_tells_of_no_server(closed: Image, content: bytes) -> None:
    (closed.data / "index" / "server.json").write_bytes(content)
    assert read_announcement(closed.data) is None


@pytest.mark.parametrize("state", ["gone", "file", "garbage", "empty files", "held garbage"])
def test_a_damaged_pins_directory_holds_nothing_up(image: Image, state: str) -> None:
    pins = image.data / "index" / "pins"
    shutil.rmtree(pins)
    if state == "file":
        pins.write_text("not a directory")
    elif state != "gone":
        pins.mkdir()
        for name in ("123-abc.pins", "x.pins", "5.pins", ".pins"):
            (pins / name).write_bytes(b"" if state == "empty files" else os.urandom(100))
        (pins / "123-abc.held").write_bytes(os.urandom(33))
        (pins / "sub").mkdir()
    image.check()
    assert oldest_pin(image.data / "index") is None


def test_pins_taken_after_their_directory_was_removed_are_seen(closed: Image) -> None:
    async def work() -> None:
        async with open_store(closed.data) as store:
            with store.pins.hold() as older:
                shutil.rmtree(closed.data / "index" / "pins")
                with store.pins.hold():
                    found = oldest_pin(closed.data / "index")
                    assert found is not None and (found.lsn, found.process_id) == (older.lsn, os.getpid())
            assert oldest_pin(closed.data / "index") is None
            await put(store, "first/10", closed.contents["first/10"])

    run(work)
    closed.check()


@pytest.mark.parametrize("gone", ["lock", "index"])
def test_a_lock_or_index_directory_that_was_removed_while_closed_is_made_again(image: Image, gone: str) -> None:
    path = image.data / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    image.check()


def test_a_lock_removed_under_an_open_store_lets_no_second_owner_in(closed: Image) -> None:
    (closed.data / "lock").touch()

    async def work() -> None:
        async with open_store(closed.data):
            with anyio.fail_after(20):
                while not answers(closed.data / "index" / "index.sock"):  # noqa: ASYNC110 - it says nothing
                    await anyio.sleep(0.01)
            (closed.data / "lock").unlink()
            with pytest.raises(StoreInUse) as raised:
                async with open_store(closed.data, Opening.OWN):
                    pass
            assert str(closed.data) in str(raised.value) and "stop it" in str(raised.value)

    run(work)
    closed.check()


# -- tables --------------------------------------------------------------------------------

SQL = "SELECT count(*) AS n FROM versions WHERE NOT is_delete_marker"


def count_objects(image: Image) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "objfs", "sql", "--data", str(image.data), "--format", "csv", SQL],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, closed_image: Image) -> Path:
    """A tables file of the closed image."""
    closed_image.restore()
    assert count_objects(closed_image) == str(len(closed_image.contents))
    copy = tmp_path_factory.mktemp("tables") / "tables.duckdb"
    shutil.copy(closed_image.data / "index" / "tables.duckdb", copy)
    return copy


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("fraction", [0.0, 0.002, 0.005, 0.05, 0.3, 0.6, 0.95])
def test_a_damaged_tables_file_is_made_again(closed: Image, tables: Path, fraction: float, kind: str) -> None:
    path = closed.data / "index" / "tables.duckdb"
    shutil.copy(tables, path)
    DAMAGE[kind](path, int(path.stat().st_size * fraction))
    assert count_objects(closed) == str(len(closed.contents))
    assert count_objects(closed) == str(len(closed.contents))


@pytest.mark.parametrize("state", ["empty", "garbage", "wal garbage", "wal empty", "directory behind"])
def test_a_tables_file_that_is_none_is_made_again(closed: Image, tables: Path, state: str) -> None:
    path = closed.data / "index" / "tables.duckdb"
    shutil.copy(tables, path)
    match state:
        case "empty":
            cut(path, 0)
        case "garbage":
            path.write_bytes(os.urandom(50_000))
        case "wal garbage":
            path.with_name("tables.duckdb.wal").write_bytes(os.urandom(5_000))
        case "wal empty":
            path.with_name("tables.duckdb.wal").touch()
        case "directory behind":
            path.with_name("tables.duckdb.tmp").mkdir()
    assert count_objects(closed) == str(len(closed.contents))


def test_swapped_index_files_are_built_again(closed: Image, tables: Path) -> None:
    path = closed.data / "index" / "tables.duckdb"
    shutil.copy(tables, path)
    swap(path, keymap(closed))
    closed.check()
    assert count_objects(closed) == str(len(closed.contents))
