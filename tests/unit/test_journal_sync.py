"""What sync() may call durable while records are written, epochs open and nodes fail."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from engine.changes import DeleteKey, Origin
from engine.crash_sites import CrashSite, watch
from engine.errors import NodeFull, NodeUnavailable, WritesStopped
from engine.interfaces import Buffer
from engine.journal.log import JournalLog, ReplicaFailed
from engine.journal.records import RawRecord, decode_payload, encode_record
from engine.journal.recovery import JournalScan, set_aside_void
from engine.nodes.memory import MemoryNode

STORE = "0123456789abcdef0123456789abcdef"


class SlowNode(MemoryNode):
    """Waits in the middle of an append for whoever is told of it."""

    entered: threading.Event | None = None
    go_on: threading.Event | None = None
    refuse_create = False

    def append(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        if self.entered is not None and self.go_on is not None:
            self.entered.set()
            assert self.go_on.wait(10)
        super().append(name, offset, buffers)

    def create(self, name: str) -> None:
        if self.refuse_create:
            raise NodeFull("no room")
        super().create(name)


def world(count: int = 4) -> tuple[dict[str, SlowNode], JournalLog]:
    nodes = {f"n{number}": SlowNode(f"n{number}") for number in range(count)}

    def choose(copies: int, excluded: set[str]) -> list[str]:
        return [node_id for node_id in nodes if node_id not in excluded][:copies]

    return nodes, JournalLog(nodes, store_id=STORE, m=2, last_epoch=0, end_lsn=0, choose=choose)


def record(lsn: int) -> RawRecord:
    return encode_record(lsn, lsn, Origin(), DeleteKey("bucket", f"key{lsn}"))


def begin(log: JournalLog, lsn: int) -> None:
    with pytest.raises(ReplicaFailed):
        log.append([record(lsn)])
    log.take_over("")


def test_a_record_that_is_still_being_written_is_not_called_durable() -> None:
    nodes, log = world()
    begin(log, 1)
    slow = nodes["n1"]
    slow.entered, slow.go_on = threading.Event(), threading.Event()
    writer = threading.Thread(target=log.append, args=([record(2)],))
    writer.start()
    assert slow.entered.wait(10)
    assert log.sync() == 1
    slow.go_on.set()
    writer.join()
    assert log.sync() == 2


def test_a_sync_waits_for_an_epoch_that_is_being_opened() -> None:
    nodes, log = world()
    begin(log, 1)
    log.append([record(2)])
    slow = nodes["n3"]
    slow.entered, slow.go_on = threading.Event(), threading.Event()
    taking = threading.Thread(target=log.take_over, args=("n1",))
    taking.start()
    assert slow.entered.wait(10)
    found: list[int] = []
    syncing = threading.Thread(target=lambda: found.append(log.sync()))
    syncing.start()
    syncing.join(0.2)
    assert found == [], "records of an epoch that is not open yet were called durable"
    slow.go_on.set()
    taking.join()
    syncing.join()
    assert found == [2]


def test_after_an_epoch_that_could_not_be_opened_nothing_is_called_durable() -> None:
    nodes, log = world()
    begin(log, 1)
    log.append([record(2)])
    nodes["n1"].fault_next_sync()
    with pytest.raises(ReplicaFailed):
        log.sync()
    nodes["n3"].refuse_create = True
    with pytest.raises(WritesStopped):
        log.take_over("n1")
    with pytest.raises(ReplicaFailed):
        log.sync()
    nodes["n3"].refuse_create = False
    log.forgive("n3")
    log.take_over("")
    assert log.sync() == 2


def test_records_before_an_abandoned_one_are_synced_before_they_are_called_durable() -> None:
    nodes, log = world(3)
    begin(log, 1)
    log.append([record(2)])

    def fail(name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        raise NodeUnavailable("gone")

    nodes["n2"].append = fail  # type: ignore[method-assign]
    with pytest.raises(ReplicaFailed):
        log.append([record(3)])
    with pytest.raises(WritesStopped):
        log.take_over("n2")
    log.abandon(3)
    with pytest.raises(ReplicaFailed):
        log.sync()


def test_an_epoch_begun_on_a_node_that_was_away_since_counts_for_nothing() -> None:
    """A crash in the middle of a take-over, on a node that is then missing when the store
    is opened, and comes back later."""
    nodes, log = world(5)
    begin(log, 1)
    log.sync()
    log.append([record(2)])

    class Killed(BaseException):
        pass

    def kill(site: CrashSite) -> None:
        if site is CrashSite.JOURNAL_TAIL_WRITTEN:
            raise Killed

    for number in (2, 3):  # twice, so that its number is the higher one
        log.epoch = number - 1
        with pytest.raises(Killed), watch(kill):
            log.take_over("")
    away = {"n0": nodes["n0"]}  # alone keeps what the killed process wrote
    left = {name: node for name, node in nodes.items() if name != "n0"}
    for node in left.values():
        for name in [name for name in node.files if name.startswith(("journal/00000002", "journal/00000003"))]:
            node.delete(name)
    scan = JournalScan(left, STORE)
    end = max(raw.lsn for _, _, raw in scan.records(1))
    again = JournalLog(
        left,
        store_id=STORE,
        m=2,
        last_epoch=scan.last_epoch,
        end_lsn=end,
        choose=lambda count, excluded: [name for name in left if name not in excluded][:count],
        skip=1024,
    )
    for lsn in range(end + 1, end + 6):
        raw = encode_record(lsn, lsn, Origin(request_id="new"), DeleteKey("bucket", f"new{lsn}"))
        try:
            again.append([raw])
        except ReplicaFailed:
            again.take_over("")
    again.sync()
    together = {**away, **left}
    records = list(JournalScan(together, STORE).records(1))
    assert [raw.lsn for _, _, raw in records] == list(range(1, end + 6))
    assert [decode_payload(raw).origin.request_id for _, _, raw in records[end:]] == ["new"] * 5
    set_aside_void(together, STORE)
    assert not [
        name for name in nodes["n0"].list("journal/") if name.startswith(("journal/00000002", "journal/00000003"))
    ]
    assert [name for name in nodes["n0"].files if name.startswith("quarantine/")]
    assert [raw.lsn for _, _, raw in JournalScan(together, STORE).records(1)] == list(range(1, end + 6))
