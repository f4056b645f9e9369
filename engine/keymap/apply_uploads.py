"""Multipart uploads: created, filled with parts, completed or aborted.

The commit order decides which part counts: a completion names the LSN of every part it
read. Called by apply.decide(), one thread.
"""

from __future__ import annotations

import msgspec

from engine.changes import AbortUpload, CommitResult, CompleteUpload, CreateUpload, PutPart
from engine.errors import InvalidPart, NoSuchUpload
from engine.keymap.chunks import insert_chunks
from engine.keymap.rows import check_key, encode, upload_id_of
from engine.keymap.state import State
from engine.types import Bucket, Part, Upload

decode_upload = msgspec.msgpack.Decoder(Upload).decode


def create_upload(state: State, change: CreateUpload) -> CommitResult:
    bucket = state.bucket(change.bucket)
    check_key(change.key)
    upload = Upload(
        upload_id_of(state.lsn),
        change.bucket,
        change.key,
        state.time_ns,
        headers=change.headers,
        user_metadata=change.user_metadata,
        tags=change.tags,
        checksum_algorithm=change.checksum_algorithm,
        checksum_type=change.checksum_type,
        storage_class=change.storage_class,
        owner=change.owner,
    )
    row = (bucket.bucket_id, change.key, upload.upload_id, encode(upload))
    state.db.execute("INSERT INTO uploads (bucket_id, key, upload_id, body) VALUES (?, ?, ?, ?)", row)
    return CommitResult(state.lsn, state.time_ns, upload_id=upload.upload_id)


def find_upload(state: State, bucket: Bucket, key: str, upload_id: str) -> Upload:
    """Raises NoSuchUpload."""
    select = "SELECT body FROM uploads WHERE bucket_id = ? AND key = ? AND upload_id = ?"
    row = state.db.execute(select, (bucket.bucket_id, key, upload_id)).fetchone()
    if row is None:
        raise NoSuchUpload(f"there is no upload {upload_id} of {key}")
    return decode_upload(row[0])


def put_part(state: State, change: PutPart) -> CommitResult:
    bucket = state.bucket(change.bucket)
    find_upload(state, bucket, change.key, change.upload_id)
    part = Part(
        change.upload_id,
        change.number,
        change.content.size,
        change.md5,
        change.content.manifest,
        last_modified_ns=state.time_ns,
        lsn=state.lsn,
        checksum=change.checksum,
    )
    insert_chunks(state, change.content.new_chunks, bucket)
    state.db.execute(
        "INSERT OR REPLACE INTO parts (upload_id, number, lsn, body) VALUES (?, ?, ?, ?)",
        (part.upload_id, part.number, part.lsn, encode(part)),
    )
    return CommitResult(state.lsn, state.time_ns, part=part)


def check_choices(state: State, change: CompleteUpload) -> None:
    """Raises InvalidPart unless every part named is the one the caller read."""
    select = "SELECT number, lsn FROM parts WHERE upload_id = ?"
    held = dict(state.db.execute(select, (change.upload_id,)).fetchall())
    if not change.choices:
        raise InvalidPart("a completion names at least one part")
    for choice in change.choices:
        if held.get(choice.number) != choice.lsn:
            raise InvalidPart(f"part {choice.number} is not there or was replaced meanwhile; list the parts again")


def drop_upload(state: State, bucket: Bucket, key: str, upload_id: str) -> None:
    where = "bucket_id = ? AND key = ? AND upload_id = ?"
    state.db.execute(f"DELETE FROM uploads WHERE {where}", (bucket.bucket_id, key, upload_id))
    state.db.execute("DELETE FROM parts WHERE upload_id = ?", (upload_id,))


def abort_upload(state: State, change: AbortUpload) -> CommitResult:
    bucket = state.bucket(change.bucket)
    find_upload(state, bucket, change.key, change.upload_id)
    drop_upload(state, bucket, change.key, change.upload_id)
    return CommitResult(state.lsn, state.time_ns, removed=True)
