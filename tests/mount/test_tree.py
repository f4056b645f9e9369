"""The tree through a real mount: directories, buckets, renames, names that do not fit."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from mount_process import MountProcess
from test_files import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2


@pytest.fixture
def bucket(mount: MountProcess) -> Path:
    return mount.top / "bucket"


def refusal(call: object, *arguments: object) -> int:
    with pytest.raises(OSError) as refused:
        call(*arguments)  # type: ignore[operator]
    assert refused.value.errno is not None
    return refused.value.errno


def tree(top: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in sorted(top.rglob("*"))
    }


def test_mkdir_and_rmdir(bucket: Path) -> None:
    os.makedirs(bucket / "a" / "b")
    assert refusal(os.mkdir, bucket / "a") == errno.EEXIST
    assert refusal(os.rmdir, bucket / "a") == errno.ENOTEMPTY
    (bucket / "file").touch()
    assert refusal(os.rmdir, bucket / "file") == errno.ENOTDIR
    assert refusal(os.mkdir, bucket / "file") == errno.EEXIST
    assert refusal(os.unlink, bucket / "a") == errno.EISDIR
    os.rmdir(bucket / "a" / "b")
    assert os.listdir(bucket / "a") == [], "a directory outlives its last entry"
    os.rmdir(bucket / "a")
    assert os.listdir(bucket) == ["file"]
    assert refusal(os.listdir, bucket / "a") == errno.ENOENT


def test_the_top_holds_buckets(mount: MountProcess) -> None:
    top = mount.top
    (top / "second").mkdir()
    assert sorted(os.listdir(top)) == ["bucket", "second"]
    assert refusal(os.mkdir, top / "second") == errno.EEXIST
    assert refusal(os.mkdir, top / "Bad_Name") == errno.EINVAL
    assert refusal((top / "file").touch) in (errno.EPERM, errno.EINVAL)
    assert refusal(os.rename, top / "second", top / "third") == errno.EPERM
    (top / "second" / "file").touch()
    assert refusal(os.rmdir, top / "second") == errno.ENOTEMPTY
    os.unlink(top / "second" / "file")
    os.rmdir(top / "second")
    assert os.listdir(top) == ["bucket"]


def test_rename_of_files(bucket: Path) -> None:
    (bucket / "d").mkdir()
    (bucket / "a").write_bytes(b"a")
    (bucket / "b").write_bytes(b"b")
    inode = os.stat(bucket / "a").st_ino
    os.rename(bucket / "a", bucket / "d" / "moved")
    assert os.stat(bucket / "d" / "moved").st_ino == inode
    os.rename(bucket / "d" / "moved", bucket / "b")
    assert tree(bucket) == {"b": b"a", "d": None}
    assert refusal(os.rename, bucket / "b", bucket / "d") == errno.EISDIR
    assert refusal(os.rename, bucket / "d", bucket / "b") == errno.ENOTDIR
    assert refusal(os.rename, bucket / "none", bucket / "b") == errno.ENOENT


def test_rename_over_an_open_file_keeps_its_content_for_the_opener(bucket: Path) -> None:
    (bucket / "new").write_bytes(b"new")
    with open(bucket / "old", "w+b", buffering=0) as file:
        file.write(b"old")
        os.rename(bucket / "new", bucket / "old")
        file.seek(0)
        assert file.read() == b"old"
    assert (bucket / "old").read_bytes() == b"new"


def test_rename_flags(bucket: Path) -> None:
    (bucket / "a").write_bytes(b"a")
    (bucket / "b").write_bytes(b"b")
    assert refusal(renameat2, bucket / "a", bucket / "b", RENAME_NOREPLACE) == errno.EEXIST
    renameat2(bucket / "a", bucket / "c", RENAME_NOREPLACE)
    renameat2(bucket / "c", bucket / "b", RENAME_EXCHANGE)
    assert tree(bucket) == {"b": b"a", "c": b"b"}
    assert refusal(renameat2, bucket / "b", bucket / "none", RENAME_EXCHANGE) == errno.ENOENT
    os.makedirs(bucket / "x" / "one")
    os.makedirs(bucket / "y" / "two")
    renameat2(bucket / "x", bucket / "y", RENAME_EXCHANGE)
    assert os.listdir(bucket / "x") == ["two"] and os.listdir(bucket / "y") == ["one"]


def test_rename_of_directories_moves_all_below_and_keeps_inodes(mount: MountProcess, bucket: Path) -> None:
    os.makedirs(bucket / "a" / "b" / "c")
    (bucket / "a" / "b" / "file").write_bytes(b"content")
    inodes = [os.stat(bucket / path).st_ino for path in ("a", "a/b", "a/b/file")]
    here = os.open(bucket / "a" / "b", os.O_RDONLY)
    os.rename(bucket / "a", bucket / "z")
    assert [os.stat(bucket / path).st_ino for path in ("z", "z/b", "z/b/file")] == inodes
    assert os.stat("file", dir_fd=here).st_size == 7, "an open directory moves along"
    fd = os.open("born", os.O_CREAT | os.O_WRONLY, dir_fd=here)
    os.close(fd)
    os.close(here)
    assert not (bucket / "a").exists()
    assert tree(bucket) == {"z": None, "z/b": None, "z/b/born": b"", "z/b/c": None, "z/b/file": b"content"}
    (bucket / "empty").mkdir()
    os.rename(bucket / "z", bucket / "empty")
    assert (bucket / "empty" / "b" / "file").read_bytes() == b"content"
    os.makedirs(bucket / "full" / "x")
    assert refusal(os.rename, bucket / "empty", bucket / "full") == errno.ENOTEMPTY
    assert refusal(os.rename, bucket / "empty", bucket / "empty" / "b") == errno.EINVAL


def test_rename_across_buckets(mount: MountProcess, bucket: Path) -> None:
    (mount.top / "other").mkdir()
    os.makedirs(bucket / "d" / "e")
    (bucket / "d" / "e" / "file").write_bytes(b"content")
    (bucket / "file").write_bytes(b"single")
    os.rename(bucket / "d", mount.top / "other" / "d")
    os.rename(bucket / "file", mount.top / "other" / "file")
    assert tree(bucket) == {}
    assert tree(mount.top / "other") == {"d": None, "d/e": None, "d/e/file": b"content", "file": b"single"}


def test_a_large_directory_is_listed_whole_and_removed(bucket: Path) -> None:
    names = sorted(f"file-{number:04}" for number in range(300))
    for name in names:
        (bucket / name).touch()
    with os.scandir(bucket) as entries:
        assert sorted(entry.name for entry in entries) == names
    shutil.rmtree(bucket, ignore_errors=False, onerror=lambda call, path, error: None)
    assert not bucket.exists() or os.listdir(bucket) == []


def test_names_that_do_not_fit(bucket: Path) -> None:
    (bucket / ("n" * 255)).touch()
    assert refusal((bucket / ("n" * 256)).touch) == errno.ENAMETOOLONG
    deep = bucket / "/".join(["d" * 250] * 3)
    os.makedirs(deep)
    (deep / ("f" * 250)).touch()
    os.mkdir(deep / ("g" * 250))
    assert refusal((deep / ("g" * 250) / ("h" * 100)).touch) == errno.ENAMETOOLONG
    assert refusal(os.mkdir, os.fsencode(bucket) + b"/bad\xff") == errno.EILSEQ
    assert refusal(os.stat, os.fsencode(bucket) + b"/bad\xff") == errno.ENOENT
    for name in ("new\nline", "späß ☃", "a*?[b", " ", "%2F", "..."):
        (bucket / name).write_bytes(name.encode())
        assert name in os.listdir(bucket)
        assert (bucket / name).read_bytes() == name.encode()
