"""The journal over memory nodes: records, replicas, epochs, and what opening finds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from engine import limits
from engine.changes import DeleteKey, Origin, PutVersion
from engine.errors import JournalCorrupt, NodeUnavailable, UnknownFormat, WritesStopped
from engine.frames import decode_frame, encode_frame
from engine.journal.log import JournalLog, ReplicaFailed
from engine.journal.reading import list_files, read_journal_frame
from engine.journal.records import (
    FILE_HEADER_BYTES,
    RawRecord,
    decode_payload,
    decode_record,
    encode_header,
    encode_record,
    journal_name,
    with_frames,
)
from engine.journal.recovery import JournalScan, heal_file
from engine.nodes.memory import MemoryNode
from engine.types import ChunkEntry, Content, JournalLocation, Manifest, NewChunk

STORE = "0f" * 16
Nodes = dict[str, MemoryNode]


def make_nodes() -> Nodes:
    return {f"n{number}": MemoryNode(f"n{number}") for number in range(5)}


def make_log(nodes: Nodes, *, last_epoch: int = 0, end_lsn: int = 0) -> JournalLog:
    def choose(count: int, excluded: set[str]) -> list[str]:
        return [node_id for node_id in sorted(nodes) if node_id not in excluded][:count]

    return JournalLog(nodes, store_id=STORE, m=2, last_epoch=last_epoch, end_lsn=end_lsn, choose=choose)


def append(log: JournalLog, records: list[RawRecord]) -> dict[bytes, JournalLocation]:
    """As the index does it: the next epoch takes over when a replica fails."""
    try:
        return log.append(records)
    except ReplicaFailed as failed:
        return log.take_over(failed.node_id)


def plain_record(lsn: int) -> RawRecord:
    return encode_record(lsn, lsn * 10, Origin(request_id=str(lsn)), DeleteKey("bucket", f"key{lsn}"))


def riding_record(lsn: int, plain: bytes) -> RawRecord:
    chunk_id = hashlib.sha256(plain).digest()
    chunk = NewChunk(chunk_id, len(plain), frame=encode_frame(chunk_id, plain))
    content = Content(Manifest([ChunkEntry(chunk_id, len(plain))]), [chunk])
    return encode_record(lsn, lsn * 10, Origin(), PutVersion("bucket", "key", content, "etag"))


def lsns(nodes: Mapping[str, MemoryNode], from_lsn: int = 1) -> list[int]:
    return [record.lsn for _, _, record in JournalScan(nodes, STORE).records(from_lsn)]


def test_a_record_comes_back_with_its_frames_and_any_flipped_bit_is_seen() -> None:
    raw = riding_record(7, b"content" * 100)
    encoded = encode_header(raw, 3) + raw.payload + raw.attachments
    found = decode_record(encoded, 0, 3)
    assert found == raw
    change = with_frames(decode_payload(raw), raw)
    assert isinstance(change, PutVersion)
    (chunk,) = change.content.new_chunks
    assert chunk.frame is not None and decode_frame(chunk.frame, chunk.chunk_id) == b"content" * 100
    for position in range(0, len(encoded), 7):
        broken = bytearray(encoded)
        broken[position] ^= 1
        try:
            assert decode_record(bytes(broken), 0, 3) is None, f"a flipped bit at {position} went unnoticed"
        except UnknownFormat:
            pytest.fail("damage is not a newer format")
    assert decode_record(encoded[:-1], 0, 3) is None
    assert decode_record(encoded, 0, 4) is None, "a record of another epoch is not of this one"


@pytest.mark.anyio
async def test_riding_frames_are_read_from_any_good_replica() -> None:
    nodes = make_nodes()
    log = make_log(nodes)
    plain = b"small" * 50
    (location,) = append(log, [plain_record(1), riding_record(2, plain)]).values()
    log.sync()
    name = journal_name(location.epoch, location.first_lsn)
    nodes["n0"].fault_corrupt(name, location.offset + 100)
    nodes["n1"].vanished = True
    frame = await read_journal_frame(nodes, location)
    assert decode_frame(frame, hashlib.sha256(plain).digest()) == plain


def test_synced_records_survive_power_loss_and_any_two_lost_nodes() -> None:
    nodes = make_nodes()
    log = make_log(nodes)
    for lsn in range(1, 20):
        append(log, [plain_record(lsn)])
    assert log.sync() == 19
    append(log, [plain_record(20)])
    for node in nodes.values():
        node.fault_power_loss()
    del nodes["n0"], nodes["n1"]
    assert lsns(nodes) == list(range(1, 20))


def test_a_failed_sync_starts_an_epoch_that_holds_the_unsynced_tail() -> None:
    nodes = make_nodes()
    log = make_log(nodes)
    append(log, [plain_record(1)])
    append(log, [plain_record(2), plain_record(3)])
    nodes["n1"].fault_next_sync()
    with pytest.raises(ReplicaFailed) as failed:
        log.sync()
    assert failed.value.node_id == "n1"
    log.take_over("n1")
    assert "n1" not in log.members and log.epoch == 2
    append(log, [plain_record(4)])
    assert log.sync() == 4
    for node in nodes.values():
        node.fault_power_loss()
    assert lsns(nodes) == [1, 2, 3, 4]
    del nodes["n0"], nodes["n2"]
    assert lsns(nodes, 2) == [2, 3, 4]


def test_with_too_few_nodes_nothing_is_taken_over() -> None:
    nodes = make_nodes()
    log = make_log(nodes)
    append(log, [plain_record(1)])
    for node_id in ("n0", "n1", "n3"):
        nodes[node_id].vanished = True
    with pytest.raises(ReplicaFailed) as failed:
        log.sync()
    with pytest.raises(WritesStopped):
        log.take_over(failed.value.node_id)


def test_records_of_an_old_epoch_are_overruled_by_the_next() -> None:
    nodes = make_nodes()
    log = make_log(nodes)
    append(log, [plain_record(1)])
    log.sync()
    append(log, [plain_record(2)])  # reached the replicas, was told to nobody
    log.abandon(2)
    other = encode_record(2, 999, Origin(request_id="other"), DeleteKey("bucket", "other"))
    append(log, [other])
    log.sync()
    found = {record.lsn: decode_payload(record).time_ns for _, _, record in JournalScan(nodes, STORE).records(1)}
    assert found == {1: 10, 2: 999}


def test_files_rotate_and_are_read_as_one_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOURNAL_FILE_BYTES_MAX", 500)
    nodes = make_nodes()
    log = make_log(nodes)
    for lsn in range(1, 30):
        append(log, [plain_record(lsn)])
        log.sync()
    assert len(list_files(nodes)) > 3
    assert lsns(nodes) == list(range(1, 30))
    assert lsns(nodes, 17) == list(range(17, 30))


def test_a_record_rotten_everywhere_ends_the_last_epoch_and_stops_an_earlier_one() -> None:
    nodes = make_nodes()
    log = make_log(nodes)
    append(log, [plain_record(1)])
    append(log, [plain_record(2)])
    append(log, [plain_record(3)])
    log.sync()
    name = journal_name(1, 1)
    at = FILE_HEADER_BYTES + plain_record(1).length + 60
    for node_id in log.members:
        nodes[node_id].fault_corrupt(name, at)
    assert lsns(nodes) == [1]
    log.retire()
    append(log, [plain_record(4)])
    log.sync()
    with pytest.raises(JournalCorrupt, match="2 to 3"):
        lsns(nodes)


def test_healing_brings_a_file_back_to_three_whole_replicas() -> None:
    nodes = make_nodes()
    log = make_log(nodes)
    append(log, [plain_record(1), plain_record(2)])
    log.sync()
    name = journal_name(1, 1)
    whole = bytes(nodes["n0"].files[name])
    del nodes["n0"].files[name]
    nodes["n1"].fault_corrupt(name, FILE_HEADER_BYTES + 50)
    assert heal_file(nodes, (1, 1), STORE, 3, ["n1", "n2", "n3", "n4"]) == 3
    assert [bytes(nodes[node_id].files[name]) for node_id in ("n1", "n2", "n3")] == [whole] * 3


def test_more_than_m_missing_nodes_are_named() -> None:
    scan = JournalScan(make_nodes(), STORE)
    scan.check_available({"a": "a is missing", "b": "b is missing"}, 2)
    with pytest.raises(NodeUnavailable, match="a is missing; b is missing; c is missing"):
        scan.check_available({"a": "a is missing", "b": "b is missing", "c": "c is missing"}, 2)
