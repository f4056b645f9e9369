"""Files through a real mount: content, attributes, names, and what outlives a name."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import random
import stat
import time
from pathlib import Path

import pytest
from mount_process import MountProcess, start_mount

from objfs.mount.state import SPACE_SECONDS

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@pytest.fixture
def bucket(mount: MountProcess) -> Path:
    return mount.top / "bucket"


def test_what_is_written_is_read_at_both_doors(mount: MountProcess, bucket: Path) -> None:
    content = random.Random(1).randbytes(3_000_001)
    (bucket / "file").write_bytes(content)
    assert (bucket / "file").read_bytes() == content
    digest, size, etag = mount.other("get", "bucket", "file")
    assert (digest, size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert etag == hashlib.md5(content).hexdigest(), "written once in sequence: the ETag is the MD5"


def test_an_empty_file_exists_at_once_at_the_other_door(mount: MountProcess, bucket: Path) -> None:
    with open(bucket / "new", "wb"):
        assert mount.other("get", "bucket", "new") == [hashlib.sha256().hexdigest(), 0, hashlib.md5().hexdigest()]


def test_writes_anywhere_appends_and_truncations_add_up(mount: MountProcess, bucket: Path) -> None:
    chance = random.Random(7)
    expected = bytearray()
    path = bucket / "random"
    path.touch()
    for _ in range(12):
        with open(path, "r+b", buffering=0) as file:
            for _ in range(chance.randrange(1, 8)):
                match chance.randrange(4):
                    case 0:
                        size = chance.randrange(0, 400_000)
                        file.truncate(size)
                        del expected[size:]
                        expected.extend(bytes(size - len(expected)))
                    case 1:
                        data = chance.randbytes(chance.randrange(1, 200_000))
                        file.seek(0, os.SEEK_END)
                        file.write(data)
                        expected += data
                    case _:
                        offset = chance.randrange(0, len(expected) + 5000)
                        data = chance.randbytes(chance.randrange(1, 60_000))
                        file.seek(offset)
                        file.write(data)
                        expected.extend(bytes(max(0, offset + len(data) - len(expected))))
                        expected[offset : offset + len(data)] = data
                assert os.fstat(file.fileno()).st_size == len(expected)
                if chance.random() < 0.2:
                    os.fsync(file.fileno())
            file.seek(0)
            assert file.read() == expected, "unpublished writes are read back"
        assert path.read_bytes() == expected
        assert mount.other("get", "bucket", "random")[0] == hashlib.sha256(expected).hexdigest()


def test_what_a_truncation_took_stays_zero(bucket: Path) -> None:
    path = bucket / "cut"
    path.write_bytes(b"x" * 300_000)
    with open(path, "r+b") as file:
        file.truncate(100_000)
        file.truncate(300_000)
    assert path.read_bytes() == b"x" * 100_000 + bytes(200_000)
    os.truncate(path, 5)
    assert path.read_bytes() == b"xxxxx"


def test_every_open_of_a_file_sees_unpublished_writes(bucket: Path) -> None:
    with open(bucket / "shared", "wb", buffering=0) as writer:
        writer.write(b"first")
        with open(bucket / "shared", "rb", buffering=0) as reader:
            assert reader.read() == b"first"
            writer.write(b", second")
            assert reader.read() == b", second"
            assert os.stat(bucket / "shared").st_size == 13


def test_o_append_and_o_excl(bucket: Path) -> None:
    path = bucket / "log"
    for line in (b"one\n", b"two\n"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, line)
        os.close(fd)
    assert path.read_bytes() == b"one\ntwo\n"
    with pytest.raises(FileExistsError):
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with open(path, "wb"):
        pass
    assert path.read_bytes() == b""


def test_an_unlinked_open_file_lives_on(mount: MountProcess, bucket: Path) -> None:
    with open(bucket / "gone", "w+b", buffering=0) as file:
        file.write(b"a" * 100_000)
        os.unlink(bucket / "gone")
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"b" * 10)
        file.seek(0)
        assert file.read() == b"a" * 100_000 + b"b" * 10
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o600)
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    assert not (bucket / "gone").exists()
    assert mount.other("get", "bucket", "gone") is None


def test_a_renamed_open_file_is_published_under_its_new_name(mount: MountProcess, bucket: Path) -> None:
    with open(bucket / "old", "wb", buffering=0) as file:
        file.write(b"content")
        os.rename(bucket / "old", bucket / "new")
        file.write(b"!")
    assert (bucket / "new").read_bytes() == b"content!"
    assert mount.other("get", "bucket", "old") is None


def test_mmap_writes_reach_the_store(mount: MountProcess, bucket: Path) -> None:
    path = bucket / "mapped"
    path.write_bytes(bytes(100_000))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[50_000:50_005] = b"hello"
        mapped.flush()
        os.fsync(file.fileno())
        expected = bytes(50_000) + b"hello" + bytes(49_995)
        assert mount.other("get", "bucket", "mapped")[0] == hashlib.sha256(expected).hexdigest()
    assert path.read_bytes() == expected


def test_attributes(bucket: Path) -> None:
    path = bucket / "file"
    path.write_bytes(b"x")
    os.chmod(path, 0o640)
    os.chown(path, 12, 34)
    os.utime(path, ns=(1_111_111_111_222_333_444, 1_222_222_222_333_444_555))
    seen = os.stat(path)
    assert (stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid) == (0o640, 12, 34)
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (1_111_111_111_222_333_444, 1_222_222_222_333_444_555)
    with open(path, "ab") as file:
        file.write(b"y")
        file.flush()
        os.utime(file.fileno(), ns=(1, 2))
    assert os.stat(path).st_mtime_ns == 2, "utimens holds over the close that follows"
    os.chmod(path, 0o4755)
    os.chown(path, 0, 0)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755, "chown takes set-user-id away"


def test_attributes_of_directories_and_buckets(bucket: Path) -> None:
    (bucket / "d").mkdir(mode=0o711)
    assert stat.S_IMODE(os.stat(bucket / "d").st_mode) == 0o711
    for directory in (bucket, bucket / "d"):
        os.chmod(directory, 0o2770)
        os.utime(directory, ns=(5, 6))
        seen = os.stat(directory)
        assert stat.S_IMODE(seen.st_mode) == 0o2770
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (5, 6)


def test_xattrs(bucket: Path) -> None:
    for path in (bucket / "file", bucket / "directory", bucket):
        if path.name == "file":
            path.touch()
        elif path != bucket:
            path.mkdir()
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.two", b"\0\xff" * 100)
        assert os.listxattr(path) == ["user.one", "user.two"]
        assert os.getxattr(path, "user.two") == b"\0\xff" * 100
        with pytest.raises(FileExistsError):
            os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
        os.removexattr(path, "user.one")
        with pytest.raises(OSError) as refused:
            os.getxattr(path, "user.one")
        assert refused.value.errno == errno.ENODATA
        with pytest.raises(OSError) as refused:
            os.setxattr(path, "user.one", b"2", os.XATTR_REPLACE)
        assert refused.value.errno == errno.ENODATA


def test_symlinks_and_special_files(bucket: Path) -> None:
    os.symlink("some/where else", bucket / "link")
    assert os.readlink(bucket / "link") == "some/where else"
    assert os.lstat(bucket / "link").st_size == 15
    os.mkfifo(bucket / "fifo", 0o600)
    assert stat.S_ISFIFO(os.stat(bucket / "fifo").st_mode)
    os.mknod(bucket / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert os.stat(bucket / "null").st_rdev == os.makedev(1, 3)


def test_hard_links_share_everything(mount: MountProcess, bucket: Path) -> None:
    (bucket / "a").write_bytes(b"shared")
    (bucket / "d").mkdir()
    os.link(bucket / "a", bucket / "d" / "b")
    assert os.stat(bucket / "a").st_ino == os.stat(bucket / "d" / "b").st_ino
    assert os.stat(bucket / "a").st_nlink == 2
    with open(bucket / "d" / "b", "ab") as file:
        file.write(b" twice")
    assert (bucket / "a").read_bytes() == b"shared twice"
    assert mount.other("get", "bucket", "a")[0] == hashlib.sha256(b"shared twice").hexdigest()
    os.unlink(bucket / "a")
    assert (bucket / "d" / "b").read_bytes() == b"shared twice"
    assert os.stat(bucket / "d" / "b").st_nlink == 1
    with pytest.raises(PermissionError):
        os.link(bucket / "d", bucket / "e")


def test_fsync_and_statfs(mount: MountProcess, bucket: Path) -> None:
    with open(bucket / "file", "wb") as file:
        file.write(b"x" * 5000)
        file.flush()
        os.fsync(file.fileno())
        assert mount.other("get", "bucket", "file")[1] == 5000, "fsync publishes"
        os.fsync(file.fileno())
    directory = os.open(bucket, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    answer = os.statvfs(bucket)
    assert answer.f_namemax == 255
    assert answer.f_blocks >= answer.f_bfree > 0


def test_a_versioned_bucket_gains_one_version_per_open(mount: MountProcess, bucket: Path) -> None:
    mount.other("versioning", "bucket")
    with open(bucket / "key", "wb", buffering=0) as file:
        for size in (10, 20, 30):
            file.write(b"x" * 10)
            os.fsync(file.fileno())
            assert mount.other("versions", "bucket", "key") == [[size, False]]
    (bucket / "key").write_bytes(b"second")
    assert mount.other("versions", "bucket", "key") == [[6, False], [30, False]]
    os.rename(bucket / "key", bucket / "moved")
    assert mount.other("versions", "bucket", "key") == [[0, True], [6, False], [30, False]]
    assert (bucket / "moved").read_bytes() == b"second"
    os.unlink(bucket / "moved")
    assert os.listdir(bucket) == []


def test_everything_is_as_before_after_a_remount(mount: MountProcess, bucket: Path) -> None:
    (bucket / "d").mkdir(mode=0o700)
    (bucket / "d" / "file").write_bytes(b"content")
    os.link(bucket / "d" / "file", bucket / "second")
    os.symlink("target", bucket / "link")
    os.setxattr(bucket / "second", "user.x", b"y")
    os.chown(bucket / "second", 7, 8)
    os.utime(bucket / "second", ns=(1, 2))
    os.chmod(bucket, 0o750)
    paths = [bucket, *sorted(bucket.rglob("*"))]

    def seen() -> list[tuple[int, ...]]:
        stats = [os.lstat(path) for path in paths]
        return [(s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns) for s in stats]

    before = seen()
    assert mount.stop() == 0
    again = start_mount(mount.kind, mount.data, mount.top)
    try:
        after = seen()
        # A directory's time of change by its entries is kept by the mount alone.
        changed = [path.name for path, a, b in zip(paths, before, after, strict=True) if a != b and not path.is_dir()]
        assert changed == []
        assert os.getxattr(bucket / "d" / "file", "user.x") == b"y"
        assert os.readlink(bucket / "link") == "target"
        assert again.stop() == 0
    finally:
        again.close()


def test_a_clean_end_publishes_open_files(mount: MountProcess, bucket: Path) -> None:
    file = open(bucket / "open", "wb", buffering=0)  # noqa: SIM115 - must outlive the mount
    file.write(b"not closed")
    assert mount.stop() == 0
    with pytest.raises(OSError):
        file.close()
    again = start_mount(mount.kind, mount.data, mount.top)
    try:
        assert (bucket / "open").read_bytes() == b"not closed"
        assert again.stop() == 0
    finally:
        again.close()


def test_a_dead_mount_is_cleared(mount: MountProcess, bucket: Path) -> None:
    mount.kill()
    with pytest.raises(OSError) as refused:
        os.listdir(mount.top)
    assert refused.value.errno == errno.ENOTCONN
    again = start_mount(mount.kind, mount.data, mount.top)
    try:
        assert os.path.ismount(mount.top)
        assert again.stop() == 0
    finally:
        again.close()


def test_a_full_store_says_so_at_write_time(mount: MountProcess, bucket: Path) -> None:
    mount.other("free", 1000)
    time.sleep(2 * SPACE_SECONDS)
    with open(bucket / "file", "wb", buffering=0) as file, pytest.raises(OSError) as refused:
        file.write(b"x" * 2000)
    assert refused.value.errno == errno.ENOSPC
    (bucket / "file").write_bytes(b"fits")
    os.unlink(bucket / "file")
