"""Changes: what a door asks the index to commit, and the record that is journaled.

A change is a request: conditions and names. The index decides it in commit order and
journals a Record; applying a Record to a keymap is a deterministic function of the
keymap's state and the record alone, so replay rebuilds the same keymap. Version ids,
file ids and bucket ids are therefore derived from the record's LSN.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from engine.types import (
    Attributes,
    Checksum,
    Content,
    Location,
    NewChunk,
    NodeState,
    ObjectPart,
    Part,
    User,
    Version,
    Versioning,
)


class Door(StrEnum):
    S3 = "s3"
    MOUNT = "mount"
    SERVICE = "service"


class Origin(Struct, frozen=True, array_like=True):
    """Who asks. `request_id` is also the idempotency token of a retried commit."""

    requester: str = ""
    request_id: str = ""
    source_ip: str | None = None
    door: Door = Door.SERVICE
    mount_id: str = ""  # the subscriber that need not confirm its own change


class Condition(Struct, frozen=True, omit_defaults=True):
    """What must hold of the current version when the change is ordered.

    ETags are without quotes; "*" stands for any existing version (a delete marker does
    not exist). Failure of if_match on an absent key raises NoSuchKey, else
    PreconditionFailed, as S3 does. `absent_path` is mkdir's and O_EXCL's: neither the
    key, nor `key/`, nor anything below `key/` exists (AlreadyExists). `expected_lsn`
    is the version the caller saw."""

    if_match: list[str] | None = None
    if_none_match: list[str] | None = None
    if_match_size: int | None = None
    if_match_last_modified_ns: int | None = None  # compared in whole seconds
    absent_path: bool = False
    expected_lsn: int | None = None


class PutVersion(Struct, frozen=True, omit_defaults=True, tag="put_version"):
    """Publish a version. From the mount, `file_id` names the open file: the version is
    published under every name that file has now (none: NoSuchFile is not raised, the
    content is dropped and the result's version is None). `replaces_lsn` names this
    open's own earlier version, which the new one replaces even on a versioned bucket.
    Without `attributes` they stay as they are on the replaced version. `new_file`: the key
    gets a new file id, as a file renamed over another does, so that what has the old file
    open at a mount goes on with the version it has. S3 writes say so; records written
    before this was a field keep the file id."""

    bucket: str
    key: str
    content: Content
    etag: str
    headers: dict[str, str] = {}
    user_metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    attributes: Attributes | None = None
    checksum: Checksum | None = None
    parts: list[ObjectPart] = []
    storage_class: str = "STANDARD"
    owner: str = ""
    condition: Condition | None = None
    file_id: int | None = None
    replaces_lsn: int | None = None
    keep_metadata: bool = False  # mount: headers, user metadata, tags of the old version stay
    new_file: bool = False


class DeleteKey(Struct, frozen=True, omit_defaults=True, tag="delete_key"):
    """S3 DeleteObject, or the mount's unlink/rmdir.

    Without version_id: unversioned removes the version, versioned puts a marker.
    `must_exist` raises NoSuchKey when absent (unlink). `empty_directory` (key ends in
    "/"): raises DirectoryNotEmpty when anything but the marker is below. `keep_parent`:
    leave a `dir/` marker if this removes the last child (unlink, rmdir, mount only).
    `new_file`: an older version of the same file that is the newest again becomes another
    file (S3; see PutVersion)."""

    bucket: str
    key: str
    version_id: str | None = None
    condition: Condition | None = None
    must_exist: bool = False
    empty_directory: bool = False
    keep_parent: bool = False
    new_file: bool = False


class Rename(Struct, frozen=True, omit_defaults=True, tag="rename"):
    """Move a key, or a directory when both keys end in "/", within or across buckets.

    No bytes move. `no_replace`: AlreadyExists if the target is there; `exchange`: swap.
    A directory replaces only an empty directory (DirectoryNotEmpty), a file only a
    file (IsADirectory, NotADirectory). On a versioned bucket: new version at the
    target, delete marker at the source."""

    bucket: str
    key: str
    target_bucket: str
    target_key: str
    no_replace: bool = False
    exchange: bool = False
    keep_parent: bool = True


class Link(Struct, frozen=True, omit_defaults=True, tag="link"):
    """Give the file at key a second name (same file_id). AlreadyExists if taken."""

    bucket: str
    key: str
    target_bucket: str
    target_key: str


class SetAttributes(Struct, frozen=True, omit_defaults=True, tag="set_attributes"):
    """Merge: fields of `attributes` that are not None replace; `xattrs` replaces whole
    when `replace_xattrs`. By file_id if given (all names), else by key. A directory
    without marker (key ends in "/") gets one. Bucket itself: key == ""."""

    bucket: str
    key: str
    attributes: Attributes
    replace_xattrs: bool = False
    file_id: int | None = None


class SetTags(Struct, frozen=True, omit_defaults=True, tag="set_tags"):
    bucket: str
    key: str
    tags: dict[str, str]
    version_id: str | None = None


class CreateBucket(Struct, frozen=True, omit_defaults=True, tag="create_bucket"):
    """BucketAlreadyOwnedByYou if it exists."""

    bucket: str
    owner: str = ""
    attributes: Attributes | None = None


class DeleteBucket(Struct, frozen=True, omit_defaults=True, tag="delete_bucket"):
    """BucketNotEmpty while it has any version, delete marker or (S3) upload."""

    bucket: str


class SetBucketVersioning(Struct, frozen=True, omit_defaults=True, tag="set_bucket_versioning"):
    bucket: str
    versioning: Versioning


class SetBucketTags(Struct, frozen=True, omit_defaults=True, tag="set_bucket_tags"):
    bucket: str
    tags: dict[str, str]


class CreateUpload(Struct, frozen=True, omit_defaults=True, tag="create_upload"):
    bucket: str
    key: str
    headers: dict[str, str] = {}
    user_metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    checksum_algorithm: str | None = None
    checksum_type: str | None = None
    storage_class: str = "STANDARD"
    owner: str = ""


class PutPart(Struct, frozen=True, omit_defaults=True, tag="put_part"):
    bucket: str
    key: str
    upload_id: str
    number: int
    content: Content
    md5: bytes
    checksum: Checksum | None = None


class PartChoice(Struct, frozen=True, array_like=True):
    """A part a completion names: its number and the LSN of the part the caller read."""

    number: int
    lsn: int


class CompleteUpload(Struct, frozen=True, omit_defaults=True, tag="complete_upload"):
    """Publish the upload's version and drop the upload. The caller built `content` and
    `etag` from the parts it read; a part replaced since raises InvalidPart."""

    bucket: str
    key: str
    upload_id: str
    choices: list[PartChoice]
    content: Content
    etag: str
    parts: list[ObjectPart]
    checksum: Checksum | None = None
    condition: Condition | None = None
    new_file: bool = False  # as PutVersion's


class AbortUpload(Struct, frozen=True, omit_defaults=True, tag="abort_upload"):
    bucket: str
    key: str
    upload_id: str


class PutUser(Struct, frozen=True, omit_defaults=True, tag="put_user"):
    """Create or replace by access key; `must_be_new` raises AlreadyExists on a name or
    access key in use."""

    user: User
    must_be_new: bool = True


class DeleteUser(Struct, frozen=True, omit_defaults=True, tag="delete_user"):
    name: str


class OpenSegment(Struct, frozen=True, omit_defaults=True, tag="open_segment"):
    segment_id: int
    k: int
    m: int
    node_ids: list[str]
    owner: str
    writer_epoch: int = 0
    code: str = "isa_l_rs_cauchy"


class SealSegment(Struct, frozen=True, omit_defaults=True, tag="seal_segment"):
    segment_id: int
    size: int  # bytes of one fragment file
    fragments_lost: list[int] = []  # fragment indexes not written whole: below full protection
    stripes: int = 0
    frames_end: int = 0  # where the stripes of frames end; nothing lies behind that (0: not said)


class FragmentsRepaired(Struct, frozen=True, omit_defaults=True, tag="fragments_repaired"):
    """Fragments of a sealed segment are whole again, on these nodes (index → node)."""

    segment_id: int
    node_ids: list[str]
    fragments_lost: list[int] = []  # what is still not whole
    if_lost: list[int] | None = None  # PreconditionFailed unless exactly these were lost until now


class FragmentsDamaged(Struct, frozen=True, omit_defaults=True, tag="fragments_damaged"):
    """Fragments of a segment were found missing or rotten; repair is next."""

    segment_id: int
    indexes: list[int]
    reason: str = ""


class SegmentsScrubbed(Struct, frozen=True, omit_defaults=True, tag="segments_scrubbed"):
    """Every byte of these segments was read and checked at `time_ns`; what was found
    damaged is told by FragmentsDamaged."""

    segment_ids: list[int]
    time_ns: int


class MoveChunks(Struct, frozen=True, omit_defaults=True, tag="move_chunks"):
    """Frames were copied: each chunk lies at its new location from now on, if it still
    lay at the place in `before` of the same position (none given: wherever it lay)."""

    moves: list[NewChunk]
    before: list[Location] = []


class Condemn(Struct, frozen=True, omit_defaults=True, tag="condemn"):
    """Nothing new is matched in these containers from now on. A container is a segment
    (its id) or a journal file (minus its first LSN). Pins taken before this record's LSN
    may still be used to name chunks in them. CollectionStopped for an open segment."""

    containers: list[int]


class Spare(Struct, frozen=True, omit_defaults=True, tag="spare"):
    """Takes Condemn back."""

    containers: list[int]


class DeleteSegments(Struct, frozen=True, omit_defaults=True, tag="delete_segments"):
    """Drop condemned segments and the `dead_chunks` chunks that still lie in them, which
    nothing names. Their files are deleted once this is durable. CollectionStopped if a
    segment is not condemned, holds another number of chunks, or was named by something
    published after `as_of_lsn` (0: not asked): nothing is changed then."""

    segment_ids: list[int]
    dead_chunks: int
    as_of_lsn: int = 0


class DropJournal(Struct, frozen=True, omit_defaults=True, tag="drop_journal"):
    """Journal files that begin before `before_lsn` are needed no more: an index snapshot
    at `snapshot_lsn` stands on m+1 nodes. Drops the `dead_chunks` chunks that still lie in
    them. CollectionStopped as in DeleteSegments."""

    before_lsn: int
    snapshot_lsn: int
    dead_chunks: int = 0
    as_of_lsn: int = 0


class SetNode(Struct, frozen=True, omit_defaults=True, tag="set_node"):
    """Add a node or change its path, domain or state. PreconditionFailed if it is not in
    `if_state` (None: whatever it is in). That it was draining is remembered while it is away
    or comes back, in the same generation."""

    node_id: str
    path: str
    domain: str = ""
    state: NodeState = NodeState.HEALTHY
    generation: int = 1
    if_state: NodeState | None = None


class RemoveNode(Struct, frozen=True, omit_defaults=True, tag="remove_node"):
    """Forget a node. StoreError while a segment still names it."""

    node_id: str


Change = (
    PutVersion
    | DeleteKey
    | Rename
    | Link
    | SetAttributes
    | SetTags
    | CreateBucket
    | DeleteBucket
    | SetBucketVersioning
    | SetBucketTags
    | CreateUpload
    | PutPart
    | CompleteUpload
    | AbortUpload
    | PutUser
    | DeleteUser
    | OpenSegment
    | SealSegment
    | FragmentsRepaired
    | FragmentsDamaged
    | SegmentsScrubbed
    | MoveChunks
    | Condemn
    | Spare
    | DeleteSegments
    | DropJournal
    | SetNode
    | RemoveNode
)


class CommitResult(Struct, frozen=True, omit_defaults=True):
    """What a commit did. `version` is the published version or marker (None when a
    delete removed without marker or found nothing); `deleted_version_id` what a delete
    by version id removed, and whether that was a marker."""

    lsn: int
    time_ns: int
    version: Version | None = None
    part: Part | None = None
    upload_id: str | None = None
    removed: bool = False
    removed_marker: bool = False


class Touched(Struct, frozen=True, array_like=True):
    """A name a record touched, for cache invalidation. Key ends in "/" for directories
    (everything below is touched); "" with a bucket is the bucket itself."""

    bucket: str
    key: str
    file_id: int = 0


class Record(Struct, frozen=True, array_like=True):
    """One journaled commit."""

    lsn: int
    time_ns: int
    epoch: int
    origin: Origin
    change: Change
