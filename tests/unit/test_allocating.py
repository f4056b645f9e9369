"""Room is taken at once: by the filesystem, or by writing zeros where it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from engine.errors import NodeFull
from engine.nodes import allocating
from engine.nodes.descriptor import NODE_DESCRIPTOR_NAME, NodeDescriptor, write_node_descriptor
from engine.nodes.directory import DirectoryNode

MIB = 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> DirectoryNode:
    write_node_descriptor(tmp_path, NodeDescriptor(store_id="5a" * 16, node_id="node1", k=4, m=2))
    assert (tmp_path / NODE_DESCRIPTOR_NAME).exists()
    return DirectoryNode(tmp_path, "node1", "5a" * 16)


def cannot(number: int) -> Any:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def taken(node: DirectoryNode) -> int:
    return (Path(node.path) / "reserve").stat().st_blocks * 512


def test_a_filesystem_that_can_is_asked_once(node: DirectoryNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("nothing is to be written"))
    node.set_reserve(5 * MIB + 1)
    assert node.reserved() == 5 * MIB + 1 and taken(node) >= 5 * MIB


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_it_cannot_zeros_are_written_in_large_pieces(
    node: DirectoryNode, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    written: list[tuple[int, int]] = []
    true_write = os.pwrite

    def watched(descriptor: int, content: Any, offset: int) -> int:
        count = true_write(descriptor, content[: len(content) // 2 or 1], offset)  # a filesystem may take less
        written.append((offset, count))
        return count

    monkeypatch.setattr(allocating, "fallocate", cannot(number))
    node.set_reserve(100)
    monkeypatch.setattr(os, "pwrite", watched)
    node.set_reserve(5 * MIB + 1)
    assert node.reserved() == 5 * MIB + 1 and taken(node) >= 5 * MIB
    assert written[0][0] == 100, "what is held already is not written again"
    assert len(written) < 60, "not block by block"
    assert (Path(node.path) / "reserve").read_bytes() == bytes(5 * MIB + 1)


def test_what_fits_only_partly_is_given_back(node: DirectoryNode, monkeypatch: pytest.MonkeyPatch) -> None:
    true_write = os.pwrite

    def full_at_3_mib(descriptor: int, content: Any, offset: int) -> int:
        if offset >= 3 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true_write(descriptor, content, offset)

    node.set_reserve(MIB)
    monkeypatch.setattr(allocating, "fallocate", cannot(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "pwrite", full_at_3_mib)
    with pytest.raises(NodeFull):
        node.set_reserve(5 * MIB)
    assert node.reserved() == MIB


def test_fallocate_says_what_is_wrong(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError) as failure:
        allocating.fallocate(file.fileno(), 0, 1 << 62)
    assert failure.value.errno in (errno.EFBIG, errno.ENOSPC)
