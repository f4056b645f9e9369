"""A journal file of format 1, as written on the day the format was fixed, is still read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.changes import CreateBucket, DeleteKey, PutVersion
from engine.frames import decode_frame
from engine.journal.records import (
    FILE_HEADER_BYTES,
    RawRecord,
    check_file_header,
    decode_epoch,
    decode_payload,
    decode_record,
    with_frames,
)

GOLDEN = Path(__file__).parent / "golden"
STORE = "0123456789abcdef0123456789abcdef"


def test_the_golden_journal_file_is_read_to_its_end() -> None:
    content = (GOLDEN / "journal-format-1.journal").read_bytes()
    check_file_header(content[:FILE_HEADER_BYTES], STORE, 5, 41)
    records: list[RawRecord] = []
    offset = FILE_HEADER_BYTES
    while (record := decode_record(content, offset, 5)) is not None:
        records.append(record)
        offset += record.length
    assert offset == len(content)
    assert [record.lsn for record in records] == [41, 42, 43]
    created, put, deleted = (with_frames(decode_payload(record), record) for record in records)
    assert created == CreateBucket("photos", "root")
    assert isinstance(put, PutVersion)
    (chunk,) = put.content.new_chunks
    assert chunk.frame is not None
    plain = decode_frame(chunk.frame, chunk.chunk_id)
    assert hashlib.sha256(plain).digest() == chunk.chunk_id
    assert (put.key, put.etag, put.headers, plain) == (
        "2026/first.txt",
        hashlib.md5(plain).hexdigest(),
        {"content-type": "text/plain"},
        b"first light\n" * 20,
    )
    assert deleted == DeleteKey("photos", "2026/first.txt")


def test_the_golden_epoch_file_is_read() -> None:
    epoch = decode_epoch((GOLDEN / "epoch-format-1.epoch").read_bytes(), STORE)
    assert epoch is not None
    assert (epoch.number, epoch.first_lsn, epoch.node_ids) == (5, 41, ["node1", "node2", "node3"])
