"""An index snapshot and a journal archive of piece file format 1, as written on the day the
format was fixed, are still read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine import pieces
from engine.changes import CreateBucket, DeleteKey, PutVersion
from engine.errors import PiecesDamaged, UnknownFormat, WrongStore
from engine.index import snapshots
from engine.journal import archive
from engine.nodes.memory import MemoryNode

GOLDEN = Path(__file__).parent / "golden"
STORE = "0123456789abcdef0123456789abcdef"
SNAPSHOT = GOLDEN / "0000000000000029.snapshot"
ARCHIVE = GOLDEN / "0000000000000029-000000000000002b.archive"
KEYMAP = b"SQLite stands for itself here: a snapshot holds its file byte for byte.\n" * 40000


def reader(content: bytes, magic: bytes) -> pieces.PieceReader:
    return pieces.PieceReader(lambda offset, length: content[offset : offset + length], magic, "golden")


def test_the_golden_snapshot_is_read_to_its_end() -> None:
    found = reader(SNAPSHOT.read_bytes(), snapshots.MAGIC)
    header = snapshots.read_header(found, "index/0000000000000029.snapshot", STORE)
    assert header == snapshots.SnapshotHeader(STORE, 41, 5, 3, len(KEYMAP), 1_700_000_000_000_000_000)
    read = list(found.pieces())
    assert b"".join(read) == KEYMAP
    assert [len(piece) for piece in read] == [1024 * 1024, 1024 * 1024, len(KEYMAP) - 2 * 1024 * 1024]


def test_the_golden_archive_is_read_to_its_end() -> None:
    node = MemoryNode("n1")
    node.write_whole(f"journal/{ARCHIVE.name}", ARCHIVE.read_bytes())
    created, put, deleted = archive.read_archives({"n1": node}, STORE)
    assert [(record.lsn, record.epoch) for record in (created, put, deleted)] == [(41, 5), (42, 5), (43, 6)]
    assert created.change == CreateBucket("photos", "root") and deleted.change == DeleteKey("photos", "a.txt")
    assert isinstance(put.change, PutVersion)
    (chunk,) = put.change.content.new_chunks
    assert chunk.frame == b"" and chunk.length == 240
    assert put.change.headers == {"content-type": "text/plain"} and put.origin.request_id == "r1"


def test_what_is_written_now_is_what_was_written_then() -> None:
    header = snapshots.SnapshotHeader(STORE, 41, 5, 3, len(KEYMAP), 1_700_000_000_000_000_000)
    written = b"".join(pieces.encode(snapshots.MAGIC, msgspec.json.encode(header), [KEYMAP]))
    golden = SNAPSHOT.read_bytes()
    assert written[:200] == golden[:200]  # zstd may choose other bytes for the same content
    assert list(reader(written, snapshots.MAGIC).pieces()) == list(reader(golden, snapshots.MAGIC).pieces())


@pytest.mark.parametrize("path", [SNAPSHOT, ARCHIVE])
def test_any_flipped_bit_and_any_other_length_is_seen(path: Path) -> None:
    magic = snapshots.MAGIC if path is SNAPSHOT else archive.MAGIC
    whole = path.read_bytes()
    for at in range(len(whole)):
        harmed = whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :]
        with pytest.raises(PiecesDamaged):
            list(reader(harmed, magic).pieces())
    for length in range(len(whole)):
        with pytest.raises(PiecesDamaged):
            list(reader(whole[:length], magic).pieces())
    with pytest.raises(PiecesDamaged):
        list(reader(whole + b"\0", magic).pieces())


def test_another_format_store_or_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "index/0000000000000029.snapshot"
    with pytest.raises(WrongStore, match="is an index snapshot of store 0123"):
        snapshots.read_header(reader(SNAPSHOT.read_bytes(), snapshots.MAGIC), name, "ff" * 16)
    with pytest.raises(PiecesDamaged, match="under a wrong name"):
        snapshots.read_header(reader(SNAPSHOT.read_bytes(), snapshots.MAGIC), "index/000000000000002a.snapshot", STORE)
    with pytest.raises(PiecesDamaged, match="does not begin as it should"):
        reader(SNAPSHOT.read_bytes(), archive.MAGIC)
    monkeypatch.setattr(pieces, "VERSION", 2)
    with pytest.raises(UnknownFormat, match="piece file format 1, not 2"):
        reader(SNAPSHOT.read_bytes(), snapshots.MAGIC)
