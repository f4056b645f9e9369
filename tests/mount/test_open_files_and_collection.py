"""Open files and collection: neither holds up or hurts the other."""

from __future__ import annotations

import os
import random
import time

from mount_process import MountProcess

SEED = int(os.environ.get("OBJFS_TEST_SEED", "3"))


def dropped_cache(descriptor: int) -> None:
    """The kernel forgets the file's pages, so that the next read asks the mount."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def test_a_file_deleted_while_open_is_readable_after_collection(mount: MountProcess) -> None:
    content = random.Random(SEED).randbytes(6_000_000)
    path = mount.top / "bucket" / "open"
    path.write_bytes(content)
    (mount.top / "bucket" / "gone").write_bytes(random.Random(SEED + 1).randbytes(3_000_000))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.unlink(mount.top / "bucket" / "gone")
        os.unlink(path)
        freed, reasons = mount.other("collect")
        assert reasons == [] and freed > 3_000_000
        dropped_cache(descriptor)
        assert os.pread(descriptor, len(content), 0) == content
    finally:
        os.close(descriptor)


def test_a_file_replaced_while_open_elsewhere_is_collected_once_it_is_closed(mount: MountProcess) -> None:
    content = random.Random(SEED).randbytes(4_000_000)
    path = mount.top / "bucket" / "file"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    os.unlink(path)
    freed, reasons = mount.other("collect")
    assert reasons == []
    dropped_cache(descriptor)
    assert os.pread(descriptor, len(content), 0) == content
    os.close(descriptor)
    for _ in range(50):  # the list of held chunks is renewed from time to time
        time.sleep(0.2)
        freed, reasons = mount.other("collect")
        if freed > len(content):
            break
    assert freed > len(content) and reasons == []


def test_an_idle_open_file_holds_up_nothing_and_stays_readable(mount: MountProcess) -> None:
    content = random.Random(SEED).randbytes(4_000_000)
    path = mount.top / "bucket" / "kept"
    path.write_bytes(content)
    (mount.top / "bucket" / "gone").write_bytes(random.Random(SEED + 1).randbytes(4_000_000))
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.unlink(mount.top / "bucket" / "gone")
        freed, reasons = mount.other("collect")
        assert reasons == [] and freed > 4_000_000
        os.pwrite(descriptor, b"changed", 1_000_000)
        os.fsync(descriptor)
        freed, reasons = mount.other("collect")
        assert reasons == []
        dropped_cache(descriptor)
        assert os.pread(descriptor, len(content), 0) == content[:1_000_000] + b"changed" + content[1_000_007:]
    finally:
        os.close(descriptor)
