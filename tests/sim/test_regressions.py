"""What the worlds found, as the smallest scenario that shows it."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from engine.care.nodes import add_node
from engine.care.scrub import scrub
from engine.changes import CreateBucket, Origin, PutVersion
from engine.crash_sites import CrashSite
from engine.errors import StoreError, WritesStopped
from engine.index import upkeep
from engine.index.local import LocalIndex
from engine.journal.log import JournalLog, ReplicaFailed
from engine.journal.records import RawRecord, encode_record, epoch_name, journal_name
from engine.journal.recovery import JournalScan
from engine.nodes.memory import MemoryNode
from engine.segments.writer import SegmentWriter
from engine.store import Opening, Store, init_store, open_store
from sim.machine import Machine

ORIGIN = Origin(requester="test")


async def put(store: Store, key: str, content: bytes) -> None:
    with store.pins.hold():
        writer = store.open_writer()
        await writer.write(content)
        await store.commit(PutVersion("bucket", key, await writer.finish(), etag="e"), ORIGIN)


def test_an_index_that_fails_ends_its_process_though_a_segment_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing seals the open segment, and nobody was left to answer that commit."""
    init_store(tmp_path / "data")
    errors: list[BaseException] = []

    async def live() -> None:
        async with open_store(tmp_path / "data") as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await put(store, "key", bytes(range(256)) * 1000)

            async def fail(_: object) -> None:
                raise MemoryError("on purpose")

            monkeypatch.setattr(store.index, "_commit_batch", fail)
            with pytest.raises(StoreError, match="the index has ended"):
                await store.commit(CreateBucket("other"), ORIGIN)

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # noqa: BLE001  # judged by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it hangs"
    assert len(errors) == 1 and isinstance(errors[0], MemoryError)


def test_a_crash_while_the_first_opening_registers_nodes_leaves_a_store_that_opens(tmp_path: Path) -> None:
    """Two nodes registered, the journal needs three: the others were not taken into account."""
    machine = Machine(1, tmp_path)
    paths = [(str(tmp_path / "nodes" / str(number)), "") for number in range(1, 6)]
    init_store(machine.data, k=1, m=2, nodes=paths)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node):
            pass

    for _ in range(4):
        assert not machine.run(live, crash_at=(CrashSite.COMMIT_APPLIED, 1))
    assert machine.run(live)


