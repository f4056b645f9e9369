"""The nouns of the store: chunks, manifests, versions, uploads, buckets, nodes.

Pure data, no behaviour beyond what follows from the fields. Everything here is a
msgspec Struct, so that it can be journaled, sent over the index socket and kept in
the keymap as it is. Fields are only ever appended, with defaults (FORMAT.md).

Keys are `str` (valid UTF-8); their order is the order of their UTF-8 bytes. Sizes and
offsets are bytes; times are nanoseconds since the epoch.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct

CHUNK_ID_BYTES = 32
NULL_VERSION_ID = "null"


# -- where frames lie ----------------------------------------------------------


class SegmentLocation(Struct, frozen=True, array_like=True, tag="s"):
    """A frame inside a stripe of a segment.

    `stripe_offset` is the offset of the stripe's fragment header in every fragment
    file of the segment (the same in all); `fragment_length` the length of one fragment
    without header; `offset`/`length` the frame inside the stripe's k*fragment_length
    data bytes.
    """

    segment_id: int
    stripe_offset: int
    fragment_length: int
    offset: int
    length: int


class JournalLocation(Struct, frozen=True, array_like=True, tag="j"):
    """A frame that rides in a journal record: byte range of one journal file.

    The file is named by (epoch, first_lsn) and is byte-identical on all replicas.
    """

    epoch: int
    first_lsn: int
    offset: int
    length: int


Location = SegmentLocation | JournalLocation


class NewChunk(Struct, frozen=True, array_like=True):
    """A chunk a commit brings along: either stored already (`location`) or riding in
    the record (`frame`, an encoded frame). Exactly one of the two is set."""

    chunk_id: bytes
    length: int  # plaintext bytes
    location: SegmentLocation | None = None
    frame: bytes | None = None
    scope: int = 0


# -- manifests -----------------------------------------------------------------


class ChunkEntry(Struct, frozen=True, array_like=True, tag="c"):
    """A whole chunk."""

    chunk_id: bytes
    length: int


class SliceEntry(Struct, frozen=True, array_like=True, tag="s"):
    """`length` bytes of a chunk of `chunk_length`, from `offset`."""

    chunk_id: bytes
    chunk_length: int
    offset: int
    length: int


class HoleEntry(Struct, frozen=True, array_like=True, tag="h"):
    """`length` zero bytes stored nowhere."""

    length: int


class InlineEntry(Struct, frozen=True, array_like=True, tag="i"):
    """Content kept in the manifest itself (small fsynced writes)."""

    content: bytes

    @property
    def length(self) -> int:
        return len(self.content)


class TreeEntry(Struct, frozen=True, array_like=True, tag="t"):
    """`length` bytes described by another manifest, stored as a chunk."""

    chunk_id: bytes
    chunk_length: int
    length: int


Entry = ChunkEntry | SliceEntry | HoleEntry | InlineEntry | TreeEntry


class Manifest(Struct, frozen=True, array_like=True):
    """The ordered entries of one version. `format` is checked when decoded."""

    entries: list[Entry] = []
    scope: int = 0
    cipher: int = 0
    key_id: int = 0
    format: int = 1

    @property
    def length(self) -> int:
        return sum(entry.length for entry in self.entries)


class Content(Struct, frozen=True):
    """What a content writer hands to a commit: a manifest whose stripes are synced,
    and the chunks the keymap may not know yet."""

    manifest: Manifest
    new_chunks: list[NewChunk] = []

    @property
    def size(self) -> int:
        return self.manifest.length


# -- objects -------------------------------------------------------------------


class ChecksumType(StrEnum):
    FULL_OBJECT = "FULL_OBJECT"
    COMPOSITE = "COMPOSITE"


class Checksum(Struct, frozen=True, array_like=True):
    """An S3 checksum: algorithm CRC32|CRC32C|CRC64NVME|SHA1|SHA256, value base64
    (composite values end in -N)."""

    algorithm: str
    value: str
    type: str = "FULL_OBJECT"


class ObjectPart(Struct, frozen=True, array_like=True):
    """One part of a multipart version, for partNumber reads and GetObjectAttributes."""

    number: int
    size: int
    checksum: Checksum | None = None


class Attributes(Struct, frozen=True, omit_defaults=True):
    """POSIX attributes; None means never set (the door shows its default).

    `mode` carries the file type bits (stat.S_IFMT). `link_target` is a symlink's."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    rdev: int = 0
    link_target: bytes | None = None
    xattrs: dict[str, bytes] = {}


