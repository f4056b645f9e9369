"""The lossy filesystem keeps what was synced and may lose the rest, checked against a plain
model: for every file a list of all the states it may be in after a power cut."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from lossy.disk import ROOT, SECTOR_BYTES, LossyDisk
from lossy.mount import LossyMount

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse here")


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[LossyMount]:
    mount = LossyMount(tmp_path, logged=True)
    mount.start()
    try:
        yield mount
    finally:
        mount.stop()


def write_durably(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def again(mount: LossyMount, seed: int) -> None:
    mount.cut(seed)
    mount.start()


def test_it_is_a_filesystem(mount: LossyMount) -> None:
    directory = mount.top / "a" / "b"
    directory.mkdir(parents=True)
    (directory / "one").write_bytes(b"1" * 300_000)
    os.truncate(directory / "one", 200_000)
    with open(directory / "one", "r+b") as file:
        file.seek(100)
        file.write(b"x")
    os.replace(directory / "one", mount.top / "a" / "two")
    assert os.listdir(mount.top / "a") == ["b", "two"]
    assert os.listdir(directory) == []
    expected = bytearray(b"1" * 200_000)
    expected[100:101] = b"x"
    assert (mount.top / "a" / "two").read_bytes() == expected
    mount.stop()
    mount.start()
    assert (mount.top / "a" / "two").read_bytes() == expected, "an orderly unmount loses nothing"
    with open(mount.top / "a" / "two", "rb") as file:
        (mount.top / "a" / "two").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == expected
    os.rmdir(directory)
    with pytest.raises(OSError):
        os.rmdir(mount.top)


def test_what_was_synced_survives_every_cut(mount: LossyMount) -> None:
    (mount.top / "d").mkdir()
    sync_directory(mount.top)
    content = random.Random(1).randbytes(100_000)
    write_durably(mount.top / "d" / "file", content)
    for seed in range(5):
        with open(mount.top / "d" / "file", "ab") as file:
            file.write(b"unsynced" * 1000)
        again(mount, seed)
        found = (mount.top / "d" / "file").read_bytes()
        assert found[: len(content)] == content
        os.truncate(mount.top / "d" / "file", len(content))
        descriptor = os.open(mount.top / "d" / "file", os.O_RDWR)
        os.fdatasync(descriptor)
        os.close(descriptor)


def test_what_was_not_synced_is_lost_in_some_cut_and_torn_in_another(mount: LossyMount) -> None:
    write_durably(mount.top / "file", b"")
    seen = set()
    for seed in range(25):
        with open(mount.top / "file", "r+b") as file:
            file.truncate(0)
            os.fsync(file.fileno())
            file.write(b"x" * 4 * SECTOR_BYTES)
        again(mount, seed)
        found = (mount.top / "file").read_bytes()
        sectors = [found[start : start + SECTOR_BYTES] for start in range(0, len(found), SECTOR_BYTES)]
        assert all(sector in (b"x" * SECTOR_BYTES, b"\0" * SECTOR_BYTES) for sector in sectors)
        seen.add(found)
    assert b"" in seen and b"x" * 4 * SECTOR_BYTES in seen
    assert any(found not in (b"", b"x" * 4 * SECTOR_BYTES) for found in seen), "nothing was ever torn"


def test_names_are_safe_only_when_their_directory_was_synced(mount: LossyMount) -> None:
    lost, unrenamed = False, False
    for seed in range(20):
        write_durably(mount.top / f"kept{seed}", b"kept")
        with open(mount.top / f"new{seed}", "wb") as file:
            file.write(b"new")
            file.flush()
            os.fsync(file.fileno())
        os.replace(mount.top / f"kept{seed}", mount.top / f"renamed{seed}")
        again(mount, seed)
        names = set(os.listdir(mount.top))
        assert (f"kept{seed}" in names) != (f"renamed{seed}" in names), "a rename is whole or absent"
        lost |= f"new{seed}" not in names
        unrenamed |= f"kept{seed}" in names
        if f"new{seed}" in names:
            assert (mount.top / f"new{seed}").read_bytes() == b"new"
    assert lost and unrenamed


def test_after_a_failed_sync_nothing_of_the_file_is_safe(mount: LossyMount) -> None:
    (mount.top / "node").mkdir()
    sync_directory(mount.top)
    found = set()
    for seed in range(8):
        write_durably(mount.top / "node" / f"file{seed}", b"")
        mount.command("fail", "node", "sync", 1)
        with open(mount.top / "node" / f"file{seed}", "wb") as file:
            file.write(b"written")
            file.flush()
            with pytest.raises(OSError):
                os.fsync(file.fileno())
            os.fsync(file.fileno())  # as Linux does: reported once, and the pages are clean
        again(mount, seed)
        found.add((mount.top / "node" / f"file{seed}").read_bytes())
    assert b"" in found, "the second fsync must not make it safe"


def test_a_full_or_failing_disk_says_so(mount: LossyMount) -> None:
    (mount.top / "node").mkdir()
    for kind, number in (("full", 28), ("write", 5)):
        mount.command("fail", "node", kind, 1)
        with open(mount.top / "node" / "file", "wb", buffering=0) as file:
            with pytest.raises(OSError) as raised:
                file.write(b"x")
            assert raised.value.errno == number
            file.write(b"x")


@pytest.mark.parametrize("seed", range(30))
def test_every_state_after_a_cut_is_one_the_model_allows(tmp_path: Path, seed: int) -> None:
    """Whole random histories on the disk itself, without a kernel between."""
    rng = random.Random(seed)
    disk = LossyDisk(tmp_path)
    for _cut in range(4):
        safe = {name: disk.read(inode, 0, 1 << 20) for name, inode in disk.directories[ROOT].items()}
        possible = {name: {content} for name, content in safe.items()}  # of names that are surely there
        maybe: dict[str, set[bytes | None]] = {}
        dirty: set[str] = set()
        for _step in range(rng.randint(0, 25)):
            names = sorted(disk.directories[ROOT])
            name = rng.choice(["a", "b", "c", "d"])
            inode = disk.directories[ROOT].get(name)
            match rng.choice(["create", "write", "sync", "directory", "remove"]):
                case "create" if inode is None:
                    disk.create(ROOT, name, 0o644)
                    maybe.setdefault(name, {None, *possible.pop(name, set())}).add(b"")
                    dirty.discard(name)
                case "remove" if inode is not None:
                    disk.remove(ROOT, name)
                    maybe.setdefault(name, {None, *possible.pop(name, set())}).add(None)
                case "write" if inode is not None:
                    size = disk.files[inode].size
                    disk.write(inode, size, bytes([65 + seed % 26]) * rng.randint(1, 2000))
                    dirty.add(name)
                case "sync" if inode is not None:
                    disk.sync(inode, disk.mark())
                    if name in possible:
                        possible[name] = {disk.read(inode, 0, 1 << 20)}
                    else:
                        maybe[name].add(disk.read(inode, 0, 1 << 20))
                    dirty.discard(name)
                case "directory":
                    disk.sync_directory(ROOT)
                    for known in [*maybe]:
                        maybe.pop(known)
                        if known in names:
                            inode = disk.directories[ROOT][known]
                            unsynced = disk.files[inode].pending
                            start = unsynced[0].old_size if unsynced else disk.files[inode].size
                            possible[known] = {disk.read(inode, 0, start)}
        disk.cut(rng)
        disk = LossyDisk(tmp_path)
        found = {name: disk.read(inode, 0, 1 << 20) for name, inode in disk.directories[ROOT].items()}
        for name, contents in possible.items():
            (synced,) = contents
            assert name in found, f"{name} was made sure of and is gone"
            assert found[name][: len(synced)] == synced
            assert name in dirty or found[name] == synced, "nothing was written since"
        for name in found:
            assert name in possible or name in maybe, f"{name} was removed for good"
