"""Nodes are added, drained, removed, moved between domains; afterwards any m may go."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from care_store import ORIGIN, World, open_world, until

from engine.care.lock import care_lock
from engine.care.nodes import add_node, drain_node, rebalance, remove_node, set_domain, undrain_node
from engine.care.repair import repair
from engine.care.scrub import scrub
from engine.changes import SetNode
from engine.errors import StoreError
from engine.nodes.descriptor import read_node_descriptor, read_store_descriptor
from engine.opening import Opening, open_parts
from engine.store import Store
from engine.types import NodeState

pytestmark = pytest.mark.anyio


async def survives_any_two(world: World) -> None:
    """Read everything with each pair of nodes away."""
    nodes = [place.node_id for place in world.parts.index.keymap.nodes()]
    for pair in itertools.combinations(nodes, 2):
        for node_id in pair:
            os.rename(world.place(node_id), f"{world.place(node_id)}.away")
        try:
            await world.check()
        finally:
            for node_id in pair:
                os.rename(f"{world.place(node_id)}.away", world.place(node_id))
        await until(lambda: set(nodes) <= set(world.parts.nodes.nodes))  # a slow round may have been noticed


async def settled(world: World) -> None:
    """All nodes are healthy, and nothing is below full protection."""
    await until(lambda: all(str(place.state) == "healthy" for place in world.parts.index.keymap.nodes()))
    assert (await world.store.status())["under_redundancy"] == 0
    found = await scrub(world.parts, bytes_per_second=None, seal=True)
    assert not (found.damaged or found.unreadable or found.problems or found.absent)


async def test_an_added_node_is_used_at_once_and_survives_reopening(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill()
        node_id = await add_node(world.parts, str(tmp_path / "seven"), "z/r/h")
        assert node_id == "node7"
        for seed in range(2, 9):
            await world.fill(seed=seed, sizes=(200_000,))
        assert any("node7" in segment.node_ids for segment in world.segments())
        assert [place.node_id for place in read_store_descriptor(tmp_path / "data").nodes][-1] == "node7"
        assert read_node_descriptor(tmp_path / "seven").domain == "z/r/h"
        with pytest.raises(StoreError, match="is a node already"):
            await add_node(world.parts, str(tmp_path / "seven"))
        with pytest.raises(StoreError, match="not empty"):
            await add_node(world.parts, str(tmp_path))
        await settled(world)
    async with open_world(tmp_path / "data") as again:
        again.contents = world.contents
        await settled(again)
        await survives_any_two(again)


async def test_adding_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    from engine.crash_sites import CrashSite, watch

    class CrashedError(BaseException):
        pass

    def crash(site: CrashSite) -> None:
        if site is CrashSite.NODE_DESCRIBED:
            raise CrashedError

    async with open_world(tmp_path / "data") as world:
        with watch(crash), pytest.raises(CrashedError):
            await add_node(world.parts, str(tmp_path / "seven"))
        assert len(read_store_descriptor(tmp_path / "data").nodes) == 6
        assert await add_node(world.parts, str(tmp_path / "seven")) == "node7"
        await world.fill()
        await settled(world)


async def test_drain_and_remove_with_a_spare_node(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data", nodes=7) as world:
        for seed in range(4):
            await world.fill(seed=seed, sizes=(300_000,))
        with pytest.raises(StoreError, match="drain node2 first"):
            await remove_node(world.parts, "node2")
        held = sum("node2" in segment.node_ids for segment in world.segments())
        work = await drain_node(world.parts, "node2", bytes_per_second=None)
        assert work.left == [] and held
        assert not any("node2" in segment.node_ids for segment in world.segments())
        assert list((tmp_path / "data/nodes/2").glob("segments/*/*")) == []
        await world.fill(seed=9, sizes=(300_000,))
        assert list((tmp_path / "data/nodes/2").glob("segments/*/*")) == [], "nothing new is written there"
        await remove_node(world.parts, "node2", bytes_per_second=None)
        assert "node2" not in {place.node_id for place in world.parts.index.keymap.nodes()}
        assert "node2" not in {place.node_id for place in read_store_descriptor(tmp_path / "data").nodes}
        shutil.rmtree(tmp_path / "data/nodes/2")
        await settled(world)
    async with open_world(tmp_path / "data") as again:
        again.contents = world.contents
        await settled(again)
        await survives_any_two(again)


async def test_drain_without_a_spare_node_narrows(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill()
        assert (await drain_node(world.parts, "node4", bytes_per_second=None)).left == []
        await remove_node(world.parts, "node4", bytes_per_second=None)
        shutil.rmtree(tmp_path / "data/nodes/4")
        assert {(segment.k, segment.m) for segment in world.segments()} == {(3, 2)}
        await settled(world)
        await survives_any_two(world)


async def test_draining_can_be_taken_back(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data", nodes=7) as world:
        await world.fill()
        await drain_node(world.parts, "node1", bytes_per_second=None)
        await undrain_node(world.parts, "node1")
        with pytest.raises(StoreError, match="not draining"):
            await undrain_node(world.parts, "node1")
        await settled(world)


async def test_a_draining_node_that_was_away_still_drains(tmp_path: Path) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    async with open_world(data, nodes=7) as world:
        await world.fill()
        drained = world.segment().node_ids[0]
        place = world.place(drained)
        async with care_lock(world.parts.data, "a test"):  # repair may not move anything yet
            here = next(one for one in world.parts.index.keymap.nodes() if one.node_id == drained)
            change = SetNode(drained, here.path, here.domain, NodeState.DRAINING, here.generation)
            await world.store.commit(change, ORIGIN)
            shutil.move(place, away)
            await until(lambda: world.state(drained) == "lost")
            (told,) = [one for one in (await world.store.status())["nodes"] if one["id"] == drained]
            assert (told["state"], told["drains_again"]) == ("lost", True)
            with pytest.raises(StoreError, match="is lost; its draining can be taken back once it is there again"):
                await undrain_node(world.parts, drained)
        # What was to go elsewhere is rebuilt there, without waiting for the node.
        await until(lambda: not any(drained in segment.node_ids for segment in world.segments()))
        assert (await repair(world.parts, bytes_per_second=None)).waiting == [], "nothing waits for it"
    async with open_world(data) as again:
        again.contents = world.contents
        assert again.state(drained) == "lost"
        await again.fill(seed=2)
        shutil.move(away, place)
        await until(lambda: again.state(drained) == "draining")
        await again.fill(seed=3)
        assert not any(drained in segment.node_ids for segment in again.segments()), "nothing new is written there"
        await until(lambda: list(place.glob("segments/*/*")) == [])  # what it brought back is known to lie elsewhere
        await again.check()
        await undrain_node(again.parts, drained)
        await settled(again)


async def test_a_lost_node_is_removed_after_its_content_was_rebuilt(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data", nodes=7) as world:
        await world.fill()
        gone = world.segment().node_ids[0]
        shutil.rmtree(world.place(gone))
        await until(lambda: world.state(gone) == "lost")
        with pytest.raises(StoreError, match="lost; only a healthy node can be drained"):
            await drain_node(world.parts, gone)
        await remove_node(world.parts, gone, bytes_per_second=None)
        await settled(world)
        await survives_any_two(world)


async def test_fewer_than_m_plus_one_nodes_are_never_left(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data", nodes=3, k=1, m=2) as world:
        await world.fill(sizes=(100_000,))
        with pytest.raises(StoreError, match="the store needs 3"):
            await drain_node(world.parts, "node1")
        with pytest.raises(StoreError, match="there is no node node9"):
            await drain_node(world.parts, "node9")
        assert world.state("node1") == "healthy"


async def test_another_domain_moves_what_is_too_much_in_one_place(tmp_path: Path) -> None:
    domains = ("a", "a", "b", "b", "c", "c", "d", "d")
    async with open_world(tmp_path / "data", nodes=8, domains=domains) as world:
        for seed in range(6):
            await world.fill(seed=seed, sizes=(200_000,))
        work = await set_domain(world.parts, "node7", "a", bytes_per_second=None)
        assert work.left == []
        where = {place.node_id: place.domain for place in world.parts.index.keymap.nodes()}
        assert where["node7"] == "a"
        assert read_node_descriptor(tmp_path / "data/nodes/7").domain == "a"
        assert {place.node_id: place.domain for place in read_store_descriptor(tmp_path / "data").nodes} == where
        for segment in world.segments():
            held = [where[node_id] for node_id in segment.node_ids]
            assert all(held.count(domain) <= 2 for domain in "abcd")
        assert work.moved == work.crowded > 0, "six of eight nodes: some segment held three of a's"
        await settled(world)


async def test_rebalance_evens_out(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        for seed in range(12):
            await world.fill(seed=seed, sizes=(200_000,))
        for number in (7, 8):
            await add_node(world.parts, str(tmp_path / f"extra{number}"))
        assert (await rebalance(world.parts, bytes_per_second=None)).moved > 0
        held = dict.fromkeys((place.node_id for place in world.parts.index.keymap.nodes()), 0)
        for segment in world.segments():
            assert len(set(segment.node_ids)) == 6
            for node_id in segment.node_ids:
                held[node_id] += segment.size
        largest = max(segment.size for segment in world.segments())
        assert max(held.values()) - min(held.values()) <= 2 * largest
        for segment in world.segments():
            for index, node_id in enumerate(segment.node_ids):
                assert world.file(segment, index).exists(), node_id
        assert (await rebalance(world.parts, bytes_per_second=None)).moved == 0
        await settled(world)
        await survives_any_two(world)


async def test_a_process_that_joined_learns_of_new_and_removed_nodes(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data", nodes=7) as world:
        await world.fill()
        async with open_parts(tmp_path / "data", Opening.JOIN) as joined:
            await add_node(joined, str(tmp_path / "eight"))
            await until(lambda: "node8" in world.parts.nodes.nodes)
            await drain_node(joined, "node3", bytes_per_second=None)
            await remove_node(joined, "node3", bytes_per_second=None)
            await until(lambda: "node3" not in joined.nodes.nodes and "node3" not in world.parts.nodes.nodes)
            reading = Store(joined)
            for key, content in world.contents.items():
                head = reading.keymap.head("bucket", key)
                assert head is not None
                assert b"".join([bytes(piece) async for piece in reading.read(head.manifest)]) == content
        await settled(world)


# -- as typed ------------------------------------------------------------------------


def objfs(data: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "objfs", *arguments, "--data", str(data)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_the_commands_as_they_are_typed(tmp_path: Path, anyio_backend: str) -> None:
    if anyio_backend != "asyncio":
        pytest.skip("the commands run in processes of their own: once is enough")
    data = tmp_path / "data"
    async with open_world(data) as world:
        await world.fill(sizes=(500_000,))
        stays = next(at for at, node_id in enumerate(world.segment().node_ids) if node_id != "node1")
        rotten = world.file(world.segment(), stays)
    content = bytearray(rotten.read_bytes())
    content[5000] ^= 1
    rotten.write_bytes(content)
    scrubbed = objfs(data, "scrub", code=1)
    assert "the payload of stripe" in scrubbed and "objfs repair" in scrubbed
    objfs(data, "repair")
    told = json.loads(objfs(data, "scrub", "--all", "--json"))
    assert (told["damaged"], told["unreadable"], told["unreadable_objects"]) == ([], [], [])
    assert "everything is as it was written" in objfs(data, "scrub", "--limit", "500MB")
    listed = objfs(data, "quarantine", "list")
    assert rotten.name in listed and "the payload of stripe" in listed
    assert [one["file"] for one in json.loads(objfs(data, "quarantine", "list", "--json"))]
    assert "added node7" in objfs(data, "node", "add", f"{tmp_path}/seven=z")
    assert "fragments were moved" in objfs(data, "node", "rebalance")
    assert "is in y" in objfs(data, "node", "set-domain", "node7", "y")
    assert "drain node1 first" in objfs(data, "node", "remove", "node1", code=1)
    assert "holds no content" in objfs(data, "node", "drain", "node1")
    assert "used as before" in objfs(data, "node", "drain", "node1", "--cancel")
    assert "holds no content" in objfs(data, "node", "drain", "node1")
    assert "no part of the store" in objfs(data, "node", "remove", "node1")
    assert "node1" not in objfs(data, "node", "list")
    assert "fully protected" in objfs(data, "repair", "--narrow", "--grace", "1s")
    status = json.loads(objfs(data, "status", "--json"))
    assert (status["under_redundancy"], status["protection"], status["quarantined"]) == (0, {}, 1)
    assert status["scrub"]["unchecked_segments"] == 0 or status["scrub"]["oldest_checked_ns"]
    assert "no problems" in objfs(data, "fsck")
