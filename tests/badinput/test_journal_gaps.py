"""Gaps in a journal of several files in one epoch: what was durable is missed, what power
loss took in any order is cut, and healing shortens nothing that goes on behind damage."""

from __future__ import annotations

import pytest

from engine import limits
from engine.changes import DeleteKey, Origin
from engine.errors import JournalCorrupt
from engine.journal.log import JournalLog, ReplicaFailed
from engine.journal.records import FILE_HEADER_BYTES, RawRecord, encode_record, epoch_name, journal_name
from engine.journal.recovery import JournalScan, heal_epochs, heal_file
from engine.nodes.memory import MemoryNode

STORE = "0f" * 16
Nodes = dict[str, MemoryNode]


def record(lsn: int, durable_lsn: int) -> RawRecord:
    return encode_record(lsn, lsn * 10, Origin(request_id=str(lsn)), DeleteKey("bucket", f"key{lsn}"), durable_lsn)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(limits, "JOURNAL_FILE_BYTES_MAX", 300)  # a few records
    return {f"n{number}": MemoryNode(f"n{number}") for number in range(5)}


def open_log(nodes: Nodes, *, last_epoch: int = 0, end_lsn: int = 0) -> JournalLog:
    def choose(count: int, excluded: set[str]) -> list[str]:
        return [node_id for node_id in sorted(nodes) if node_id not in excluded][:count]

    return JournalLog(nodes, store_id=STORE, m=2, last_epoch=last_epoch, end_lsn=end_lsn, choose=choose)


def append(log: JournalLog, raw: RawRecord) -> None:
    try:
        log.append([raw])
    except ReplicaFailed as failed:
        log.take_over(failed.node_id)


def written(nodes: Nodes, count: int, *, synced: int) -> JournalLog:
    """Records 1 to `count`, one by one; those up to `synced` durable before the next."""
    log, durable = open_log(nodes), 0
    for lsn in range(1, count + 1):
        append(log, record(lsn, durable))
        if lsn <= synced:
            durable = log.sync() or lsn
    return log


def lsns(nodes: Nodes) -> list[int]:
    return [raw.lsn for _, _, raw in JournalScan(nodes, STORE).records(1)]


def damage(nodes: Nodes, first_lsn: int, offset: int) -> None:
    for node_id in ("n0", "n1", "n2"):
        nodes[node_id].fault_corrupt(journal_name(1, first_lsn), offset)


def file_firsts(nodes: Nodes) -> list[int]:
    return [first for _, first in sorted(JournalScan(nodes, STORE).files)]


@pytest.mark.parametrize("at", [0, FILE_HEADER_BYTES + 60])
def test_a_durable_record_lost_from_an_earlier_file_of_the_epoch_is_missed(nodes: Nodes, at: int) -> None:
    written(nodes, 12, synced=12)
    firsts = file_firsts(nodes)
    assert len(firsts) >= 3
    damage(nodes, firsts[1], at)
    with pytest.raises(JournalCorrupt) as raised:
        lsns(nodes)
    assert "whole on no node" in str(raised.value) and "goes on behind them" in str(raised.value)


def test_an_unsynced_file_lost_before_a_later_one_ends_the_journal(nodes: Nodes) -> None:
    """Power loss keeps unsynced files in any order; nobody was told of what they held."""
    log = written(nodes, 12, synced=2)
    firsts = file_firsts(nodes)
    damage(nodes, firsts[1], FILE_HEADER_BYTES + 60)
    expected = list(range(1, firsts[1]))
    assert lsns(nodes) == expected
    log.close()
    scan = JournalScan(nodes, STORE)
    for key in scan.unsynced_files(expected[-1], 0):
        heal_file(nodes, key, STORE, 3, sorted(nodes), torn_tail=True)
    again = open_log(nodes, last_epoch=scan.last_epoch, end_lsn=expected[-1])
    append(again, record(expected[-1] + 1, expected[-1]))
    again.sync()
    assert lsns(nodes) == [*expected, expected[-1] + 1]
    again.close()


def test_all_files_that_may_be_unsynced_are_to_be_healed(nodes: Nodes) -> None:
    written(nodes, 12, synced=4).close()
    scan, firsts = JournalScan(nodes, STORE), file_firsts(nodes)
    found = [first for _, first in scan.unsynced_files(12, 4)]
    assert found == [first for first, following in zip(firsts, [*firsts[1:], 99], strict=True) if following > 5]
    assert len(found) >= 2, "more than the last one"


def test_a_file_that_goes_on_behind_damage_is_not_shortened(nodes: Nodes) -> None:
    written(nodes, 4, synced=4).close()
    (first, *_) = file_firsts(nodes)
    damage(nodes, first, FILE_HEADER_BYTES + 60)
    name = journal_name(1, first)
    before = {node_id: nodes[node_id].read(name, 0, 1 << 20) for node_id in ("n0", "n1", "n2")}
    assert heal_file(nodes, (1, first), STORE, 3, sorted(nodes)) == 0
    assert {node_id: nodes[node_id].read(name, 0, 1 << 20) for node_id in before} == before
    assert not any(name in nodes[node_id].list("journal/") for node_id in ("n3", "n4"))


def test_a_node_without_the_newest_epoch_is_behind_until_it_is_given_the_epochs(nodes: Nodes) -> None:
    log = written(nodes, 2, synced=2)
    log.retire()
    append(log, record(3, 2))
    log.sync()
    log.close()
    assert JournalScan(nodes, STORE).nodes_behind() == []
    nodes["n4"].delete(epoch_name(2))
    assert JournalScan(nodes, STORE).nodes_behind() == ["n4"]
    heal_epochs(nodes, STORE)
    assert JournalScan(nodes, STORE).nodes_behind() == []
