"""Limits, each with its source; their relations are asserted at import."""

from __future__ import annotations

KEY_BYTES_MAX = 1024  # S3 API: object key names
METADATA_BYTES_MAX = 2048  # S3 API: user metadata
OBJECT_BYTES_MAX = 50 * 1024**4  # S3 API: 50 TiB
PUT_BYTES_MAX = 5 * 1024**3  # S3 API: single PUT, single part, CopyObject
PART_BYTES_MIN = 5 * 1024**2  # S3 API: all but the last part
PARTS_MAX = 10_000  # S3 API
PART_NUMBER_MAX = 10_000  # S3 API
LIST_KEYS_MAX = 1000  # S3 API
DELETE_KEYS_MAX = 1000  # S3 API: DeleteObjects
TAGS_OBJECT_MAX = 10  # S3 API
TAGS_BUCKET_MAX = 50  # S3 API
TAG_KEY_CHARACTERS_MAX = 128  # S3 API
TAG_VALUE_CHARACTERS_MAX = 256  # S3 API
NAME_BYTES_MAX = 255  # POSIX NAME_MAX

CHUNK_BYTES_MIN = 64 * 1024  # design.md: FastCDC 64/256/1024 KiB
CHUNK_BYTES_AVERAGE = 256 * 1024
CHUNK_BYTES_MAX = 1024 * 1024
FRAME_HEADER_BYTES = 96  # engine/FORMAT.md
STRIPE_BYTES_MAX = CHUNK_BYTES_MAX + FRAME_HEADER_BYTES  # encode ~1 MiB at once: fits caches
SEGMENT_BYTES_MAX = 256 * 1024**2  # design.md: sealed at 256 MiB of data
INLINE_BYTES_MAX = 64 * 1024  # content up to this rides in its commit record
MANIFEST_ENTRIES_MAX = 1024  # more become a tree; a node of 1,024 entries is ~45 KiB
JOURNAL_FILE_BYTES_MAX = 64 * 1024**2
JOURNAL_BATCH_RECORDS_MAX = 256
COMMIT_BYTES_MAX = 16 * 1024**2  # one message on the index socket
COMMIT_QUEUE_MAX = 1024
FEED_RECORDS_MAX = 10_000  # a subscriber further behind drops its caches
LEASE_SECONDS = 5.0  # how long the kernel may keep what a mount told it
LEASE_STALL_SECONDS = 1.0  # a mount that stood still or confirmed nothing this long tells it nothing to keep
LEASE_WAIT_SECONDS = LEASE_SECONDS + 2 * LEASE_STALL_SECONDS  # so after this nothing is kept: no more waiting for it
CHECKPOINT_JOURNAL_BYTES = 256 * 1024**2  # small content costs m+1 copies here, less in segments
CHECKPOINT_RECORDS = 250_000  # replaying as many takes some 15 s: what rebuilding the index may take
CHECKPOINT_SHARE = 4  # a snapshot costs what the keymap holds: only once the journal has grown by 1/4 of it
CHECKPOINT_OLD_SECONDS = 6 * 3600  # a journal that grows slowly is still checkpointed …
CHECKPOINT_OLD_BYTES = 64 * 1024**2  # … once it holds a full file
JOURNAL_RETENTION_DAYS = 30.0  # how long archived records are kept
ARCHIVE_BYTES_MAX = 1024**3  # of archives, per copy; the oldest go first
CONTENT_ROOM_BYTES_MIN = 16 * 1024**2  # a node with less room is full: content for segments is refused there
RIDING_ROOM_BYTES_MIN = 8 * 1024**2  # … and content for the journal; the keymap grows with it
RESERVE_BYTES_MAX = 64 * 1024**2  # kept aside on a node, so that a full one can be emptied
RESERVE_SHARE = 0.01  # … but no more than this of the node's share of its device
COMPRESSION_SAVING_MIN = 0.03  # keep compressed only if it saves 3 %

assert INLINE_BYTES_MAX < COMMIT_BYTES_MAX < JOURNAL_FILE_BYTES_MAX
assert RIDING_ROOM_BYTES_MIN < CONTENT_ROOM_BYTES_MIN, "what streams in must not take the room of the commits"
assert CHUNK_BYTES_MIN < CHUNK_BYTES_AVERAGE < CHUNK_BYTES_MAX < STRIPE_BYTES_MAX < SEGMENT_BYTES_MAX
assert MANIFEST_ENTRIES_MAX * 64 <= CHUNK_BYTES_MAX, "a manifest node must fit one chunk"
