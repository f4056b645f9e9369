"""What another door changes is seen through the mount at once, whatever the kernel had
cached."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mount_process import MountProcess

pytestmark = pytest.mark.parametrize("mount", ["alone", "joined"], indirect=True)


@pytest.fixture
def bucket(mount: MountProcess) -> Path:
    return mount.top / "bucket"


def test_a_cached_stat_and_cached_pages_follow_an_overwrite(mount: MountProcess, bucket: Path) -> None:
    for length in (10, 20, 20, 3):
        mount.other("put", "bucket", "key", str(length % 7) * length)
        assert os.stat(bucket / "key").st_size == length
        assert (bucket / "key").read_text() == str(length % 7) * length


def test_an_open_file_keeps_the_version_it_has_when_another_takes_its_key(mount: MountProcess, bucket: Path) -> None:
    mount.other("put", "bucket", "key", "before")
    with open(bucket / "key", "rb", buffering=0) as file:
        assert file.read(3) == b"bef"
        inode = os.fstat(file.fileno()).st_ino
        mount.other("put", "bucket", "key", "behind and longer")
        assert file.read() == b"ore"
        found = os.fstat(file.fileno())
        assert (found.st_size, found.st_nlink, found.st_ino) == (len("before"), 0, inode)
        assert (bucket / "key").read_text() == "behind and longer", "whoever opens it now has the new one"
        with open(bucket / "key", "rb", buffering=0) as newer:
            mount.other("put", "bucket", "key", "last")
            mount.other("collect")
            file.seek(0)
            assert (file.read(), newer.read()) == (b"before", b"behind and longer")
        assert os.stat(bucket / "key").st_ino not in (inode, os.fstat(file.fileno()).st_ino)


def test_an_open_file_keeps_its_version_when_that_is_deleted_and_an_older_one_is_back(
    mount: MountProcess, bucket: Path
) -> None:
    mount.other("versioning", "bucket")
    (bucket / "key").write_text("the older one")
    (bucket / "key").write_text("newer")
    with open(bucket / "key", "rb", buffering=0) as file:
        assert file.read(2) == b"ne"
        mount.other("delete newest", "bucket", "key")
        assert file.read() == b"wer"
        assert (bucket / "key").read_text() == "the older one"


def test_a_file_replaced_while_it_is_written_tells_its_writer(mount: MountProcess, bucket: Path) -> None:
    """Neither is the newer version overwritten by one that knew nothing of it, nor is a
    write confirmed that nobody can ever see."""
    mount.other("put", "bucket", "key", "x" * 100_000)
    with open(bucket / "key", "r+b", buffering=0) as file:
        file.write(b"mine")
        mount.other("put", "bucket", "key", "theirs")
        file.seek(0)
        assert file.read(6) == b"minexx", "it reads what it wrote"
        for refused in (lambda: file.write(b"more"), lambda: os.fsync(file.fileno()), lambda: file.truncate(0)):
            with pytest.raises(OSError) as raised:
                refused()
            assert raised.value.errno == errno.ESTALE
        descriptor = os.dup(file.fileno())
        with pytest.raises(OSError) as raised:
            os.close(descriptor)
        assert raised.value.errno == errno.ESTALE
        with pytest.raises(OSError):
            file.close()
    assert (bucket / "key").read_text() == "theirs"
    (bucket / "key").write_text("mine again")
    assert mount.other("get", "bucket", "key")[1] == len("mine again")


@pytest.mark.parametrize("end", ["put", "delete"])
def test_what_was_streamed_into_a_lost_file_is_an_error_to_read_not_zeros(
    mount: MountProcess, bucket: Path, end: str
) -> None:
    with open(bucket / "key", "w+b", buffering=0) as file:
        file.write(b"a" * 3_000_000)
        mount.other(*(["put", "bucket", "key", "theirs"] if end == "put" else ["delete", "bucket", "key"]))
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError) as raised:
            os.pread(file.fileno(), 6, 0)
        assert raised.value.errno == errno.ESTALE
        with pytest.raises(OSError):
            file.close()


def test_a_file_replaced_by_a_rename_or_removed_here_is_written_as_anywhere_else(
    mount: MountProcess, bucket: Path
) -> None:
    for name in ("renamed over", "removed"):
        (bucket / name).write_text("old")
        with open(bucket / name, "r+b", buffering=0) as file:
            mount.other("put", "bucket", "new", "of another door")
            if name == "removed":
                (bucket / name).unlink()
            else:
                (bucket / "new").rename(bucket / name)
            mount.other("put", "bucket", "beside", name)
            assert file.write(b"written") == 7
            os.fsync(file.fileno())
            assert os.pread(file.fileno(), 10, 0) == b"written"
    assert (bucket / "renamed over").read_text() == "of another door"
    assert not (bucket / "removed").exists()


def test_one_of_several_links_that_is_replaced_leaves_the_others(mount: MountProcess, bucket: Path) -> None:
    (bucket / "one").write_text("both")
    os.link(bucket / "one", bucket / "two")
    with open(bucket / "one", "r+b", buffering=0) as file:
        assert os.fstat(file.fileno()).st_nlink == 2
        mount.other("put", "bucket", "one", "alone")
        assert os.fstat(file.fileno()).st_nlink == 1
        file.write(b"BOTH")
        os.fsync(file.fileno())
    assert (bucket / "one").read_text() == "alone"
    assert (bucket / "two").read_text() == "BOTH"


def test_a_writer_at_the_mount_keeps_the_inode_and_its_readers(mount: MountProcess, bucket: Path) -> None:
    """tail -f: what is written here is a write to the same file."""
    mount.other("put", "bucket", "log", "one\n")
    with open(bucket / "log", "rb", buffering=0) as reader:
        assert reader.read() == b"one\n"
        with open(bucket / "log", "ab", buffering=0) as writer:
            writer.write(b"two\n")
            assert reader.read() == b"two\n"
        (bucket / "log").write_text("anew\n")
        assert os.stat(bucket / "log").st_ino == os.fstat(reader.fileno()).st_ino
        assert os.pread(reader.fileno(), 100, 0) == b"anew\n"


def test_a_name_that_was_missing_appears(mount: MountProcess, bucket: Path) -> None:
    for _ in range(3):
        assert not (bucket / "deep" / "key").exists()
        assert os.listdir(bucket) == []
        mount.other("put", "bucket", "deep/key", "here")
        assert (bucket / "deep" / "key").read_text() == "here"
        assert os.listdir(bucket) == ["deep"]
        mount.other("delete", "bucket", "deep/key")
        assert not (bucket / "deep").exists(), "a directory without marker goes with its last key"


def test_a_deleted_and_made_again_key_is_another_file(mount: MountProcess, bucket: Path) -> None:
    mount.other("put", "bucket", "key", "one")
    first = os.stat(bucket / "key").st_ino
    mount.other("delete", "bucket", "key")
    assert not (bucket / "key").exists()
    mount.other("put", "bucket", "key", "two")
    assert (bucket / "key").read_text() == "two"
    assert os.stat(bucket / "key").st_ino != first


def test_an_open_listing_shows_what_came_after_it_was_opened(mount: MountProcess, bucket: Path) -> None:
    (bucket / "first").touch()
    directory = os.open(bucket, os.O_RDONLY)
    try:
        assert os.listdir(directory) == ["first"]
        mount.other("put", "bucket", "second", "x")
        assert sorted(os.listdir(directory)) == ["first", "second"]
        mount.other("delete", "bucket", "first")
        assert os.listdir(directory) == ["second"]
    finally:
        os.close(directory)


def test_a_file_becomes_a_directory(mount: MountProcess, bucket: Path) -> None:
    mount.other("put", "bucket", "a", "file")
    assert (bucket / "a").is_file()
    mount.other("put", "bucket", "a/b", "below")
    assert (bucket / "a").is_dir(), "the tree shows the directory"
    assert (bucket / "a" / "b").read_text() == "below"
    mount.other("delete", "bucket", "a/b")
    assert (bucket / "a").read_text() == "file"


def test_a_bucket_appears(mount: MountProcess) -> None:
    assert not (mount.top / "later").exists()
    mount.other("bucket", "later")
    assert (mount.top / "later").is_dir()
    assert sorted(os.listdir(mount.top)) == ["bucket", "later"]


def test_a_key_deleted_under_an_open_file_is_not_brought_back(mount: MountProcess, bucket: Path) -> None:
    mount.other("put", "bucket", "key", "x" * 100_000)
    with open(bucket / "key", "r+b", buffering=0) as file:
        file.write(b"mine")
        mount.other("delete", "bucket", "key")
        file.seek(0)
        assert file.read(6) == b"minexx"
    assert mount.other("get", "bucket", "key") is None
    assert not (bucket / "key").exists()
