"""Deciding changes: conditions checked, then the keymap changed, in commit order.

decide() is a deterministic function of the keymap and the record, so replaying the
journal makes the same keymap. It runs in the writer's SQLite transaction and checks all
that can fail before it changes anything: a refused change leaves the transaction as it
was. One thread, the writer's.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from engine.changes import (
    AbortUpload,
    Change,
    CommitResult,
    CompleteUpload,
    Condemn,
    Condition,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteKey,
    DeleteSegments,
    DeleteUser,
    Door,
    DropJournal,
    FragmentsDamaged,
    FragmentsRepaired,
    Link,
    MoveChunks,
    OpenSegment,
    Origin,
    PutPart,
    PutUser,
    PutVersion,
    RemoveNode,
    Rename,
    SealSegment,
    SegmentsScrubbed,
    SetAttributes,
    SetBucketTags,
    SetBucketVersioning,
    SetNode,
    SetTags,
    Spare,
    Touched,
)
from engine.errors import AlreadyExists, DirectoryNotEmpty, NoSuchKey, NoSuchVersion, PreconditionFailed
from engine.keymap import apply_collection, apply_service, apply_tree, apply_uploads, chunks
from engine.keymap.answers import idempotent, remember
from engine.keymap.counting import recount
from engine.keymap.rows import check_key
from engine.keymap.state import State
from engine.manifests import check_format
from engine.types import Attributes, Bucket, Version, Versioning

__all__ = ["Decision", "decide", "idempotent", "recount", "remember"]


class Decision(Struct, frozen=True):
    """What a change did, and every name it touched."""

    result: CommitResult
    touched: list[Touched]


def decide(db: sqlite3.Connection, change: Change, *, lsn: int, time_ns: int, origin: Origin) -> Decision:
    """Check and apply one change as record `lsn`. Raises the errors its docstring names,
    WritesStopped for content whose segment was sealed below it, UnknownFormat and InvalidName."""
    state = State(db, lsn, time_ns, origin)
    chunks.check_locations(db, chunks.new_chunks(change))
    if isinstance(change, PutVersion | PutPart | CompleteUpload):
        check_format(change.content.manifest)
        chunks.check_named(db, change.content)
    result = _APPLY[type(change)](state, change)
    if isinstance(change, PutVersion | PutPart | CompleteUpload):
        chunks.note_named(state, change.content)
    state.finish()
    return Decision(result, state.touched)


# -- conditions ----------------------------------------------------------------


def check_condition(state: State, condition: Condition | None, bucket: Bucket, key: str, held: Version | None) -> None:
    """`held` is the visible version or None. Raises NoSuchKey, PreconditionFailed,
    AlreadyExists."""
    if condition is None:
        return
    if condition.absent_path:
        path = key.removesuffix("/")
        if state.current(bucket, path) is not None or state.any_below(bucket, path + "/"):
            raise AlreadyExists(f"{path} exists in bucket {bucket.name}")
    needs_one = (condition.if_match, condition.if_match_size, condition.if_match_last_modified_ns)
    if held is None and any(value is not None for value in needs_one):
        raise NoSuchKey(f"there is no {key} in bucket {bucket.name}")
    if held is not None:
        _check_held(condition, held)
    if condition.expected_lsn is not None and condition.expected_lsn != (held.lsn if held is not None else 0):
        raise PreconditionFailed("expected_lsn")


def _check_held(condition: Condition, held: Version) -> None:
    if condition.if_match is not None and not _matches(condition.if_match, held):
        raise PreconditionFailed("If-Match")
    if condition.if_match_size is not None and condition.if_match_size != held.size:
        raise PreconditionFailed("x-amz-if-match-size")
    modified_ns = condition.if_match_last_modified_ns
    if modified_ns is not None and modified_ns // 10**9 != held.last_modified_ns // 10**9:
        raise PreconditionFailed("x-amz-if-match-last-modified-time")
    if condition.if_none_match is not None and _matches(condition.if_none_match, held):
        raise PreconditionFailed("If-None-Match")


def _matches(etags: list[str], held: Version) -> bool:
    return "*" in etags or held.etag in etags


# -- versions ------------------------------------------------------------------


def _put_version(state: State, change: PutVersion) -> CommitResult:
    bucket = state.bucket(change.bucket)
    check_key(change.key)
    held = state.current(bucket, change.key)
    names = [(bucket, change.key)]
    if change.file_id is not None:
        names = state.names(change.file_id)
        if not names:
            return CommitResult(state.lsn, state.time_ns)
        held = state.current(*next((name for name in names if name == (bucket, change.key)), names[0]))
    elif held is not None and held.link_count > 1 and state.origin.door is Door.MOUNT:
        names = state.names(held.file_id)
    check_condition(state, change.condition, bucket, change.key, held)
    chunks.insert_chunks(state, change.content.new_chunks, bucket)
    shown: Version | None = None
    for place in names:
        old = state.current(*place)
        version = replace(_version(state, change, place, old), link_count=len(names))
        version = state.publish(place[0], version, replaces_lsn=change.replaces_lsn)
        state.touch(*place, version.file_id)
        if old is not None and old.file_id != version.file_id:
            state.touch(*place, old.file_id)  # open at a mount, or linked elsewhere
        if shown is None or (place[0].name, place[1]) == (change.bucket, change.key):
            shown = version
    return CommitResult(state.lsn, state.time_ns, version=shown)


def _version(state: State, change: PutVersion, place: tuple[Bucket, str], old: Version | None) -> Version:
    version = Version(
        bucket=place[0].name,
        key=place[1],
        version_id="",
        lsn=state.lsn,
        last_modified_ns=state.time_ns,
        size=change.content.size,
        etag=change.etag,
        file_id=_file_id(state, change, old),
        manifest=change.content.manifest,
        headers=change.headers,
        user_metadata=change.user_metadata,
        tags=change.tags,
        attributes=change.attributes if change.attributes is not None else _kept_attributes(state, place[1], old),
        checksum=change.checksum,
        parts=change.parts,
        storage_class=change.storage_class,
        owner=change.owner or state.origin.requester,
    )
    if change.keep_metadata and old is not None:
        version = replace(
            version,
            headers=old.headers,
            user_metadata=old.user_metadata,
            tags=old.tags,
            storage_class=old.storage_class,
            owner=old.owner,
        )
    return version


def _file_id(state: State, change: PutVersion, old: Version | None) -> int:
    """Writes at the mount keep the file id; a new file gets its own, and so does one of
    several linked names that S3 writes to."""
    if old is None or not old.file_id or change.new_file:
        return state.lsn
    return old.file_id if old.link_count == 1 or state.origin.door is Door.MOUNT else state.lsn


def _kept_attributes(state: State, key: str, old: Version | None) -> Attributes | None:
    """What a write that names no attributes leaves of the old ones. An S3 write makes a
    regular file with the time of the write, which keeps its owner and permissions."""
    if old is None or old.attributes is None:
        return None
    if state.origin.door is Door.MOUNT:
        return old.attributes
    mode = old.attributes.mode
    if mode is not None and not key.endswith("/"):
        mode = None if stat.S_ISLNK(mode) else stat.S_IFREG | stat.S_IMODE(mode)
    return replace(old.attributes, mode=mode, mtime_ns=None, ctime_ns=None, atime_ns=None, link_target=None, rdev=0)


def _complete_upload(state: State, change: CompleteUpload) -> CommitResult:
    bucket = state.bucket(change.bucket)
    upload = apply_uploads.find_upload(state, bucket, change.key, change.upload_id)
    apply_uploads.check_choices(state, change)
    put = PutVersion(
        change.bucket,
        change.key,
        change.content,
        change.etag,
        headers=upload.headers,
        user_metadata=upload.user_metadata,
        tags=upload.tags,
        checksum=change.checksum,
        parts=change.parts,
        storage_class=upload.storage_class,
        owner=upload.owner,
        condition=change.condition,
        new_file=change.new_file,
    )
    result = _put_version(state, put)
    apply_uploads.drop_upload(state, bucket, change.key, change.upload_id)
    return result


def _delete_key(state: State, change: DeleteKey) -> CommitResult:
    bucket = state.bucket(change.bucket)
    check_key(change.key)
    newest = state.newest(bucket, change.key)
    if change.version_id is not None:
        return _delete_version(state, change, bucket, newest)
    current = None if newest is not None and newest.delete_marker else newest
    check_condition(state, change.condition, bucket, change.key, current)
    if change.empty_directory and state.any_below(bucket, change.key, beside=True):
        raise DirectoryNotEmpty(f"{change.key} is not empty")
    if change.must_exist and current is None:
        raise NoSuchKey(f"there is no {change.key} in bucket {bucket.name}")
    version: Version | None = None
    if bucket.versioning is not Versioning.UNVERSIONED:
        version = state.publish_marker(bucket, change.key)
    elif current is not None:
        state.hide(bucket, current)
    state.touch(bucket, change.key, current.file_id if current is not None else 0)
    if change.keep_parent:
        state.leave_parent(bucket, change.key)
    return CommitResult(state.lsn, state.time_ns, version=version, removed=current is not None)


def _delete_version(state: State, change: DeleteKey, bucket: Bucket, newest: Version | None) -> CommitResult:
    found = _find_version(state, bucket, change.key, change.version_id or "", newest)
    check_condition(state, change.condition, bucket, change.key, found)
    if found is None:
        if change.must_exist:
            raise NoSuchVersion(f"there is no version {change.version_id} of {change.key}")
        return CommitResult(state.lsn, state.time_ns)
    if change.empty_directory and state.any_below(bucket, change.key, beside=True):
        raise DirectoryNotEmpty(f"{change.key} is not empty")
    state.remove_version(bucket, found, new_file=change.new_file)
    state.touch(bucket, change.key, found.file_id)
    if change.keep_parent:
        state.leave_parent(bucket, change.key)
    return CommitResult(state.lsn, state.time_ns, removed=True, removed_marker=found.delete_marker)


def _find_version(state: State, bucket: Bucket, key: str, version_id: str, newest: Version | None) -> Version | None:
    if newest is not None and newest.version_id == version_id:
        return newest
    if bucket.versioning is Versioning.UNVERSIONED:
        return None  # there is only the null version
    return state.noncurrent(bucket, key, version_id)


def _set_tags(state: State, change: SetTags) -> CommitResult:
    """Raises NoSuchKey, or NoSuchVersion if a version id was given."""
    bucket = state.bucket(change.bucket)
    newest = state.newest(bucket, change.key)
    asked = change.version_id
    found = newest if asked is None else _find_version(state, bucket, change.key, asked, newest)
    if found is None or found.delete_marker:
        if change.version_id is not None:
            raise NoSuchVersion(f"there is no version {change.version_id} of {change.key}")
        raise NoSuchKey(f"there is no {change.key} in bucket {bucket.name}")
    version = state.rewrite(bucket, replace(found, tags=change.tags))
    state.touch(bucket, change.key, version.file_id)
    return CommitResult(state.lsn, state.time_ns, version=version)


def _segment(apply: Callable[[State, Any], None]) -> Callable[[State, Any], CommitResult]:
    def applied(state: State, change: Any) -> CommitResult:
        apply(state, change)
        return CommitResult(state.lsn, state.time_ns)

    return applied


_APPLY: dict[type, Callable[[State, Any], CommitResult]] = {
    PutVersion: _put_version,
    DeleteKey: _delete_key,
    CompleteUpload: _complete_upload,
    SetTags: _set_tags,
    Rename: apply_tree.rename,
    Link: apply_tree.link,
    SetAttributes: apply_tree.set_attributes,
    CreateUpload: apply_uploads.create_upload,
    PutPart: apply_uploads.put_part,
    AbortUpload: apply_uploads.abort_upload,
    CreateBucket: apply_service.create_bucket,
    DeleteBucket: apply_service.delete_bucket,
    SetBucketVersioning: apply_service.set_versioning,
    SetBucketTags: apply_service.set_bucket_tags,
    PutUser: apply_service.put_user,
    DeleteUser: apply_service.delete_user,
    SetNode: apply_service.set_node,
    OpenSegment: _segment(chunks.open_segment),
    SealSegment: _segment(chunks.seal_segment),
    FragmentsRepaired: _segment(chunks.repair_fragments),
    FragmentsDamaged: _segment(chunks.damage_fragments),
    SegmentsScrubbed: _segment(chunks.note_scrubbed),
    MoveChunks: _segment(chunks.apply_moves),
    Condemn: apply_collection.condemn,
    Spare: apply_collection.spare,
    DeleteSegments: apply_collection.delete_segments,
    DropJournal: apply_collection.drop_journal,
    RemoveNode: apply_collection.remove_node,
}
