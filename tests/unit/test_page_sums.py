"""The keymap's pages have checksums whatever a crash leaves, and rot in any of them is found."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.changes import DeleteKey
from engine.keymap import page_sums
from engine.keymap.page_sums import PageSums, close_unchanged, keep_log, mark_damaged, read_log, sums_path
from engine.keymap.schema import PAGE_BYTES, KeymapDamaged, open_writer
from engine.keymap.soundness import check_at_open, check_now, close_soundly
from tests.unit.keymap_world import World

Rows = list[Any]


class File:
    """A keymap that is written, and whose files can be taken away as a crash leaves them."""

    def __init__(self, directory: Path, seed: int = 1) -> None:
        directory.mkdir()
        self.path = directory / "keymap.sqlite"
        self.world = World(self.path)
        self.sums = PageSums.make(self.path)
        self.rng = random.Random(seed)
        self._images = 0
        self.world.bucket()

    def write(self, changes: int) -> None:
        for _ in range(changes):
            key = f"{self.rng.randrange(500):03}"
            if self.rng.random() < 0.3 and self.world.text(key) is not None:
                self.world.do(DeleteKey("bucket", key))
            else:
                self.world.put(key, self.rng.randbytes(self.rng.choice((5, 200, 20_000))).hex().encode())

    def image(self) -> Path:
        self._images += 1
        taken = self.path.parent.with_name(f"{self.path.parent.name}-{self._images}")
        taken.mkdir()
        for suffix in ("", "-wal", ".pages"):
            found = self.path.with_name(self.path.name + suffix)
            if found.exists():
                shutil.copy(found, taken)
        return taken / self.path.name

    def close(self) -> None:
        self.sums.close(self.world.db)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "made")
    yield made
    made.close()


def rows(db: sqlite3.Connection) -> Rows:
    return db.execute("SELECT key, lsn, rest, manifest FROM keys ORDER BY key").fetchall()


def open_image(path: Path) -> Rows:
    """As the next start opens it. Raises KeymapDamaged."""
    db = open_writer(path, "store")
    try:
        assert check_at_open(path) is None, "it is small"
        return rows(db)
    finally:
        close_unchanged(db, path)


def pages_in_log(path: Path) -> set[int]:
    reader = keep_log(path)
    try:
        return set(page_sums.pages_in_log(path, 1, read_log(path).frames))
    finally:
        reader.close()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b", buffering=0) as opened:
        (byte,) = os.pread(opened.fileno(), 1, offset)
        os.pwrite(opened.fileno(), bytes([byte ^ 0x10]), offset)


def test_a_bit_that_flips_anywhere_after_a_crash_is_found(file: File) -> None:
    file.write(150)
    assert file.sums.copy_log()
    file.write(20)
    expected = rows(file.world.db)
    pages = file.path.stat().st_size // PAGE_BYTES
    for number in (0, 1, 2, *file.rng.sample(range(3, pages), 50)):
        image = file.image()
        flip(image, number * PAGE_BYTES + file.rng.randrange(PAGE_BYTES))
        try:
            found = open_image(image)
        except (KeymapDamaged, sqlite3.DatabaseError):
            continue
        assert found == expected and number + 1 in pages_in_log(image), f"page {number + 1}"


def test_rot_in_the_log_loses_its_end_and_nothing_else(file: File) -> None:
    """Half a log over a file that holds all of it would be a mixture nobody ever wrote."""
    file.write(60)
    states = [rows(file.world.db)]
    assert file.sums.copy_log()
    for _ in range(25):
        file.write(1)
        states.append(rows(file.world.db))
    wal = file.path.with_name("keymap.sqlite-wal")
    seen = set()
    for offset in range(0, wal.stat().st_size, wal.stat().st_size // 60):
        for image in (file.image(), copied(file)):
            flip(image.with_name("keymap.sqlite-wal"), offset)
            try:
                found = open_image(image)
            except KeymapDamaged:
                seen.add("damaged")
                continue
            assert found in states, "at the end of one of the transactions"
            seen.add("whole" if found == states[-1] else "earlier")
    assert seen == {"damaged", "whole", "earlier"}


def copied(file: File) -> Path:
    """An image whose log is in its file already."""
    image = file.image()
    db = open_writer(image, "store")
    sums = PageSums(image)
    sums.copy_log()
    sums.close(db)
    return image


def test_every_step_of_copying_the_log_leaves_a_keymap_that_is_whole(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[Path] = []

    def around(name: str) -> None:
        act = getattr(PageSums, name)

        def taken(self: PageSums, *arguments: Any, **named: Any) -> None:
            images.append(file.image())
            act(self, *arguments, **named)
            images.append(file.image())

        monkeypatch.setattr(PageSums, name, taken)

    around("_write_header")
    around("_note_sums")
    for _ in range(4):
        file.write(40)
        images.clear()
        assert file.sums.copy_log()
        expected = rows(file.world.db)
        assert len(images) == 6
        for image in images:
            assert open_image(image) == expected
        # In the middle of it the file is nothing without its log.
        for image in images[1:-1]:
            torn = image.with_name("keymap.sqlite-wal")
            os.truncate(torn, 32 + page_sums.read_header(image).frames * (24 + PAGE_BYTES) - 100)
            with pytest.raises(KeymapDamaged, match="the log is not whole"):
                open_image(image)
            torn.unlink()
            with pytest.raises(KeymapDamaged, match="the log is not whole"):
                open_image(image)


def test_readers_hold_up_a_part_of_the_log_and_its_checksums(file: File) -> None:
    file.write(50)
    reader = sqlite3.connect(file.path, isolation_level=None)
    reader.execute("BEGIN")
    before = rows(reader)
    file.write(50)
    assert not file.sums.copy_log()
    assert open_image(file.image()) == rows(file.world.db)
    check_now(file.path)
    file.write(30)
    assert not file.sums.copy_log()
    assert rows(reader) == before
    reader.close()
    assert open_image(file.image()) == rows(file.world.db)
    assert file.sums.copy_log()
    image = file.image()
    image.with_name("keymap.sqlite-wal").unlink()
    assert open_image(image) == rows(file.world.db), "all of it is in the file now"


def test_copying_that_fails_is_made_up_for(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("_note_sums", "_write_header"):
        file.write(30)
        with monkeypatch.context() as failing:
            failing.setattr(PageSums, name, full)
            with pytest.raises((OSError, TypeError)):
                file.sums.copy_log()
        file.write(30)  # SQLite begins the log anew if all of it was copied
        assert file.sums.copy_log()
        assert open_image(file.image()) == rows(file.world.db)
        check_now(file.path)


def test_random_work_and_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_sums, "DUE_FRAMES", 60)
    for seed in range(4):
        file = File(tmp_path / f"run{seed}", seed)
        readers: list[sqlite3.Connection] = []
        for _ in range(25):
            file.write(file.rng.randrange(12))
            if file.sums.due():
                file.sums.copy_log()
            if file.rng.random() < 0.2:
                readers.append(sqlite3.connect(file.path, isolation_level=None))
                readers[-1].execute("BEGIN")
                rows(readers[-1])
            elif readers and file.rng.random() < 0.3:
                readers.pop().close()
            assert open_image(file.image()) == rows(file.world.db)
            if file.rng.random() < 0.3:  # killed, and opened again
                expected = rows(file.world.db)
                for reader in readers:
                    reader.close()
                readers.clear()
                lsn, path = file.world.lsn, file.image()
                file.close()
                shutil.rmtree(file.path.parent)
                path.parent.rename(file.path.parent)
                file.world = World(file.path)
                file.world.lsn = lsn
                assert check_at_open(file.path) is None
                file.sums = PageSums(file.path)
                assert rows(file.world.db) == expected
        for reader in readers:
            reader.close()
        file.close()


def test_a_clean_close_leaves_everything_in_the_file(file: File, tmp_path: Path) -> None:
    file.write(60)
    expected = rows(file.world.db)
    close_soundly(file.world.db, file.sums)
    assert file.path.with_name("keymap.sqlite-wal").stat().st_size == 0
    image = file.image()
    image.with_name("keymap.sqlite-wal").unlink()
    assert open_image(image) == expected
    file.world = World(file.path)
    file.sums = PageSums(file.path)


def harm_magic(path: Path) -> None:
    flip(path, 3)


def harm_header(path: Path) -> None:
    flip(path, 20)


def harm_a_sum(path: Path) -> None:
    flip(path, page_sums.HEADER_BYTES + 9)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


@pytest.mark.parametrize("harm", [harm_magic, harm_header, harm_a_sum, cut, Path.unlink])
def test_checksums_that_are_damaged_prove_nothing(file: File, harm: Callable[[Path], None]) -> None:
    file.write(60)
    assert file.sums.copy_log()
    image = file.image()
    image.with_name("keymap.sqlite-wal").unlink()
    open_image(image)
    harm(sums_path(image))
    with pytest.raises(KeymapDamaged):
        open_image(image)


def test_what_a_running_process_found_is_told_to_the_next(file: File) -> None:
    file.write(10)
    mark_damaged(file.path, "it smelled")
    with pytest.raises(KeymapDamaged, match="was found damaged: it smelled"):
        open_image(file.image())


TRY_TO_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, int(sys.argv[2]), int(sys.argv[3]))
    except BlockingIOError:
        print("locked")
"""
OPEN_BYTE = 128  # of the -shm file: whoever can lock it takes itself for the first, and cuts the file
SHARED_BYTES = (510, 0x40000002)  # of the file itself: locked as long as it is open


def test_sqlites_locks_outlive_our_own_looks_at_its_files(file: File) -> None:
    """POSIX drops a process's locks on a file when any descriptor of it is closed."""
    file.write(60)
    assert file.sums.copy_log() and not file.sums.due()
    check_now(file.path)
    for path, length, start in ((file.path.with_name("keymap.sqlite-shm"), 1, OPEN_BYTE), (file.path, *SHARED_BYTES)):
        command = [sys.executable, "-c", TRY_TO_LOCK, str(path), str(length), str(start)]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "locked\n", path


def test_rot_is_found_while_the_keymap_is_served(file: File) -> None:
    file.write(100)
    assert file.sums.copy_log()
    check_now(file.path)
    flip(file.path, file.path.stat().st_size - 100)
    with pytest.raises(KeymapDamaged, match="does not have its checksum"):
        check_now(file.path)
