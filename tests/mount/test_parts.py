"""The mount's parts on their own: dirty ranges, the inode table, the tree gate, errno."""

from __future__ import annotations

import errno
from pathlib import Path

import pyfuse3
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine import errors
from objfs.mount.dirty import DirtyRanges
from objfs.mount.errors import ERRNO, answered, errno_of
from objfs.mount.gate import TreeGate
from objfs.mount.inodes import DIRECTORY_BIT, Directory, InodeTable
from objfs.mount.names import ROOT, child_name, decode_component, is_below, split_name

writes = st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=80)), max_size=12)


@given(writes, st.one_of(st.none(), st.integers(0, 400)), writes)
def test_dirty_ranges_are_what_was_written(
    first: list[tuple[int, bytes]], cut: int | None, second: list[tuple[int, bytes]]
) -> None:
    ranges = DirtyRanges(None)
    model: dict[int, int] = {}
    try:
        for batch in (first, second):
            for offset, content in batch:
                ranges.write(offset, content)
                model.update(enumerate(content, offset))
            if batch is first and cut is not None:
                ranges.truncate(cut)
                model = {offset: byte for offset, byte in model.items() if offset < cut}
        assert all(end < start for (_, end), (start, _) in zip(ranges.ranges, ranges.ranges[1:], strict=False))
        assert ranges.byte_count == len(model)
        for low, high in ((0, 500), (100, 200), (7, 8)):
            read = {offset + n: byte for offset, content in ranges.read(low, high) for n, byte in enumerate(content)}
            assert read == {offset: byte for offset, byte in model.items() if low <= offset < high}
            assert ranges.covers(low, high) == all(offset in model for offset in range(low, high))
        whole = {offset + n: byte for offset, view in ranges.pieces(250) for n, byte in enumerate(view)}
        assert whole == {offset: byte for offset, byte in model.items() if offset < 250}
    finally:
        ranges.clear()


def test_dirty_ranges_leave_no_file_behind(tmp_path: Path) -> None:
    ranges = DirtyRanges(tmp_path)
    ranges.write(1 << 30, b"far out")
    assert ranges.read(1 << 30, 1 << 31) == [(1 << 30, b"far out")]
    assert list(tmp_path.iterdir()) == []
    ranges.clear()


def test_names() -> None:
    bucket = child_name(ROOT, "bucket")
    assert bucket == ("bucket", "")
    assert child_name(child_name(bucket, "a"), "b") == ("bucket", "a/b")
    assert split_name(("bucket", "a/b")) == (("bucket", "a"), "b")
    assert split_name(("bucket", "")) == (ROOT, "bucket")
    assert is_below(("bucket", "a/b"), ("bucket", "a")) and not is_below(("bucket", "ab"), ("bucket", "a"))
    for component, number in ((b"n" * 256, errno.ENAMETOOLONG), (b"\xff", errno.EILSEQ)):
        with pytest.raises(pyfuse3.FUSEError) as refused:
            decode_component(component)
        assert refused.value.errno == number


def test_a_renamed_directory_keeps_its_number_and_a_new_one_gets_another() -> None:
    table = InodeTable()
    old = table.ensure_directory(("bucket", "d"))
    below = table.ensure_directory(("bucket", "d/e"))
    file = table.ensure_file(("bucket", "d/e/f"), 77)
    for name, node in ((old.name, old), (below.name, below), (file.name, file)):
        table.tell(name, node)
    table.renamed(("bucket", "d"), ("other", "x"))
    assert (old.name, below.name, file.name) == (("other", "x"), ("other", "x/e"), ("other", "x/e/f"))
    assert table.known_name(("other", "x/e/f")) is file
    assert table.known_name(("bucket", "d/e/f")) is None
    new = table.ensure_directory(("bucket", "d"))
    assert new.inode != old.inode and new.inode & DIRECTORY_BIT


def test_forgotten_inodes_leave_the_table() -> None:
    table = InodeTable()
    file = table.ensure_file(("bucket", "a"), 5)
    table.tell(("bucket", "a"), file)
    table.tell(("bucket", "b"), file)
    table.forget(file.inode, 1)
    assert table.find(5) is file
    table.forget(file.inode, 1)
    assert table.find(5) is None and table.known_name(("bucket", "b")) is None
    directory = table.ensure_directory(("bucket", "d"))
    table.tell(directory.name, directory)
    table.removed(directory.name)
    assert directory.gone and isinstance(table.find(directory.inode), Directory)
    table.forget(directory.inode, 1)
    assert len(table) == 1, "only the root is left"


def test_a_directory_rename_passes_the_gate_alone() -> None:
    log: list[str] = []

    async def main() -> None:
        gate = TreeGate()

        async def together(name: str) -> None:
            async with gate.shared():
                log.append(f"{name} in")
                await trio.sleep(0.01)
                log.append(f"{name} out")

        async def alone() -> None:
            async with gate.alone():
                log.append("alone in")
                await trio.sleep(0.01)
                log.append("alone out")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(together, "a")
            nursery.start_soon(together, "b")
            await trio.sleep(0.001)
            nursery.start_soon(alone)
            await trio.sleep(0.001)
            nursery.start_soon(together, "c")

    trio.run(main)
    assert set(log[:2]) == {"a in", "b in"} and set(log[2:4]) == {"a out", "b out"}
    assert log[4:] == ["alone in", "alone out", "c in", "c out"]


def test_every_error_has_an_errno_and_a_bug_does_not_end_the_mount() -> None:
    assert errno_of(errors.NoSuchKey("x")) == errno.ENOENT
    assert errno_of(errors.Unreadable("x")) == errno_of(errors.IndexUnavailable("x")) == errno.EIO
    assert all(issubclass(kind, errors.StoreError) for kind in ERRNO)

    @answered
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(pyfuse3.FUSEError) as refused:
        trio.run(broken)
    assert refused.value.errno == errno.EIO
