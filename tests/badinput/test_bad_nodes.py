"""Descriptors and node directories that are damaged, moved, swapped, old or not directories:
what is not surely ours is not touched, and the message says which, where and what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from engine.store import Store, open_store
from tests.badinput.world import Contents, Image, get, make_image, put, put_all, run, some_contents

Edit = Callable[[dict[str, Any]], Any]


def edit(path: Path, change: Edit) -> None:
    fields = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(change(fields)))


def states(store: Store) -> dict[str, str]:
    return {place.node_id: str(place.state) for place in store.keymap.nodes()}


async def until_healthy(store: Store) -> None:
    with anyio.fail_after(40):
        while set(states(store).values()) != {"healthy"} or (await store.status())["under_redundancy"]:  # noqa: ASYNC110
            await anyio.sleep(0.1)


# -- store.json ----------------------------------------------------------------------------

NO_STORE: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(400),
    "cut": b'{"store_id": "ab',
    "not utf-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"7",
    "no fields": b"{}",
    "only a format": b'{"format": 1}',
}


@pytest.mark.parametrize("kind", NO_STORE)
def test_a_damaged_store_json_is_refused_by_name(closed: Image, kind: str) -> None:
    (closed.data / "store.json").write_bytes(NO_STORE[kind])
    message = closed.refused()
    assert message.startswith("NotAStore: ") and f"{closed.data / 'store.json'} is damaged" in message, message
    assert "objfs-node.json" in message, "it says from where it can be written again"


def test_a_missing_store_json_is_refused_by_name(closed: Image) -> None:
    (closed.data / "store.json").unlink()
    message = closed.refused()
    assert message.startswith("NotAStore: ") and "store.json is missing; run `objfs init`" in message, message


IMPOSSIBLE: dict[str, Edit] = {
    "m raised": lambda fields: fields | {"m": 3},
    "m lowered": lambda fields: fields | {"m": 1},
    "k raised": lambda fields: fields | {"k": 5},
    "k is nothing": lambda fields: fields | {"k": 0},
    "m is negative": lambda fields: fields | {"m": -1},
    "k is enormous": lambda fields: fields | {"k": 2**40},
    "another code": lambda fields: fields | {"code": "isa_l_rs_vand"},
    "a node twice": lambda fields: fields | {"nodes": [*fields["nodes"], fields["nodes"][0]]},
    "a path twice": lambda fields: fields | {"nodes": [fields["nodes"][0] | {"node_id": "node9"}, *fields["nodes"]]},
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_a_store_json_that_contradicts_the_nodes_is_refused_by_name(closed: Image, kind: str) -> None:
    edit(closed.data / "store.json", IMPOSSIBLE[kind])
    message = closed.refused()
    assert message.startswith("NotAStore: ") and str(closed.data / "store.json") in message, message


def test_a_store_json_of_another_store_is_refused_naming_the_nodes(closed: Image) -> None:
    edit(closed.data / "store.json", lambda fields: fields | {"store_id": "ab" * 16})
    message = closed.refused()
    assert message.startswith("NodeUnavailable: 6 nodes are missing, the store survives 2"), message
    assert all(f"nodes/{number}" in message for number in range(1, 7)) and "belongs to store" in message, message


# -- objfs-node.json -----------------------------------------------------------------------


def damaged_descriptor(kind: str) -> Edit | bytes:
    return {
        "empty": b"",
        "garbage": b"\xff\xff\xff",
        "no fields": b"{}",
        "a list": b"[]",
        "another node": lambda fields: fields | {"node_id": "node9"},
        "another store": lambda fields: fields | {"store_id": "cd" * 16},
        "newer format": lambda fields: fields | {"format": 2},
        "lower generation": lambda fields: fields | {"generation": 0},
    }[kind]  # type: ignore[return-value]


SAID = {
    "empty": "is damaged",
    "garbage": "is damaged",
    "no fields": "is damaged",
    "a list": "is damaged",
    "another node": "holds node node9, not node2",
    "another store": "belongs to store",
    "newer format": "has format 2, this release knows 1; use a newer objfs",
    "lower generation": "an older disk of node node2",
}


@pytest.mark.parametrize("kind", SAID)
def test_a_damaged_node_descriptor_makes_the_node_lost_and_untouched(
    closed: Image, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = closed.node(2) / "objfs-node.json"
    change = damaged_descriptor(kind)
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        edit(path, change)
    before = sums(closed.node(2))
    added = some_contents("added", 4)

    async def work() -> None:
        async with open_store(closed.data) as store:
            await closed.check_open(store)
            await put_all(store, added)
            with anyio.fail_after(20):
                while states(store)["node2"] != "lost":  # noqa: ASYNC110
                    await anyio.sleep(0.05)

    run(work)
    assert sums(closed.node(2)) == before
    told = [record.getMessage() for record in caplog.records if "node node2 is lost" in record.getMessage()]
    assert told and SAID[kind] in told[0] and str(closed.node(2)) in told[0], told


def sums(node: Path) -> dict[str, bytes]:
    return {str(path.relative_to(node)): path.read_bytes() for path in node.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", SAID)
def test_more_than_m_damaged_node_descriptors_are_refused_naming_each(closed: Image, kind: str) -> None:
    for number in (2, 3, 5):
        path = closed.node(number) / "objfs-node.json"
        change = damaged_descriptor(kind)
        if isinstance(change, bytes):
            path.write_bytes(change)
        else:
            edit(path, change)
    message = closed.refused()
    assert message.startswith("NodeUnavailable: 3 nodes are missing, the store survives 2"), message
    assert all(f"nodes/{number}" in message for number in (2, 3, 5)), message
    assert "bring nodes back and try again" in message


# -- directories ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "loop", "dangling", "gone", "empty", "fifo", "descriptor is a directory"])
def test_up_to_m_node_paths_that_are_no_nodes_are_left_alone(closed: Image, kind: str) -> None:
    for number in (1, 6):
        path = closed.node(number)
        shutil.rmtree(path)
        match kind:
            case "file":
                path.write_text("not a directory")
            case "loop":
                path.symlink_to(path)
            case "dangling":
                path.symlink_to("nowhere")
            case "empty":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "descriptor is a directory":
                (path / "objfs-node.json").mkdir(parents=True)
    closed.check()
    for number in (1, 6):
        path = closed.node(number)
        match kind:
            case "file":
                assert path.read_text() == "not a directory"
            case "empty":
                assert list(path.iterdir()) == [], "nothing is created in a node that is lost"
            case "gone" | "dangling":
                assert not path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may")
def test_a_node_that_may_not_be_read_is_lost(closed: Image) -> None:
    closed.node(3).chmod(0)
    try:
        closed.check()
    finally:
        closed.node(3).chmod(0o755)


def test_a_node_that_moved_is_found_where_store_json_says(closed: Image) -> None:
    """The directory was moved while the store was closed, and store.json corrected."""
    moved = closed.data / "elsewhere"
    closed.node(4).rename(moved)
    edit(closed.data / "store.json", lambda fields: fields | {"nodes": with_path(fields, "node4", moved)})

    async def work() -> None:
        async with open_store(closed.data) as store:
            await anyio.sleep(1.2)  # the nodes are watched every second
            assert states(store)["node4"] == "healthy"
            (place,) = [place for place in store.keymap.nodes() if place.node_id == "node4"]
            assert place.path == str(moved)
            await closed.check_open(store)

    run(work)
    assert not closed.node(4).exists()
    closed.check()


def with_path(fields: dict[str, Any], node_id: str, path: Path) -> list[dict[str, Any]]:
    return [node | {"path": str(path)} if node["node_id"] == node_id else node for node in fields["nodes"]]


def swapped(image: Image, numbers: tuple[int, ...]) -> Edit:
    """Paths in store.json moved on by one among `numbers`."""
    moved = dict(zip(numbers, [*numbers[1:], numbers[0]], strict=True))

    def change(fields: dict[str, Any]) -> dict[str, Any]:
        nodes = fields["nodes"]
        for number, other in moved.items():
            nodes = with_path({"nodes": nodes}, f"node{number}", image.node(other))
        return fields | {"nodes": nodes}

    return change


@pytest.mark.parametrize("index_lost", [False, True])
def test_two_nodes_swapped_in_store_json_are_found_where_the_index_says(closed: Image, index_lost: bool) -> None:
    edit(closed.data / "store.json", swapped(closed, (1, 2)))
    if index_lost:
        shutil.rmtree(closed.data / "index")
    before = [(closed.node(number) / "objfs-node.json").read_bytes() for number in (1, 2)]

    async def work() -> None:
        async with open_store(closed.data) as store:
            await closed.check_open(store)
            await put(store, "swapped", b"x" * 100_000)
            assert await get(store, "swapped") == b"x" * 100_000
            await until_healthy(store)

    run(work)
    assert [(closed.node(number) / "objfs-node.json").read_bytes() for number in (1, 2)] == before


def test_more_than_m_nodes_swapped_in_store_json_are_refused_naming_each(closed: Image) -> None:
    edit(closed.data / "store.json", swapped(closed, (1, 2, 3)))
    message = closed.refused()
    assert "3 nodes are missing" in message and "nodes/2 holds node node2, not node1" in message, message
    assert "put its path in store.json right" in message, message


# -- old copies ----------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [(1,), (2, 5)])
@pytest.mark.parametrize("index_lost", [False, True])
def test_old_copies_of_nodes_are_stale_until_they_are_repaired(
    closed: Image, numbers: tuple[int, ...], index_lost: bool
) -> None:
    """cp -a of a node while the store was closed, more writes, and the copy put back."""
    for number in numbers:
        shutil.copytree(closed.node(number), closed.data / f"copy{number}")
    added: Contents = some_contents("added", 7)

    async def more() -> None:
        async with open_store(closed.data) as store:
            await put_all(store, added)

    run(more)
    for number in numbers:
        shutil.rmtree(closed.node(number))
        (closed.data / f"copy{number}").rename(closed.node(number))
    if index_lost:
        shutil.rmtree(closed.data / "index")
    contents, closed.contents = closed.contents, closed.contents | added
    try:
        run(lambda: served_and_repaired(closed, numbers))
        others = [number for number in range(1, 7) if number not in numbers][:2]
        for number in others:  # what was repaired must carry the store now
            shutil.rmtree(closed.node(number))
        closed.check()
    finally:
        closed.contents = contents


async def served_and_repaired(image: Image, numbers: tuple[int, ...]) -> None:
    async with open_store(image.data) as store:
        await image.check_open(store)
        seen = set()
        with anyio.fail_after(40):
            while True:
                now = states(store)
                seen |= {number for number in numbers if now[f"node{number}"] == "stale"}
                if seen == set(numbers) and set(now.values()) == {"healthy"}:
                    break
                await anyio.sleep(0.01)
        await until_healthy(store)
        assert await store.fsck() == []


def test_old_copies_of_all_nodes_are_refused_while_the_index_is_newer(closed: Image) -> None:
    shutil.copytree(closed.data / "nodes", closed.data / "copies")

    async def more() -> None:
        async with open_store(closed.data) as store:
            await put(store, "newer", b"newer" * 1_000)

    run(more)
    shutil.rmtree(closed.data / "nodes")
    (closed.data / "copies").rename(closed.data / "nodes")
    message = closed.refused()
    assert message.startswith("JournalCorrupt: ") and "these are older nodes" in message, message
    assert "move DATA/index away to go on with what these nodes hold" in message, message
    (closed.data / "index").rename(closed.data / "aside")
    closed.check()


def test_a_replaced_disk_that_turns_up_again_is_refused(closed: Image) -> None:
    old = closed.data / "old"
    closed.node(3).rename(old)

    async def replace() -> None:
        async with open_store(closed.data) as store:
            with anyio.fail_after(20):
                while states(store)["node3"] != "lost":  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            closed.node(3).mkdir()
            await store.replace_node("node3")
            await until_healthy(store)

    run(replace)
    closed.node(3).rename(closed.data / "new")
    old.rename(closed.node(3))
    before = sums(closed.node(3))

    async def with_old() -> None:
        async with open_store(closed.data) as store:
            with anyio.fail_after(20):
                while states(store)["node3"] != "lost":  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            await closed.check_open(store)

    run(with_old)
    assert sums(closed.node(3)) == before, "the old disk is left as it is"


def test_nodes_of_another_store_in_the_places_of_ours_are_left_alone(closed: Image, tmp_path: Path) -> None:
    foreign = make_image(tmp_path)
    for number in (2, 4):
        shutil.rmtree(closed.node(number))
        shutil.copytree(foreign.node(number), closed.node(number))
    before = [sums(closed.node(number)) for number in (2, 4)]
    closed.check()
    assert [sums(closed.node(number)) for number in (2, 4)] == before