class Version(Struct, frozen=True, omit_defaults=True):
    """One immutable version of a key, or a delete marker.

    `version_id` is what the client sees; `lsn` orders versions. `file_id` is the key's
    inode number: given at creation and by S3 overwrites, kept by writes at the mount, moved
    by rename, shared by hard links. `headers` holds Content-Type, Content-Encoding, … under lower-case names.
    """

    bucket: str
    key: str
    version_id: str
    lsn: int
    last_modified_ns: int
    size: int = 0
    etag: str = ""  # without quotes
    delete_marker: bool = False
    file_id: int = 0
    link_count: int = 1
    manifest: Manifest = Manifest()
    headers: dict[str, str] = {}
    user_metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    attributes: Attributes | None = None
    checksum: Checksum | None = None
    parts: list[ObjectPart] = []  # empty unless multipart
    storage_class: str = "STANDARD"
    owner: str = ""
    is_latest: bool = True
    changed_lsn: int = 0  # of the last change of its tags or attributes; 0: none since it was published

    @property
    def is_multipart(self) -> bool:
        return bool(self.parts)


class Versioning(StrEnum):
    UNVERSIONED = ""
    ENABLED = "Enabled"
    SUSPENDED = "Suspended"


class Bucket(Struct, frozen=True, omit_defaults=True):
    """A bucket. `bucket_id` is never reused; `attributes` are the top directory's."""

    name: str
    bucket_id: int
    created_ns: int
    versioning: Versioning = Versioning.UNVERSIONED
    owner: str = ""
    tags: dict[str, str] = {}
    attributes: Attributes | None = None


class Upload(Struct, frozen=True, omit_defaults=True):
    """A multipart upload that is neither completed nor aborted."""

    upload_id: str
    bucket: str
    key: str
    initiated_ns: int
    headers: dict[str, str] = {}
    user_metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    checksum_algorithm: str | None = None
    checksum_type: str | None = None
    storage_class: str = "STANDARD"
    owner: str = ""


class Part(Struct, frozen=True, omit_defaults=True):
    """An uploaded part. `md5` is the raw digest its ETag shows in hex."""

    upload_id: str
    number: int
    size: int
    md5: bytes
    manifest: Manifest
    last_modified_ns: int = 0
    lsn: int = 0
    checksum: Checksum | None = None

    @property
    def etag(self) -> str:
        return self.md5.hex()


class Access(StrEnum):
    FULL = "full"
    READ = "read"


class User(Struct, frozen=True, omit_defaults=True):
    """An access key. `secret` is in clear only in memory; journal and keymap hold
    `sealed_secret` (sealed under DATA/store.key)."""

    name: str
    access_key: str
    sealed_secret: bytes
    access: Access = Access.FULL
    created_ns: int = 0
    root: bool = False


# -- nodes and segments --------------------------------------------------------


class NodeState(StrEnum):
    HEALTHY = "healthy"
    LOST = "lost"
    STALE = "stale"
    REBUILDING = "rebuilding"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


class NodeEntry(Struct, frozen=True, omit_defaults=True):
    """A node as the index knows it. `domain` is zone/rack/host (disk is the node)."""

    node_id: str
    path: str
    domain: str = ""
    state: NodeState = NodeState.HEALTHY
    generation: int = 1  # raised when the node's place is taken by an empty one
    since_ns: int = 0  # when it came into its state (0: before this was noted)
    drains_again: bool = False  # it was draining when it was lost, and is again once nothing is missing on it


class SegmentState(StrEnum):
    OPEN = "open"
    SEALED = "sealed"


class Segment(Struct, frozen=True, omit_defaults=True):
    """A segment: its code and its nodes in fragment order. `size` is the length of one
    fragment file once sealed (0 while open)."""

    segment_id: int
    k: int
    m: int
    node_ids: list[str]
    owner: str = ""
    writer_epoch: int = 0
    state: SegmentState = SegmentState.OPEN
    size: int = 0
    code: str = "isa_l_rs_cauchy"
    stripes: int = 0
    fragments_lost: list[int] = []  # fragment indexes known to be not whole
    condemned_lsn: int = 0  # 0: not condemned, else the record that condemned it
    scrubbed_ns: int = 0  # when every byte of it was last checked
    frames_end: int = 0  # once sealed: where its stripes of frames end (0: not said)
    never_synced: list[int] = []  # of fragments_lost: failed when written; a file there may lie only in memory


encode_msgpack = msgspec.msgpack.Encoder().encode
