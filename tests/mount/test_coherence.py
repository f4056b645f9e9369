"""What another door changes is seen through the mount at once, whatever the kernel had
cached."""

from __future__ import annotations

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


def test_an_open_clean_file_follows_an_overwrite(mount: MountProcess, bucket: Path) -> None:
    mount.other("put", "bucket", "key", "before")
    with open(bucket / "key", "rb", buffering=0) as file:
        assert file.read() == b"before"
        mount.other("put", "bucket", "key", "behind and longer")
        file.seek(0)
        assert file.read() == b"behind and longer"


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
