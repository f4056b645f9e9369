"""What SQL tells of the health of a store: which object survives how much, what was set aside."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from care_store import World, flip, open_world, until

from engine.care.scrub import scrub
from engine.quarantine import list_quarantined

pytestmark = pytest.mark.anyio
README = Path(__file__).parents[2] / "README.md"


async def rows(world: World, statement: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = (await world.store.query(statement)).to_pylist()
    return answer


def documented(relation: str) -> str:
    """README's own statement about the relation."""
    (statement,) = re.findall(rf'^objfs sql "(SELECT [^"]*FROM {relation}\b[^"]*)"$', README.read_text(), re.MULTILINE)
    return str(statement)


async def test_every_object_tells_how_many_more_losses_it_survives(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data", nodes=7) as world:
        await world.fill(sizes=(500_000,))
        await world.put("rides in the journal", b"small")
        (segment,) = world.segments()
        (spare,) = {place.node_id for place in world.parts.index.keymap.nodes()} - set(segment.node_ids)

        async def losses_left() -> dict[str, int]:
            by_view = {row["key"]: row["losses_left"] for row in await rows(world, documented("protection"))}
            joined = await rows(world, documented("inventory i JOIN protection"))
            assert {row["key"]: row["losses_left"] for row in joined} == by_view
            assert all(row["size"] == len(world.contents[row["key"]]) for row in joined)
            return by_view

        assert await losses_left() == dict.fromkeys(world.contents, 2)
        shutil.move(world.place(segment.node_ids[3]), tmp_path / "away")
        await until(lambda: world.state(segment.node_ids[3]) == "lost")
        assert await losses_left() == dict.fromkeys(world.contents, 1)
        shutil.move(tmp_path / "away", world.place(segment.node_ids[3]))
        await until(lambda: world.state(segment.node_ids[3]) == "healthy")
        shutil.move(world.place(spare), tmp_path / "away")
        await until(lambda: world.state(spare) == "lost")
        found = await losses_left()
        assert {key for key, left in found.items() if left == 2} == {"key1-500000"}, "none of its fragments is gone"
        assert found["text1"] == found["rides in the journal"] == 1, "their replicas may be"


async def test_quarantine_is_a_relation_that_shows_what_stands_there_now(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        assert await rows(world, documented("quarantine")) == []
        await world.fill(sizes=(300_000,))
        (segment,) = world.segments()
        for index in (1, 4):
            flip(world.file(segment, index), 5000)
        names = {world.file(segment, index).name for index in (1, 4)}
        await scrub(world.parts, bytes_per_second=None)
        await world.whole(segment)
        listed = await anyio.to_thread.run_sync(list_quarantined, dict(world.parts.nodes.nodes))
        assert {Path(one.file).name for one in listed} == names
        found = await rows(world, "SELECT *, epoch_us(set_aside) AS at FROM quarantine ORDER BY set_aside")
        assert [(one["node_id"], one["file"], one["at"], one["size"], one["reason"], one["path"]) for one in found] == [
            (one.node_id, one.file, one.time_ns // 1000, one.size, one.reason, one.path) for one in listed
        ]
        assert all("payload of stripe" in row["reason"] for row in await rows(world, documented("quarantine")))
        for one in listed[:1]:
            Path(one.path).unlink()
        (note,) = await rows(world, 'SELECT path FROM "QUARANTINE" WHERE size IS NULL')
        assert note["path"] == listed[0].path, "no change of the store tells of it, and yet it shows"
