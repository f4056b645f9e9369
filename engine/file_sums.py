"""Checksums of derived files, written when they are closed cleanly.

`<file>.sum` says what a file of DATA/index held at its last clean close. It is taken away
before the file is opened for writing again, so it never speaks of a file that has changed
since. Blocking.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
import xxhash
from msgspec import Struct

from engine.durable_files import sync_directory, write_durably

READ_BYTES = 4 * 1024 * 1024


class FileSum(Struct, frozen=True):
    """`damaged`: why no file can have this sum."""

    size: int
    xxh3: int
    damaged: str = ""


def sum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sum")


def sum_file(path: Path) -> FileSum:
    digest = xxhash.xxh3_64()
    size = 0
    with path.open("rb", buffering=0) as file:
        while some := file.read(READ_BYTES):
            digest.update(some)
            size += len(some)
    return FileSum(size, digest.intdigest())


def write_sum(path: Path) -> None:
    """After `path` was closed and synced."""
    write_durably(sum_path(path), msgspec.json.encode(sum_file(path)))


def take_sum(path: Path) -> FileSum | None:
    """Read the sum and take it away, durably. None when there is none; one that is itself
    damaged says so of the file: nobody knows what that held."""
    try:
        content = sum_path(path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(content, type=FileSum)
    except msgspec.DecodeError:
        found = FileSum(0, 0, damaged="its checksum file is damaged")
    with suppress(FileNotFoundError):
        sum_path(path).unlink()
    sync_directory(path.parent)
    return found