@pytest.mark.parametrize("seed", range(6))
def test_a_fragment_whose_sync_failed_is_written_anew_though_it_reads_well(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows pages it failed to write and reports the next sync as done."""
    machine = Machine(seed, tmp_path)
    init_store(machine.data, k=2, m=1, nodes=[(str(tmp_path / "nodes" / str(number)), "") for number in (1, 2, 3)])

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await put(store, "key", bytes(range(256)) * 50)
            (segment,) = store.keymap.segments()
            path = next(node.path for node in store.keymap.nodes() if node.node_id == segment.node_ids[0])
            syncs = iter((False, True))  # of the stripes; of the directory and footer behind them
            monkeypatch.setattr(machine.disks[path], "fails", lambda kind: kind == "sync" and next(syncs, False))
            await store.parts.plane.seal()
            monkeypatch.undo()
            (segment,) = store.keymap.segments()
            assert segment.fragments_lost == [0]
            await trio.sleep(30)
            (segment,) = store.keymap.segments()
            assert segment.fragments_lost == segment.never_synced == []
            for disk in machine.disks.values():
                for name, file in disk.files.items():
                    assert not name.startswith("segments/") or file.content == file.durable, f"{name} lies in memory"

    assert machine.run(live)


@pytest.mark.parametrize(("k", "m", "lost"), [(1, 1, 1), (2, 2, 2)])
def test_nodes_of_a_store_of_k_plus_m_are_replaced_though_nothing_can_be_written(
    tmp_path: Path, k: int, m: int, lost: int
) -> None:
    """Fewer than m+1 nodes remained: the index could neither be told that they are lost nor
    that others took their place."""
    machine = Machine(1, tmp_path)
    paths = [str(tmp_path / "nodes" / str(number)) for number in range(1, k + m + 1)]
    init_store(machine.data, k=k, m=m, nodes=[(path, "") for path in paths])

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await put(store, "key", bytes(range(256)) * 50)
            await store.parts.plane.seal()
            for path in paths[:lost]:
                machine.vanish(path)
            await trio.sleep(5)
            for number, path in enumerate(paths[:lost], 1):
                machine.come_back_empty(path)
                await store.replace_node(f"node{number}")
            await trio.sleep(60)
            assert {str(place.state) for place in store.keymap.nodes()} == {"healthy"}
            assert (await store.status())["under_redundancy"] == 0
            for path in paths[lost : lost + m]:
                machine.vanish(path)
            head = store.keymap.head("bucket", "key")
            assert head is not None
            assert await store.read_range(head.manifest, 0, 1 << 20) == bytes(range(256)) * 50

    assert machine.run(live)


def pair(folder: Path) -> tuple[Machine, list[str]]:
    """A store of 1+1: without one of its nodes nothing can be written."""
    machine, paths = Machine(1, folder), [str(folder / "nodes" / name) for name in ("1", "2")]
    init_store(machine.data, k=1, m=1, nodes=[(path, "") for path in paths])
    return machine, paths


def test_nothing_is_refused_because_of_a_change_that_never_came_to_be(tmp_path: Path) -> None:
    """Both were judged in one batch, which then could not be written."""
    machine, paths = pair(tmp_path)
    errors: list[StoreError] = []

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            machine.vanish(paths[0])

            async def create() -> None:
                try:
                    await store.commit(CreateBucket("other"), ORIGIN)
                except StoreError as error:
                    errors.append(error)

            async with trio.open_nursery() as tasks:
                tasks.start_soon(create)
                tasks.start_soon(create)

    assert machine.run(live)
    assert [type(error) for error in errors] == [WritesStopped, WritesStopped]


def test_a_store_that_can_be_read_opens_though_it_can_seal_nothing(tmp_path: Path) -> None:
    machine, paths = pair(tmp_path)
    content = bytes(range(256)) * 50

    async def write() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await put(store, "key", content)
            machine.process.end()

    async def read() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            head = store.keymap.head("bucket", "key")
            assert head is not None
            assert await store.read_range(head.manifest, 0, 1 << 20) == content
            machine.come_back(paths[0])
            await trio.sleep(60)
            assert not list(store.keymap.open_segments())
            assert (await store.status())["under_redundancy"] == 0

    assert not machine.run(write)
    machine.vanish(paths[0])
    assert machine.run(read)


def test_a_store_of_m_plus_one_nodes_can_be_written_again_after_one_failed_for_a_moment(tmp_path: Path) -> None:
    machine, paths = pair(tmp_path)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            disk = machine.disks[paths[0]]
            disk.failing = {"sync": 1.0}
            with pytest.raises(WritesStopped):
                await store.commit(CreateBucket("other"), ORIGIN)
            await trio.sleep(5)
            disk.failing = {}
            await trio.sleep(5)
            await store.commit(CreateBucket("third"), ORIGIN)
            await trio.sleep(60)
            assert {str(place.state) for place in store.keymap.nodes()} == {"healthy"}
            assert (await store.status())["under_redundancy"] == 0

    assert machine.run(live)


def test_a_torn_tail_that_a_later_epoch_overrules_is_healed_away(tmp_path: Path) -> None:
    """A power cut left whole records behind a torn one: the file counted as damaged, and as
    too thin, for ever."""
    nodes = {name: MemoryNode(name) for name in ("a", "b", "c")}
    store_id = "0" * 32

    def log(last_epoch: int, end_lsn: int) -> JournalLog:
        def choose(count: int, excluded: set[str]) -> list[str]:
            return [name for name in nodes if name not in excluded][:count]

        return JournalLog(nodes, store_id=store_id, m=1, last_epoch=last_epoch, end_lsn=end_lsn, choose=choose)

    def record(lsn: int) -> RawRecord:
        return encode_record(lsn, lsn, ORIGIN, CreateBucket(f"bucket{lsn}"))

    first = log(0, 0)
    with pytest.raises(ReplicaFailed):
        first.append([record(1)])
    first.take_over("")
    torn_at = nodes["a"].size(journal_name(1, 1))
    first.append([record(2), record(3), record(4)])
    nodes["a"].fault_corrupt(journal_name(1, 1), torn_at + 60)
    nodes["b"].truncate(journal_name(1, 1), torn_at)
    second = log(1, 1)
    with pytest.raises(ReplicaFailed):
        second.append([record(2)])
    second.take_over("")

    everywhere = set(nodes)
    assert upkeep.thin(nodes, everywhere, 2, 1, 2) == 1
    upkeep.repair(nodes, everywhere, 2, store_id, first_lsn=1, open_for_writing=True)
    assert upkeep.thin(nodes, everywhere, 2, 1, 2) == 0
    assert [raw.lsn for _, _, raw in JournalScan(nodes, store_id).records(1)] == [1, 2]


def test_a_node_that_went_away_is_not_called_full(tmp_path: Path) -> None:
    machine, paths = pair(tmp_path)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            machine.vanish(paths[0])
            with pytest.raises(WritesStopped):
                await put(store, "key", bytes(range(256)) * 50)

    assert machine.run(live)


def test_a_node_is_added_to_a_store_that_can_write_nothing_without_it(tmp_path: Path) -> None:
    """It was written into store.json, the index could not be told, and the store did not open."""
    machine, paths = pair(tmp_path)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            machine.vanish(paths[0])
            await add_node(store.parts, str(tmp_path / "nodes" / "3"))
            await put(store, "key", bytes(range(256)) * 50)
            await trio.sleep(10)
            assert {place.node_id: str(place.state) for place in store.keymap.nodes()} == {
                "node1": "lost",
                "node2": "healthy",
                "node3": "healthy",
            }

    assert machine.run(live)


def test_the_journal_is_rotated_though_what_was_being_written_is_given_up(tmp_path: Path) -> None:
    """A checkpoint waited for a record that never came to be, and held up all other care."""
    machine, _ = pair(tmp_path)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            index = store.index
            assert isinstance(index, LocalIndex)
            index._log.end_lsn += 1  # as it is while a record is written
            with trio.fail_after(10):
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(index.rotate_journal)
                    await trio.sleep(0.1)
                    index._log.abandon(index._log.end_lsn)

    assert machine.run(live)


def test_a_store_whose_segment_cannot_be_sealed_stays_open(tmp_path: Path) -> None:
    """The task that seals what is idle ended the process: reads were an outage too."""
    machine, paths = pair(tmp_path)
    content = bytes(range(256)) * 50

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await put(store, "key", content)
            machine.vanish(paths[0])
            await trio.sleep(100)
            head = store.keymap.head("bucket", "key")
            assert head is not None
            assert await store.read_range(head.manifest, 0, 1 << 20) == content
            machine.come_back(paths[0])
            await trio.sleep(100)
            assert not list(store.keymap.open_segments())
            assert (await store.status())["under_redundancy"] == 0

    assert machine.run(live)


def test_a_node_behind_the_journal_is_healed_though_nothing_can_be_written_without_it(tmp_path: Path) -> None:
    """With m+1 nodes it was never taken for stale, and what differed on it stayed so."""
    machine, paths = pair(tmp_path)
    first = journal_name(1, 1)

    async def write() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            assert isinstance(store.index, LocalIndex)
            await store.index.rotate_journal()
            await store.commit(CreateBucket("other"), ORIGIN)

    async def heal() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await trio.sleep(60)
            assert {str(place.state) for place in store.keymap.nodes()} == {"healthy"}
            files = [machine.disks[path].files for path in paths]
            assert files[0][first].content == files[1][first].content
            await store.commit(CreateBucket("third"), ORIGIN)

    assert machine.run(write)
    files = machine.disks[paths[0]].files
    assert first in files and len(files) > 2
    files[first].content[-1] ^= 1
    del files[epoch_name(2)]
    assert machine.run(heal)


def test_a_node_is_replaced_though_the_other_failed_for_a_moment_before(tmp_path: Path) -> None:
    """The one that could not be noted as lost kept the other from ever being written again."""
    machine, paths = pair(tmp_path)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            machine.vanish(paths[1])
            with pytest.raises(WritesStopped):
                await store.commit(CreateBucket("other"), ORIGIN)
            machine.come_back(paths[1])
            machine.vanish(paths[0])
            await trio.sleep(5)
            machine.come_back_empty(paths[0])
            await store.replace_node("node1")
            await trio.sleep(60)
            assert {str(place.state) for place in store.keymap.nodes()} == {"healthy"}
            assert (await store.status())["under_redundancy"] == 0

    assert machine.run(live)


@pytest.mark.parametrize("name", [journal_name(1, 1), epoch_name(1)])
def test_a_journal_that_cannot_be_read_in_places_is_healed(tmp_path: Path, name: str) -> None:
    """It was to be copied to quarantine first, and that could not be read."""
    machine, paths = pair(tmp_path)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            assert isinstance(store.index, LocalIndex)
            await store.index.rotate_journal()
            files = machine.disks[paths[0]].files
            files[name].pending.add(0)
            found = await scrub(store.parts)
            assert [damage.where for damage in found.damaged] == [name] and not found.problems
            assert not files[name].pending
            assert files[name].content == machine.disks[paths[1]].files[name].content
            assert any(other.startswith("quarantine/journal_") for other in files)

    assert machine.run(live)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("nodes", [2, 3])
def test_what_a_sync_failed_for_is_written_anew_by_the_next_process(
    tmp_path: Path, nodes: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read well and its next sync succeeded, but the kernel had dropped it."""
    machine, paths = Machine(seed, tmp_path), [str(tmp_path / "nodes" / str(number)) for number in range(1, nodes + 1)]
    init_store(machine.data, k=1, m=1, nodes=[(path, "") for path in paths])

    async def fail() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await put(store, "first", bytes(range(256)) * 50)
            (segment,) = store.keymap.segments()
            place = next(place for place in store.keymap.nodes() if place.node_id == segment.node_ids[0])
            machine.disks[place.path].failing = {"sync": 1.0}
            monkeypatch.setattr(SegmentWriter, "seal_synced", lambda *_: machine.process.end())
            with suppress(WritesStopped):
                await put(store, "second", bytes(range(255, -1, -1)) * 1000)
            machine.process.end()

    async def recover() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            check("journal/" if nodes == 2 else "segments/")  # with three, a later epoch overrules what was not synced
            await trio.sleep(60)
            assert {str(place.state) for place in store.keymap.nodes()} == {"healthy"}
            check("segments/")

    def check(kind: str) -> None:
        for disk in machine.disks.values():
            for name, file in disk.files.items():
                assert not name.startswith(kind) or file.content == file.durable, f"{name} lies in memory"

    assert not machine.run(fail)
    for disk in machine.disks.values():
        disk.failing = {}
    monkeypatch.undo()
    assert machine.run(recover)


def test_a_returned_node_is_healthy_only_once_its_journal_is_healed(tmp_path: Path) -> None:
    """It was called healthy first: what could not be healed just then stayed damaged, or a
    new epoch was begun on it every second."""
    machine, paths = Machine(1, tmp_path), [str(tmp_path / "nodes" / str(number)) for number in range(1, 4)]
    init_store(machine.data, k=1, m=1, nodes=[(path, "") for path in paths])

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            for name in ("bucket", "other", "third"):
                await store.commit(CreateBucket(name), ORIGIN)
            assert isinstance(store.index, LocalIndex)
            (path, *_) = [path for path in paths if journal_name(1, 1) in machine.disks[path].files]
            await store.index.rotate_journal()
            machine.vanish(path)
            await trio.sleep(5)
            machine.come_back(path)
            disk = machine.disks[path]
            disk.rot(journal_name(1, 1), 100, 1)
            disk.failing = {"write": 1.0}
            await trio.sleep(60)
            assert sorted(str(place.state) for place in store.keymap.nodes()) == ["healthy", "healthy", "stale"]
            disk.failing = {}
            await trio.sleep(60)
            assert {str(place.state) for place in store.keymap.nodes()} == {"healthy"}
            copies = {
                bytes(disk.files[journal_name(1, 1)].content)
                for disk in machine.disks.values()
                if journal_name(1, 1) in disk.files
            }
            assert len(copies) == 1

    assert machine.run(live)


def test_a_damaged_file_of_an_epoch_that_was_never_opened_is_set_aside(tmp_path: Path) -> None:
    """It was good on no node, and so told as a problem for ever."""
    machine, _ = pair(tmp_path)

    async def live() -> None:
        async with open_store(machine.data, Opening.OWN, node_opener=machine.open_node) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            assert isinstance(store.index, LocalIndex)
            await store.index.rotate_journal()
            store.index._log.epoch += 1
            await store.commit(CreateBucket("other"), ORIGIN)
            node = store.parts.nodes.nodes["node1"]
            node.write_whole(epoch_name(2), b"rotten")
            found = await scrub(store.parts)
            assert [damage.where for damage in found.damaged] == [epoch_name(2)] and found.problems == []
            assert epoch_name(2) not in node.list("journal/")
            assert any("epoch" in name for name in node.list("quarantine/"))

    assert machine.run(live)
