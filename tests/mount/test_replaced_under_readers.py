"""S3 replaces a key again and again while it is read through the mount in small pieces: what
one open reads is one acknowledged version, whole and of the size fstat(2) says."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import traceback
from pathlib import Path

import pytest
from mount_process import SECONDS_MAX, MountProcess

pytestmark = pytest.mark.parametrize("mount", ["alone", "joined"], indirect=True)

SEED = int(os.environ.get("OBJFS_TEST_SEED", "3"))
VERSIONS = 40
READERS = 3
RENAMES = 60
PIECE_BYTES_MAX = 50_000


class ReplacedKey:
    """Versions of a key, each of its own content and length, and which of them were sent
    and acknowledged. One thread puts, others read."""

    def __init__(self, mount: MountProcess, dice: random.Random) -> None:
        self._mount = mount
        self._times = [dice.choice((1, 50, 4_000, 100_000)) + number for number in range(VERSIONS)]
        self._condition = threading.Condition()
        self.acknowledged = -1
        self.done = False

    def content(self, number: int) -> bytes:
        return f"{number:08}".encode() * self._times[number]

    def put_next(self) -> None:
        number = self.acknowledged + 1
        assert self._mount.other("fill", "bucket", "key", f"{number:08}", self._times[number])
        with self._condition:
            self.acknowledged = number
            self._condition.notify_all()

    def put_all(self) -> None:
        try:
            while self.acknowledged + 1 < VERSIONS:
                self.put_next()
        finally:
            with self._condition:
                self.done = True
                self._condition.notify_all()

    def wait_until_replaced(self, number: int) -> bool:
        """Whether a newer version was acknowledged; False once there will be none."""
        with self._condition:
            self._condition.wait_for(lambda: self.done or self.acknowledged > number, SECONDS_MAX)
            return self.acknowledged > number


def read_in_pieces(descriptor: int, dice: random.Random, key: ReplacedKey) -> tuple[bytes, bool]:
    """All that one open reads, and whether a newer version was acknowledged before its last
    byte was asked for."""
    size = os.fstat(descriptor).st_size
    content, replaced = b"", False
    while piece := os.read(descriptor, dice.randint(1, PIECE_BYTES_MAX)):
        content += piece
        if not replaced and len(content) >= size // 2:
            replaced = key.wait_until_replaced(int(content[:8]))
            if dice.random() < 0.5:  # what was read before is asked for again
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.fstat(descriptor).st_size == size
    assert len(content) == size, "fstat's size is not what there is to read"
    if dice.random() < 0.5:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(descriptor, size + 1, 0) == content, "the same open reads something else the second time"
    return content, replaced


def read_again_and_again(path: Path, seed: int, key: ReplacedKey, found: list[str], overtaken: list[int]) -> None:
    dice = random.Random(seed)
    try:
        while not key.done:
            oldest = key.acknowledged
            descriptor = os.open(path, os.O_RDONLY)
            try:
                content, replaced = read_in_pieces(descriptor, dice, key)
            finally:
                os.close(descriptor)
            number = int(content[:8])
            assert content == key.content(number), f"{len(content)} bytes that begin like version {number}"
            assert number >= oldest, f"version {number} was read after {oldest} had been acknowledged"
            if replaced:
                overtaken.append(number)
    except (AssertionError, OSError, ValueError) as error:
        found.append("".join(traceback.format_exception(error)))


def test_every_open_reads_one_version_whole_while_the_key_is_replaced(mount: MountProcess) -> None:
    key = ReplacedKey(mount, random.Random(SEED))
    key.put_next()
    found: list[str] = []
    overtaken: list[int] = []
    path = mount.top / "bucket" / "key"
    arguments = [(path, SEED + number, key, found, overtaken) for number in range(READERS)]
    readers = [threading.Thread(target=read_again_and_again, args=each) for each in arguments]
    for reader in readers:
        reader.start()
    key.put_all()
    for reader in readers:
        reader.join()
    assert not found, f"seed {SEED}: {found}"
    assert len(overtaken) >= READERS, "no reader was overtaken by a newer version: nothing was tested"
    assert path.read_bytes() == key.content(VERSIONS - 1)


def test_a_rename_that_races_with_s3_shows_what_was_moved(mount: MountProcess) -> None:
    """The kernel moves the file it knew, which may not be what was at the key by then."""
    top = mount.top / "bucket"
    for number in range(RENAMES):
        mount.other("put", "bucket", "key", f"before {number}")
        descriptor = os.open(top / "key", os.O_RDONLY)
        put = threading.Thread(target=mount.other, args=("put", "bucket", "key", f"behind {number}"))
        put.start()
        os.rename(top / "key", top / f"moved {number}")
        put.join()
        try:
            content = (top / f"moved {number}").read_bytes()
            assert os.pread(descriptor, 100, 0) == f"before {number}".encode()
        finally:
            os.close(descriptor)
        assert mount.other("get", "bucket", f"moved {number}")[0] == hashlib.sha256(content).hexdigest()
