"""Repair brings everything back to full protection: by risk, in place or elsewhere, by itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from care_store import World, flip, open_world, until

from engine.care import repair as repair_module
from engine.care.narrowing import narrow
from engine.care.pace import Progress
from engine.care.repair import make_plan, repair
from engine.care.scrub import scrub
from engine.care.survival import versions_naming
from engine.care.underway import under_way
from engine.changes import Change, CommitResult, FragmentsDamaged, FragmentsRepaired, Origin
from engine.crash_sites import CrashSite, watch
from engine.errors import NodeFull
from engine.maintenance import Maintenance
from engine.read_path import ContentReader
from engine.segments.format import FILE_HEADER_BYTES, STRIPE_HEADER_BYTES
from engine.types import Segment

pytestmark = pytest.mark.anyio
PAYLOAD = FILE_HEADER_BYTES + STRIPE_HEADER_BYTES


@pytest.fixture
def no_automatic_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Maintenance, parts: object) -> None:
        """Repair is started by the test."""

    monkeypatch.setattr(Maintenance, "repair", nothing)


async def damage(world: World, segment: Segment, *indexes: int) -> None:
    for index in indexes:
        flip(world.file(segment, index), PAYLOAD + 10)
    await world.parts.index.commit(FragmentsDamaged(segment.segment_id, list(indexes), "a test"), repair_module.ORIGIN)


async def under(world: World) -> int:
    count = (await world.store.status())["under_redundancy"]
    assert isinstance(count, int)
    return count


async def test_highest_risk_first_and_everything_is_told(tmp_path: Path, no_automatic_repair: None) -> None:
    told: list[Progress] = []
    seen: list[list[Progress]] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        seen.append(under_way(tmp_path / "data"))

    async with open_world(tmp_path / "data") as world:
        for seed in range(3):
            await world.fill(seed=seed, sizes=(300_000,))
        one, two, three = world.segments()
        await damage(world, one, 1)
        await damage(world, two, 0, 5)
        status = await world.store.status()
        assert status["protection"] == {"0": two.stripes, "1": one.stripes}
        assert await under(world) == one.stripes + two.stripes
        with world.parts.index.keymap.snapshot() as keymap:
            plan = make_plan(keymap, world.parts.nodes.nodes, 600)
        assert [need.segment.segment_id for need in plan.needs] == [two.segment_id, one.segment_id]
        result = await repair(world.parts, bytes_per_second=None, report=tell)
        assert (result.segments, result.fragments, result.left) == (2, 3, [])
        assert result.rebuilt_bytes == one.size + 2 * two.size
        assert any(one.what == "repair" for some in seen for one in some), "others see it"
        assert (await world.store.status())["under_way"] == []
        assert told[-1].total == told[-1].done and told[-1].seconds_left == 0
        assert await under(world) == 0 and (await world.store.status())["protection"] == {}
        assert len(world.quarantined()) == (await world.store.status())["quarantined"] == 3
        assert (await scrub(world.parts, bytes_per_second=None)).damaged == []
        assert not three.fragments_lost


async def test_a_node_that_is_lost_for_long_is_given_up(tmp_path: Path, no_automatic_repair: None) -> None:
    async with open_world(tmp_path / "data", nodes=8) as world:
        await world.fill(sizes=(300_000, 1_500_000))
        await world.fill(seed=2, sizes=(300_000,))
        gone = world.segment().node_ids[2]
        os.rename(world.place(gone), tmp_path / "gone")
        await until(lambda: world.state(gone) == "lost")
        waiting = await repair(world.parts, bytes_per_second=None)
        assert (waiting.fragments, waiting.waiting) == (0, [gone]), "it may come back"
        result = await repair(world.parts, bytes_per_second=None, grace_seconds=0)
        assert result.left == [] and result.fragments
        assert not any(gone in segment.node_ids for segment in world.segments())
        assert all(len(set(segment.node_ids)) == 6 for segment in world.segments())
        await world.check()
        for number, node_id in enumerate(world.segment().node_ids[:2]):  # and any two may go now
            os.rename(world.place(node_id), tmp_path / f"gone{number}")
        await world.check()


async def test_a_rebuilt_fragment_keeps_the_placement_rule(tmp_path: Path, no_automatic_repair: None) -> None:
    domains = ("a", "a", "b", "b", "c", "c", "d", "a")
    async with open_world(tmp_path / "data", nodes=8, domains=domains) as world:
        for seed in range(4):
            await world.fill(seed=seed, sizes=(200_000,))
        shutil.rmtree(world.place("node3"))
        await until(lambda: world.state("node3") == "lost")
        assert (await repair(world.parts, bytes_per_second=None, grace_seconds=0)).left == []
        where = {place.node_id: place.domain for place in world.parts.index.keymap.nodes()}
        for segment in world.segments():
            held = [where[node_id] for node_id in segment.node_ids]
            assert max(held.count(domain) for domain in "abcd") <= 2, segment.node_ids
        await world.check()


async def test_without_a_spare_node_segments_are_written_anew_narrower(
    tmp_path: Path, no_automatic_repair: None
) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(300_000, 1_500_000))
        shutil.rmtree(world.place("node6"))
        await until(lambda: world.state("node6") == "lost")
        before = world.segments()
        result = await repair(world.parts, bytes_per_second=None, grace_seconds=0)
        assert all("no healthy node is free" in reason for reason in result.left)
        assert result.failed == [segment.segment_id for segment in before]
        await world.check()
        narrowed = await narrow(world.parts)
        assert narrowed.left == [] and narrowed.segments == len(before)
        assert not any(world.parts.index.keymap.segment(segment.segment_id) for segment in before)
        assert {(segment.k, segment.m) for segment in world.segments()} == {(3, 2)}
        assert not any("node6" in segment.node_ids for segment in world.segments())
        await world.check()
        for node_id in ("node1", "node4"):
            shutil.rmtree(world.place(node_id))
        await world.check()


async def test_it_starts_by_itself_when_a_node_comes_back_empty_handed(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        os.rename(world.place("node2"), tmp_path / "two")
        await until(lambda: world.state("node2") == "lost")
        await world.put("meanwhile", os.urandom(500_000))
        shutil.rmtree(tmp_path / "two" / "segments")
        os.rename(tmp_path / "two", world.place("node2"))
        await until(lambda: world.state("node2") == "healthy")
        assert await under(world) == 0
        assert (await scrub(world.parts, bytes_per_second=None, seal=True)).damaged == []
        await world.check()


async def test_writes_go_on_with_all_parity_while_nodes_are_lost(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(300_000,))
        for node_id, k in (("node1", 3), ("node5", 2)):
            os.rename(world.place(node_id), tmp_path / node_id)
            await until(lambda node_id=node_id: world.state(node_id) == "lost")  # type: ignore[misc]
            known = {segment.segment_id for segment in world.segments()}
            await world.put(f"without-{node_id}", os.urandom(400_000))
            await world.parts.plane.seal()
            (newest,) = [segment for segment in world.segments() if segment.segment_id not in known]
            assert (newest.k, newest.m, newest.fragments_lost) == (k, 2, [])
        await world.check()
        assert await under(world) > 0
        for node_id in ("node1", "node5"):
            os.rename(tmp_path / node_id, world.place(node_id))
        await until(lambda: world.state("node1") == world.state("node5") == "healthy")
        assert await under(world) == 0
        await world.check()


async def test_different_rot_in_more_files_than_the_code_bears_is_still_repaired(
    tmp_path: Path, no_automatic_repair: None
) -> None:
    """Every stripe has k good fragments, though hardly any file is whole."""
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000, 2_500_000))
        segment = world.segment()
        assert segment.stripes >= 4
        before = [world.file(segment, index).read_bytes() for index in range(6)]
        step = (segment.size - 4000) // 6
        for index in range(5):
            flip(world.file(segment, index), 1000 + step * index, count=8)
        result = await scrub(world.parts, bytes_per_second=None)
        assert len(result.damaged) == 5 and not result.unreadable
        await world.check()
        assert (await repair(world.parts, bytes_per_second=None)).left == []
        assert [world.file(segment, index).read_bytes() for index in range(6)] == before
        assert await under(world) == 0


async def test_what_cannot_be_repaired_is_named_kept_and_not_tried_over_and_over(
    tmp_path: Path, no_automatic_repair: None
) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        await world.fill(seed=2, sizes=(300_000,))
        segment = world.segment()
        for index in (0, 1, 2):
            flip(world.file(segment, index), PAYLOAD + 5)
        found = await scrub(world.parts, bytes_per_second=None)
        (lost,) = found.unreadable
        result = await repair(world.parts, bytes_per_second=None)
        assert result.failed == [segment.segment_id] and "fragment 0, 1, 2" in result.left[0]
        assert world.now(segment).fragments_lost == [0, 1, 2]
        set_aside = len(world.quarantined())
        assert (await repair(world.parts, bytes_per_second=None)).failed == [segment.segment_id]
        assert len(world.quarantined()) == set_aside, "nothing was gained, so nothing was replaced again"
        reader = ContentReader(world.parts.plane, world.parts.index)
        named = await versions_naming(world.parts.index.keymap, reader.expand, lost.chunk_ids, 100)
        assert named and {version.key for version in named} < set(world.contents)
        for key in sorted(set(world.contents) - {version.key for version in named}):
            head = world.store.keymap.head("bucket", key)
            assert head is not None
            assert b"".join([bytes(piece) async for piece in world.store.read(head.manifest)]) == world.contents[key]


@pytest.mark.parametrize("site", [CrashSite.REBUILD_WRITTEN, CrashSite.REBUILD_QUARANTINED, CrashSite.REPAIR_PLACED])
async def test_an_interrupted_rebuild_is_done_again(tmp_path: Path, no_automatic_repair: None, site: CrashSite) -> None:
    class CrashedError(BaseException):
        pass

    def crash(reached: CrashSite) -> None:
        if reached is site:
            raise CrashedError

    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment = world.segment()
        before = world.file(segment, 3).read_bytes()
        await damage(world, segment, 3)
        with watch(crash), pytest.raises(CrashedError):
            await repair(world.parts, bytes_per_second=None)
        await world.check()
        assert world.now(segment).fragments_lost == [3]
        assert (await repair(world.parts, bytes_per_second=None)).left == []
        assert world.file(segment, 3).read_bytes() == before and await under(world) == 0


async def test_damage_that_is_told_while_a_repair_is_committed_is_not_forgotten(
    tmp_path: Path, no_automatic_repair: None
) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment = world.segment()
        await damage(world, segment, 3)
        commit = world.parts.index.commit
        told: list[int] = []

        async def commit_second(change: Change, origin: Origin, *, durable: bool = True) -> CommitResult:
            if isinstance(change, FragmentsRepaired) and not told:
                told.append(1)
                await commit(FragmentsDamaged(segment.segment_id, [1], "by a reader"), origin)
            return await commit(change, origin, durable=durable)

        world.parts.index.commit = commit_second  # type: ignore[method-assign]
        await repair(world.parts, bytes_per_second=None)
        assert told and world.now(segment).fragments_lost == [1]


async def test_a_full_node_leaves_the_fragment_for_later(
    tmp_path: Path, no_automatic_repair: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment = world.segment()
        await damage(world, segment, 2)
        node = world.parts.nodes.nodes[segment.node_ids[2]]

        def full(name: str, offset: int, buffers: object) -> None:
            raise NodeFull("node is full")

        with monkeypatch.context() as patched:
            patched.setattr(node, "append", full)
            result = await repair(world.parts, bytes_per_second=None)
        assert result.left == ["node is full"] and world.now(segment).fragments_lost == [2]
        assert not list(tmp_path.rglob("*.rebuild"))
        await world.check()
        assert (await repair(world.parts, bytes_per_second=None)).left == []
        assert world.now(segment).fragments_lost == []


async def test_a_source_that_turns_out_rotten_is_made_up_for_and_told(
    tmp_path: Path, no_automatic_repair: None
) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment = world.segment()
        before = world.file(segment, 0).read_bytes()
        world.file(segment, 0).unlink()
        flip(world.file(segment, 2), PAYLOAD + 77)  # nobody knows of this one yet
        await world.parts.index.commit(FragmentsDamaged(segment.segment_id, [0], "gone"), repair_module.ORIGIN)
        assert (await repair(world.parts, bytes_per_second=None)).left == []
        assert world.file(segment, 0).read_bytes() == before
        assert world.now(segment).fragments_lost == [2], "found on the way"
        await repair(world.parts, bytes_per_second=None)
        assert await under(world) == 0
