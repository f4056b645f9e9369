"""Buckets, users and nodes. Called by apply.decide(), one thread."""

from __future__ import annotations

import ipaddress
import re

import msgspec
from msgspec.structs import replace

from engine.changes import (
    CommitResult,
    CreateBucket,
    DeleteBucket,
    DeleteUser,
    PutUser,
    SetBucketTags,
    SetBucketVersioning,
    SetNode,
)
from engine.errors import (
    AlreadyExists,
    BucketExists,
    BucketNotEmpty,
    InvalidBucketName,
    NoSuchBucket,
    NoSuchUser,
    PreconditionFailed,
)
from engine.keymap.rows import encode
from engine.keymap.state import State
from engine.types import Bucket, NodeEntry, NodeState, Versioning

# S3 API, "General purpose bucket naming rules".
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


_decode_node = msgspec.msgpack.Decoder(NodeEntry).decode


def check_bucket_name(name: str) -> None:
    """Raises InvalidBucketName, by the rules of S3."""
    valid = _BUCKET_NAME.fullmatch(name) is not None and ".." not in name and not _is_address(name)
    if not valid or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES):
        raise InvalidBucketName(
            f"{name!r} is no bucket name: 3 to 63 of a-z, 0-9, '-' and '.', a letter or digit at both ends"
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _done(state: State) -> CommitResult:
    return CommitResult(state.lsn, state.time_ns)


def create_bucket(state: State, change: CreateBucket) -> CommitResult:
    """Raises InvalidBucketName, BucketExists."""
    check_bucket_name(change.bucket)
    try:
        state.bucket(change.bucket)
    except NoSuchBucket:
        pass
    else:
        raise BucketExists(f"bucket {change.bucket} exists")
    bucket = Bucket(change.bucket, state.lsn, state.time_ns, owner=change.owner, attributes=change.attributes)
    state.db.execute(
        "INSERT INTO buckets (name, bucket_id, body) VALUES (?, ?, ?)", (bucket.name, bucket.bucket_id, encode(bucket))
    )
    state.count(buckets=1)
    state.touch(bucket, "")
    return _done(state)


def delete_bucket(state: State, change: DeleteBucket) -> CommitResult:
    """Raises NoSuchBucket, BucketNotEmpty."""
    bucket = state.bucket(change.bucket)
    for table, what in (("keys", "versions or delete markers"), ("history", "versions"), ("uploads", "uploads")):
        select = f"SELECT 1 FROM {table} WHERE bucket_id = ? LIMIT 1"
        if state.db.execute(select, (bucket.bucket_id,)).fetchone() is not None:
            raise BucketNotEmpty(f"bucket {bucket.name} still has {what}")
    state.db.execute("DELETE FROM buckets WHERE name = ?", (bucket.name,))
    state.count(buckets=-1)
    state.touch(bucket, "")
    return replace(_done(state), removed=True)


def _write_bucket(state: State, bucket: Bucket) -> CommitResult:
    state.db.execute("UPDATE buckets SET body = ? WHERE name = ?", (encode(bucket), bucket.name))
    state.touch(bucket, "")
    return _done(state)


def set_versioning(state: State, change: SetBucketVersioning) -> CommitResult:
    """Raises PreconditionFailed where versioning would go back to never set: S3 only
    knows suspending."""
    bucket = state.bucket(change.bucket)
    if change.versioning is Versioning.UNVERSIONED and bucket.versioning is not Versioning.UNVERSIONED:
        raise PreconditionFailed("versioning")
    return _write_bucket(state, replace(bucket, versioning=change.versioning))


def set_bucket_tags(state: State, change: SetBucketTags) -> CommitResult:
    return _write_bucket(state, replace(state.bucket(change.bucket), tags=change.tags))


def put_user(state: State, change: PutUser) -> CommitResult:
    """Raises AlreadyExists."""
    user = change.user
    select = "SELECT 1 FROM users WHERE access_key = ? OR name = ? LIMIT 1"
    if change.must_be_new and state.db.execute(select, (user.access_key, user.name)).fetchone() is not None:
        raise AlreadyExists(f"there is a user {user.name}, or one with access key {user.access_key}")
    state.db.execute(
        "INSERT OR REPLACE INTO users (access_key, name, body) VALUES (?, ?, ?)",
        (user.access_key, user.name, encode(user)),
    )
    return _done(state)


def delete_user(state: State, change: DeleteUser) -> CommitResult:
    """Raises NoSuchUser."""
    if state.db.execute("DELETE FROM users WHERE name = ?", (change.name,)).rowcount == 0:
        raise NoSuchUser(f"there is no user {change.name}")
    return replace(_done(state), removed=True)


def set_node(state: State, change: SetNode) -> CommitResult:
    """Raises PreconditionFailed."""
    row = state.db.execute("SELECT body FROM nodes WHERE node_id = ?", (change.node_id,)).fetchone()
    before = None if row is None else _decode_node(row[0])
    if change.if_state is not None and (before is None or before.state is not change.if_state):
        raise PreconditionFailed("if_state")
    unchanged = before is not None and before.state is change.state
    # An empty directory in its place (another generation) was given to be used.
    same = before is not None and before.generation == change.generation
    drained = before is not None and (before.drains_again or before.state is NodeState.DRAINING)
    node = NodeEntry(
        change.node_id,
        change.path,
        domain=change.domain,
        state=change.state,
        generation=change.generation,
        since_ns=before.since_ns if before is not None and unchanged else state.time_ns,
        drains_again=same and drained and change.state not in (NodeState.HEALTHY, NodeState.DRAINING),
    )
    state.db.execute("INSERT OR REPLACE INTO nodes (node_id, body) VALUES (?, ?)", (node.node_id, encode(node)))
    return _done(state)
