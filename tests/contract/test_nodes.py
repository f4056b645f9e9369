"""The Node contract, over every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from sim.disk import SimulatedDisk, SimulatedNode

from engine.errors import (
    FragmentCorrupt,
    FragmentMissing,
    NodeFull,
    NodeUnavailable,
    StoreError,
    UnknownFormat,
    WrongStore,
)
from engine.interfaces import Node
from engine.nodes import directory
from engine.nodes.descriptor import NODE_DESCRIPTOR_NAME, NodeDescriptor, write_node_descriptor
from engine.nodes.directory import DirectoryNode
from engine.nodes.memory import MemoryNode

NAME = "segments/ab/00000000000000ab.0"


def directory_node(path: Path, node_id: str = "n0") -> DirectoryNode:
    path.mkdir()
    write_node_descriptor(path, NodeDescriptor(store_id="s", node_id=node_id, k=4, m=2))
    return DirectoryNode(path, node_id, "s")


@pytest.fixture(params=["directory", "memory", "simulated"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    made: Node
    match request.param:
        case "directory":
            made = directory_node(tmp_path / "node")
        case "memory":
            made = MemoryNode("n0")
        case _:
            made = SimulatedNode("n0", "simulated:n0", SimulatedDisk(Random(1)))
    yield made
    made.close()


def test_append_read_sync_truncate(node: Node) -> None:
    node.check()
    node.create(NAME)
    node.append(NAME, 0, [b"abc", memoryview(b"def"), bytearray(b"ghi")])
    node.append(NAME, 9, [b"jkl"])
    node.sync(NAME)
    assert node.size(NAME) == 12
    assert node.read(NAME, 2, 5) == b"cdefg"
    assert node.read(NAME, 10, 100) == b"kl"
    assert node.read(NAME, 100, 5) == b""
    node.truncate(NAME, 4)
    node.append(NAME, 4, [b"Z"])
    assert node.read(NAME, 0, 100) == b"abcdZ"


def test_warm_reads_give_the_same_bytes_or_none(node: Node) -> None:
    node.create(NAME)
    node.append(NAME, 0, [b"abcdef"])
    assert node.read(NAME, 0, 6) == b"abcdef"
    assert node.read_warm(NAME, 1, 3) in (b"bcd", None)


def test_many_buffers_at_once(node: Node) -> None:
    node.create(NAME)
    node.append(NAME, 0, [bytes([i % 256]) for i in range(3000)])
    assert node.read(NAME, 0, 3000) == bytes(i % 256 for i in range(3000))


def test_append_elsewhere_than_at_the_end_is_refused(node: Node) -> None:
    node.create(NAME)
    node.append(NAME, 0, [b"abc"])
    for offset in (0, 4):
        with pytest.raises(FragmentCorrupt, match="not ours any more"):
            node.append(NAME, offset, [b"x"])


def test_missing_and_existing_files(node: Node) -> None:
    for call in (
        lambda: node.read(NAME, 0, 1),
        lambda: node.size(NAME),
        lambda: node.sync(NAME),
        lambda: node.append(NAME, 0, [b"x"]),
        lambda: node.truncate(NAME, 0),
        lambda: node.delete(NAME),
        lambda: node.rename(NAME, "x"),
        lambda: node.quarantine(NAME, "why"),
    ):
        with pytest.raises(FragmentMissing):
            call()
    node.create(NAME)
    with pytest.raises(StoreError, match="exists"):
        node.create(NAME)


def test_list_delete_rename_write_whole(node: Node) -> None:
    node.create(NAME)
    node.write_whole("journal/1.epoch", b"one")
    node.write_whole("journal/1.epoch", b"two")
    assert list(node.list("")) == ["journal/1.epoch", NAME]
    assert list(node.list("segments/")) == [NAME]
    assert list(node.list("segments/ab/0000")) == [NAME]
    assert list(node.list("nothing/")) == []
    node.append(NAME, 0, [b"new"])
    node.sync(NAME)
    assert node.read("journal/1.epoch", 0, 9) == b"two"
    node.rename(NAME, "journal/1.epoch")
    assert node.read("journal/1.epoch", 0, 9) == b"new"
    node.delete("journal/1.epoch")
    assert list(node.list("")) == []
    node.create(NAME)
    assert node.size(NAME) == 0


def test_quarantine_keeps_the_file_and_says_why(node: Node) -> None:
    node.create(NAME)
    node.append(NAME, 0, [b"rotten"])
    node.quarantine(NAME, "XXH3 differs")
    kept = list(node.list("quarantine/"))
    assert len(kept) == 2 and not list(node.list("segments/"))
    contents = {node.read(name, 0, 1000) for name in kept}
    assert b"rotten" in contents and any(b"XXH3 differs" in content for content in contents)


def test_space(node: Node) -> None:
    space = node.space()
    assert 0 < space.free <= space.total


def test_the_reserve_takes_room_and_gives_it_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.reserved() == 0
    node.set_reserve(1 << 20)
    assert node.reserved() == 1 << 20 and list(node.list("")) == []
    if isinstance(node, DirectoryNode):
        assert (Path(node.path) / "reserve").stat().st_blocks * 512 >= 1 << 20
    else:
        assert node.space().free == node.space().total - (1 << 20)
    node.set_reserve(100)
    assert node.reserved() == 100
    monkeypatch.setattr(
        "engine.nodes.allocating.fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(NodeFull):
        node.set_reserve(1 << 60)
    assert node.reserved() == 100
    node.set_reserve(0)
    assert node.reserved() == 0


# -- what only a directory can do ----------------------------------------------


def test_nothing_is_created_without_a_descriptor(tmp_path: Path) -> None:
    node = DirectoryNode(tmp_path / "gone", "n0", "s")
    with pytest.raises(NodeUnavailable, match="missing"):
        node.create(NAME)
    (tmp_path / "gone").mkdir()
    for call in (node.check, node.space, lambda: node.create(NAME), lambda: node.write_whole(NAME, b"x")):
        with pytest.raises(NodeUnavailable):
            call()
    assert list((tmp_path / "gone").iterdir()) == []


def test_another_stores_node_and_a_newer_format_are_refused(tmp_path: Path) -> None:
    directory_node(tmp_path / "a")
    with pytest.raises(WrongStore):
        DirectoryNode(tmp_path / "a", "n0", "other").check()
    with pytest.raises(WrongStore, match="swapped"):
        DirectoryNode(tmp_path / "a", "n1", "s").check()
    write_node_descriptor(tmp_path / "a", NodeDescriptor(store_id="s", node_id="n0", format=2))
    with pytest.raises(UnknownFormat, match="format 2"):
        DirectoryNode(tmp_path / "a", "n0", "s").check()


def test_a_node_moved_away_fails_at_the_next_sync_and_comes_back(tmp_path: Path) -> None:
    node = directory_node(tmp_path / "a")
    node.create(NAME)
    node.append(NAME, 0, [b"abc"])
    node.sync(NAME)
    (tmp_path / "a").rename(tmp_path / "b")
    node.append(NAME, 3, [b"def"])
    with pytest.raises(NodeUnavailable):
        node.sync(NAME)
    (tmp_path / "b").rename(tmp_path / "a")
    node.sync(NAME)
    node.close()


def test_a_node_replaced_under_open_files_is_not_mistaken_for_the_old_one(tmp_path: Path) -> None:
    node = directory_node(tmp_path / "a")
    node.create(NAME)
    node.append(NAME, 0, [b"abc"])
    (tmp_path / "a").rename(tmp_path / "b")
    directory_node(tmp_path / "a")
    with pytest.raises(FragmentMissing):
        node.sync(NAME)
    node.close()


def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "OPEN_FILES_MAX", 4)
    node = directory_node(tmp_path / "a")
    for number in range(20):
        node.create(f"segments/{number}")
        node.append(f"segments/{number}", 0, [b"x"])
    assert len(node._files) == 4
    assert node.read("segments/0", 0, 9) == b"x"
    node.close()


def test_reads_follow_a_file_another_process_replaced(tmp_path: Path) -> None:
    node, other = directory_node(tmp_path / "a"), DirectoryNode(tmp_path / "a", "n0", "s")
    node.write_whole(NAME, b"old")
    assert node.read(NAME, 0, 9) == b"old"
    other.write_whole(NAME, b"new")
    assert node.read(NAME, 0, 9) == b"new"


def test_a_failed_sync_is_never_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = directory_node(tmp_path / "a")
    node.create(NAME)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", fail)
        with pytest.raises(NodeUnavailable):
            node.sync(NAME)
    for call in (lambda: node.sync(NAME), lambda: node.append(NAME, 0, [b"x"])):
        with pytest.raises(NodeUnavailable, match="failed to sync"):
            call()


def test_full_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = directory_node(tmp_path / "a")
    node.create(NAME)
    monkeypatch.setattr("os.pwritev", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(NodeFull):
        node.append(NAME, 0, [b"x"])
    small = MemoryNode("n0", capacity=10)
    small.create(NAME)
    with pytest.raises(NodeFull):
        small.append(NAME, 0, [bytes(11)])
    assert (tmp_path / "a" / NODE_DESCRIPTOR_NAME).exists()


# -- what only a memory node can do --------------------------------------------


def test_faults_to_order() -> None:
    node = MemoryNode("n0")
    node.create(NAME)
    node.append(NAME, 0, [b"abc"])
    node.sync(NAME)
    node.append(NAME, 3, [b"def"])
    node.fault_next_sync()
    for _ in range(2):
        with pytest.raises(NodeUnavailable):
            node.sync(NAME)
    node.fault_power_loss()
    assert node.read(NAME, 0, 9) == b"abc"
    node.fault_corrupt(NAME, 1)
    assert node.read(NAME, 0, 9) != b"abc"
    node.vanished = True
    with pytest.raises(NodeUnavailable):
        node.read(NAME, 0, 9)
