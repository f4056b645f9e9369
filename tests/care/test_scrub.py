"""Scrub finds rot in every kind of byte, says where, has it repaired; reads stay right meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from care_store import World, flip, open_world, until

from engine.care import scrub as scrub_module
from engine.care.checkpoint import checkpoint
from engine.care.pace import Progress
from engine.care.repair import repair
from engine.care.scrub import ScrubResult, scrub
from engine.changes import FragmentsDamaged
from engine.errors import StoreInUse, Unreadable
from engine.segments.format import FILE_HEADER_BYTES, FOOTER_BYTES, STRIPE_HEADER_BYTES
from engine.segments.recovery import read_directory
from engine.types import Segment

pytestmark = pytest.mark.anyio
FIRST_PAYLOAD = FILE_HEADER_BYTES + STRIPE_HEADER_BYTES


async def run(world: World, **options: object) -> ScrubResult:
    return await scrub(world.parts, bytes_per_second=None, **options)  # type: ignore[arg-type]


def nothing_wrong(result: ScrubResult) -> bool:
    return not (result.damaged or result.unreadable or result.problems or result.absent)


async def test_a_sound_store_has_nothing_to_tell(tmp_path: Path) -> None:
    told: list[Progress] = []
    async with open_world(tmp_path / "data") as world:
        await world.fill()
        result = await run(world, report=told.append)
        sizes = sum(one.size * len(one.node_ids) for one in world.segments())
        assert nothing_wrong(result) and result.segments == len(world.segments())
        assert result.checked_bytes >= sizes and result.copies > 0
        assert all(one.scrubbed_ns for one in world.segments())
        assert told[-1].done == told[-1].total


DIRECTORY_AT = -FOOTER_BYTES - 30  # the last bytes of the directory's last entry … or their parity


@pytest.mark.parametrize("index", [0, 5])
@pytest.mark.parametrize(
    "offset",
    [3, 40, FILE_HEADER_BYTES + 2, FILE_HEADER_BYTES + 34, FIRST_PAYLOAD + 5, FIRST_PAYLOAD + 300, DIRECTORY_AT, -20],
    ids=["magic", "header", "stripe magic", "stripe sum", "frame header", "payload", "directory", "footer"],
)
async def test_rot_of_every_kind_is_found_quarantined_and_repaired(tmp_path: Path, index: int, offset: int) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(70_000, 1_000_000))
        segment = world.segment()
        path = world.file(segment, index)
        before = path.read_bytes()
        flip(path, offset % segment.size)
        rotten = path.read_bytes()
        result = await run(world)
        assert [(one.segment_id, one.index, one.node_id) for one in result.damaged] == [
            (segment.segment_id, index, segment.node_ids[index])
        ]
        assert not result.unreadable and not result.problems
        await world.check()
        await repair(world.parts, bytes_per_second=None)
        await world.whole(segment)
        assert path.read_bytes() == before
        (note,) = world.quarantined().values()
        assert result.damaged[0].reason in note and segment.node_ids[index] in note
        (kept,) = [one for one in path.parents[2].glob("quarantine/*") if one.suffix != ".reason"]
        assert kept.read_bytes() == rotten
        assert nothing_wrong(await run(world))
        await world.check()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(1000)),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "zeros inside": lambda path: path.write_bytes(path.read_bytes()[:5000] + bytes(9000) + path.read_bytes()[14000:]),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_files_damaged_as_a_whole(tmp_path: Path, damage: str) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment = world.segment()
        before = {index: world.file(segment, index).read_bytes() for index in (1, 5)}
        for index in before:
            DAMAGE[damage](world.file(segment, index))
        result = await run(world)
        assert sorted(one.index for one in result.damaged) == [1, 5] and not result.unreadable
        await world.check()
        await repair(world.parts, bytes_per_second=None)
        await world.whole(segment)
        assert {index: world.file(segment, index).read_bytes() for index in before} == before
        assert nothing_wrong(await run(world))


async def test_fragments_swapped_between_nodes_and_segments(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(seed=1, sizes=(1_000_000,))
        await world.fill(seed=2, sizes=(1_000_000,))
        one, two = world.segments()
        files = [world.file(one, 0), world.file(one, 1), world.file(two, 2), world.file(one, 2)]
        before = [path.read_bytes() for path in files]
        for left, right in ((0, 1), (2, 3)):
            files[left].write_bytes(before[right])
            files[right].write_bytes(before[left])
        with pytest.raises(Unreadable):  # three of the first segment's fragments are others'
            await world.check()
        result = await run(world)
        found = {(damage.segment_id, damage.index) for damage in result.damaged}
        assert found == {(one.segment_id, 0), (one.segment_id, 1), (one.segment_id, 2), (two.segment_id, 2)}
        assert result.unreadable and all(stretch.segment_id == one.segment_id for stretch in result.unreadable)
        files[3].write_bytes(before[3])  # the right one turns up again
        await world.whole(two)
        assert (await repair(world.parts, bytes_per_second=None)).left == []
        assert [path.read_bytes() for path in files] == before
        await world.check()


async def test_more_rot_than_the_code_bears_is_named_and_nothing_is_deleted(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000, 2_500_000))
        segment = world.segment()
        entries = read_directory(segment, world.parts.nodes.nodes)
        assert entries is not None
        victim = next(entry for entry in entries if entry.location.stripe_offset == FILE_HEADER_BYTES)
        rotten = {}
        for index in (0, 2, 4):
            flip(world.file(segment, index), FIRST_PAYLOAD + 100)
            rotten[index] = world.file(segment, index).read_bytes()
        result = await run(world)
        assert sorted(one.index for one in result.damaged) == [0, 2, 4]
        (lost,) = result.unreadable
        assert lost.segment_id == segment.segment_id and victim.chunk_id in lost.chunk_ids
        assert "3 good fragments of the 4 needed" in lost.reason
        with pytest.raises(Unreadable):
            await world.check()
        assert len(world.parts.index.keymap.chunks_in(segment.segment_id)) == len(entries)
        kept = {path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
        assert kept.issuperset(rotten.values()), "whatever repair does, the rotten bytes are kept"


async def test_parity_that_was_written_wrong_is_found(tmp_path: Path) -> None:
    """Checksums hold, but the fragment is not what the data codes to."""
    from engine.segments.format import decode_stripe_header, encode_stripe_header

    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment = world.segment()
        for index in (5, 1):
            path = world.file(segment, index)
            content = bytearray(path.read_bytes())
            header = decode_stripe_header(content[FILE_HEADER_BYTES:FIRST_PAYLOAD], segment.segment_id, index)
            end = FIRST_PAYLOAD + header.fragment_length
            content[FIRST_PAYLOAD + 200] ^= 1
            content[FILE_HEADER_BYTES:FIRST_PAYLOAD] = encode_stripe_header(
                segment.segment_id, index, header.number, content[FIRST_PAYLOAD:end], header.data_length, header.kind
            )
            good = path.read_bytes()
            path.write_bytes(content)
            result = await run(world)
            assert [one.index for one in result.damaged] == [index] and not result.unreadable
            await world.whole(segment)
            assert path.read_bytes() == good


async def test_a_scrub_that_was_interrupted_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub_module, "BATCH_SEGMENTS", 1)
    async with open_world(tmp_path / "data") as world:
        for seed in range(4):
            await world.fill(seed=seed, sizes=(300_000,))
        began = max(one.scrubbed_ns for one in world.segments())
        done: list[int] = []
        check = scrub_module._Scrub.check

        async def check_two(self: scrub_module._Scrub, segment_id: int, meter: object) -> None:
            if len(done) == 2:
                raise Unreadable("interrupted")
            await check(self, segment_id, meter)  # type: ignore[arg-type]
            done.append(segment_id)

        monkeypatch.setattr(scrub_module._Scrub, "check", check_two)
        with pytest.raises(Unreadable, match="interrupted"):
            await run(world)
        monkeypatch.setattr(scrub_module._Scrub, "check", check)
        checked = {one.segment_id for one in world.segments() if one.scrubbed_ns}
        assert checked == set(done) and len(checked) == 2
        result = await run(world, older_than_ns=began + 1)
        assert result.segments == 2
        assert all(one.scrubbed_ns for one in world.segments())


async def test_one_scrub_at_a_time(tmp_path: Path) -> None:
    from engine.care.lock import SCRUB, care_lock

    async with open_world(tmp_path / "data") as world:
        async with care_lock(world.parts.data, "another scrub", name=SCRUB):
            with pytest.raises(StoreInUse, match="another scrub"):
                await run(world)


async def test_journal_replicas_and_epoch_files_are_checked_and_healed(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        for number in range(20):
            await world.put(f"small{number}", b"rides in its record %d" % number * 50)
        journals = sorted((tmp_path / "data/nodes").glob("*/journal/*.journal"))
        assert len(journals) == 3
        flip(journals[0], journals[0].stat().st_size // 2)
        epoch = next(iter((tmp_path / "data/nodes/6/journal").glob("*.epoch")))
        good_epoch = epoch.read_bytes()
        epoch.write_bytes(good_epoch[:-3])
        result = await run(world)
        assert {one.where for one in result.damaged} == {f"journal/{journals[0].name}", f"journal/{epoch.name}"}
        assert not result.problems
        assert epoch.read_bytes() == good_epoch
        assert len({path.read_bytes() for path in journals}) == 1
        assert len(world.quarantined()) == 2
        assert nothing_wrong(await run(world))
        await world.check()
    async with open_world(tmp_path / "data") as reopened:
        reopened.contents = world.contents
        await reopened.check()


async def test_rot_a_reader_finds_is_told_and_repaired(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment = world.segment()
        path = world.file(segment, 1)
        before = path.read_bytes()
        flip(path, FIRST_PAYLOAD + 1000)
        await world.check()
        await until(lambda: path.exists() and path.read_bytes() == before)
        await world.whole(segment)
        assert len(world.quarantined()) == 1
        shutil.rmtree(path.parent)  # a whole directory of them
        await world.check()
        await until(path.exists)
        await world.whole(segment)
        assert path.read_bytes() == before


async def test_a_fragment_reported_wrongly_is_left_as_it_is(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        segment: Segment = world.segment()
        inode = world.file(segment, 2).stat().st_ino
        await world.parts.index.commit(FragmentsDamaged(segment.segment_id, [2], "somebody erred"), scrub_module.ORIGIN)
        await world.whole(segment)
        assert world.file(segment, 2).stat().st_ino == inode and not world.quarantined()


async def test_snapshots_and_archives_are_checked_and_healed(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        for number in range(5):
            await world.put(f"small{number}", b"rides %d" % number * 50)
        await checkpoint(world.parts, force=True)
        (snapshot, *_), (archived, *_) = (
            sorted((tmp_path / "data/nodes").glob(pattern)) for pattern in ("*/index/*.snapshot", "*/journal/*.archive")
        )
        before = {path: path.read_bytes() for path in (snapshot, archived)}
        for path in before:
            flip(path, path.stat().st_size // 2)
        result = await run(world)
        assert {one.where for one in result.damaged} == {f"index/{snapshot.name}", f"journal/{archived.name}"}
        assert not result.problems and len(world.quarantined()) == 2
        for path, content in before.items():  # made up again, there or on another node
            copies = sorted((tmp_path / "data/nodes").glob(f"*/{path.parent.name}/{path.name}"))
            assert len(copies) >= 3 and {copy.read_bytes() for copy in copies} == {content}
        assert nothing_wrong(await run(world))


async def test_writes_and_reads_go_on_beside_scrub_and_repair(tmp_path: Path) -> None:
    async with open_world(tmp_path / "data") as world:
        await world.fill(sizes=(1_000_000,))
        done = anyio.Event()

        async def work() -> None:
            number = 0
            while not done.is_set():
                await world.put(f"beside{number}", b"%d" % number * 40_000)
                number += 1
                await world.check()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            for index in (0, 4):
                flip(world.file(world.segments()[0], index), FIRST_PAYLOAD + 50)
                result = await run(world, seal=True)
                assert [one.index for one in result.damaged] == [index]
                await repair(world.parts, bytes_per_second=None)
            done.set()
        assert nothing_wrong(await run(world, seal=True))
        await world.check()
