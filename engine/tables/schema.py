"""The relations SQL sees: physical tables, and the views with AWS's names.

One place defines every column; the DDL and the Arrow schemas of what is inserted both
follow from it. Nothing here has an index or a key: DuckDB's indexes are not used for
what we ask and have a bad record around WAL replay. Names, types and order of the views
`journal`, `inventory` and `s3_inventory` are those of S3 Metadata and S3 Inventory
(AWS user guide: S3 Metadata journal tables schema, live inventory tables schema, S3
Inventory list). Pure data: knows no connection.
"""

from __future__ import annotations

import pyarrow

SCHEMA_VERSION = 1

ARROW_TYPES = {
    "VARCHAR": pyarrow.string(),
    "BOOLEAN": pyarrow.bool_(),
    "INTEGER": pyarrow.int32(),
    "BIGINT": pyarrow.int64(),
    "UBIGINT": pyarrow.uint64(),
    "TIMESTAMP": pyarrow.timestamp("us"),
    "MAP(VARCHAR, VARCHAR)": pyarrow.map_(pyarrow.string(), pyarrow.string()),
}

TEXT, FLAG, SMALL, WHOLE, ID, TIME, MAP = (
    "VARCHAR",
    "BOOLEAN",
    "INTEGER",
    "BIGINT",
    "UBIGINT",
    "TIMESTAMP",
    "MAP(VARCHAR, VARCHAR)",
)

TABLES: dict[str, dict[str, str]] = {
    # One row: how far the tables are. `fingerprint` is that of the record at applied_lsn,
    # by which a journal that lost its tail, or another store's, is recognised.
    "tables_state": {
        "schema_version": SMALL,
        "store_id": TEXT,
        "applied_lsn": WHOLE,
        "state_lsn": WHOLE,  # of the keymap the newest rows were read from: later while catching up
        "fingerprint": TEXT,
    },
    "buckets": {
        "bucket": TEXT,
        "bucket_id": WHOLE,
        "created": TIME,
        "versioning": TEXT,  # '' | 'Enabled' | 'Suspended'
        "owner": TEXT,
        "tags": MAP,
    },
    # One row per version and delete marker; version_id is 'null' for the null version.
    "versions": {
        "bucket": TEXT,
        "key": TEXT,
        "version_id": TEXT,
        "lsn": WHOLE,  # of the commit that published the version
        "sequence_lsn": WHOLE,  # of the last commit that changed it
        "is_latest": FLAG,
        "is_delete_marker": FLAG,
        "size": WHOLE,
        "last_modified": TIME,
        "etag": TEXT,
        "storage_class": TEXT,
        "is_multipart": FLAG,
        "part_count": SMALL,
        "checksum_algorithm": TEXT,
        "checksum_type": TEXT,
        "checksum_value": TEXT,
        "owner": TEXT,
        "file_id": ID,
        "link_count": SMALL,
        "mode": SMALL,
        "uid": WHOLE,
        "gid": WHOLE,
        "headers": MAP,
        "user_metadata": MAP,
        "tags": MAP,
    },
    "uploads": {
        "bucket": TEXT,
        "key": TEXT,
        "upload_id": TEXT,
        "initiated": TIME,
        "storage_class": TEXT,
        "checksum_algorithm": TEXT,
        "checksum_type": TEXT,
        "owner": TEXT,
        "user_metadata": MAP,
        "tags": MAP,
    },
    "parts": {
        "upload_id": TEXT,
        "part_number": SMALL,
        "lsn": WHOLE,
        "size": WHOLE,
        "etag": TEXT,
        "last_modified": TIME,
        "checksum_algorithm": TEXT,
        "checksum_value": TEXT,
    },
    # A chunk lies in a stripe of a segment, or (in_journal) still in its commit record.
    "chunks": {
        "chunk_id": TEXT,  # SHA-256, hex
        "scope": WHOLE,
        "length": WHOLE,  # plaintext bytes
        "stored_length": WHOLE,  # bytes of its frame, header included
        "in_journal": FLAG,
        "segment_id": TEXT,  # hex, as in the fragment files' names
        "stripe_offset": WHOLE,
        "fragment_length": WHOLE,
        "frame_offset": WHOLE,  # in the stripe
    },
    # Which bytes of which chunk make up which bytes of a version, or of a part of an
    # upload still open (then version_id is NULL).
    "chunk_references": {
        "bucket": TEXT,
        "key": TEXT,
        "version_id": TEXT,
        "upload_id": TEXT,
        "part_number": SMALL,
        "ordinal": WHOLE,
        "offset": WHOLE,  # in the object or part
        "length": WHOLE,
        "chunk_id": TEXT,
        "scope": WHOLE,
        "chunk_offset": WHOLE,
        "chunk_length": WHOLE,
    },
    "segments": {
        "segment_id": TEXT,
        "code": TEXT,
        "k": SMALL,
        "m": SMALL,
        "owner": TEXT,
        "state": TEXT,
        "size": WHOLE,  # bytes of one fragment file; 0 while open
    },
    "segment_fragments": {
        "segment_id": TEXT,
        "fragment_index": SMALL,
        "node_id": TEXT,
        "is_lost": FLAG,  # not written whole when the segment was sealed, nor repaired since
    },
    "nodes": {"node_id": TEXT, "path": TEXT, "domain": TEXT, "state": TEXT},
    "users": {"name": TEXT, "access_key": TEXT, "access": TEXT, "is_root": FLAG, "created": TIME},
    # Every change of an object as it happened. A permanent delete has no facts.
    "journal_events": {
        "lsn": WHOLE,
        "ordinal": SMALL,
        "bucket": TEXT,
        "key": TEXT,
        "record_type": TEXT,
        "record_timestamp": TIME,
        "version_id": TEXT,
        "is_delete_marker": FLAG,
        "size": WHOLE,
        "last_modified": TIME,
        "etag": TEXT,
        "storage_class": TEXT,
        "is_multipart": FLAG,
        "checksum_algorithm": TEXT,
        "tags": MAP,
        "user_metadata": MAP,
        "requester": TEXT,
        "source_ip_address": TEXT,
        "request_id": TEXT,
        "file_id": ID,
        "published_lsn": WHOLE,  # when this version came to this name: the order of versions
    },
    # What the derivation of journal_events must remember of the state at applied_lsn.
    "journal_buckets": {"bucket": TEXT, "versioning": TEXT},
    "journal_uploads": {
        "upload_id": TEXT,
        "storage_class": TEXT,
        "initiated_ns": WHOLE,
        "user_metadata": MAP,
        "tags": MAP,
    },
}


def create_table(name: str) -> str:
    columns = ", ".join(f'"{column}" {kind}' for column, kind in TABLES[name].items())
    return f"CREATE TABLE {name} ({columns})"


def arrow_schema(name: str) -> pyarrow.Schema:
    return pyarrow.schema([(column, ARROW_TYPES[kind]) for column, kind in TABLES[name].items()])


# The join key of AWS's annotation tables: one value for one version of one object.
_JOIN_KEY = "md5(bucket || chr(10) || key || chr(10) || version_id)"

# We do not encrypt: encryption_status and its companions are NULL. The null version has
# no version id in AWS's tables.
_VERSION_FACTS = """
    nullif(version_id, 'null') AS version_id,
    is_delete_marker,
    size,
    {last_modified} AS last_modified_date,
    {etag} AS e_tag,
    {storage_class} AS storage_class,
    {multipart} AS is_multipart,
    NULL::VARCHAR AS encryption_status,
    NULL::BOOLEAN AS is_bucket_key_enabled,
    NULL::VARCHAR AS kms_key_arn,
    checksum_algorithm,
    tags AS object_tags,
    user_metadata
"""

_FACTS = _VERSION_FACTS.format(
    last_modified="last_modified",
    etag="nullif(etag, '')",
    storage_class="storage_class",
    multipart="is_multipart",
)

VIEWS: dict[str, str] = {
    "journal": f"""
        SELECT bucket, key, printf('%016x', lsn) AS sequence_number, record_type, record_timestamp,
            {_FACTS.strip()},
            requester, source_ip_address, request_id,
            {_JOIN_KEY} AS object_join_key
        FROM journal_events
    """,
    "inventory": f"""
        SELECT bucket, key, printf('%016x', sequence_lsn) AS sequence_number,
            {_FACTS.strip()},
            {_JOIN_KEY} AS object_join_key,
            is_latest
        FROM versions
    """,
    "s3_inventory": """
        SELECT bucket, key, nullif(version_id, 'null') AS version_id, is_latest, is_delete_marker, size,
            last_modified AS last_modified_date, nullif(etag, '') AS e_tag, storage_class,
            is_multipart AS is_multipart_uploaded,
            NULL::VARCHAR AS replication_status,
            'NOT-SSE' AS encryption_status,
            NULL::TIMESTAMP AS object_lock_retain_until_date,
            NULL::VARCHAR AS object_lock_mode,
            NULL::VARCHAR AS object_lock_legal_hold_status,
            NULL::VARCHAR AS intelligent_tiering_access_tier,
            NULL::VARCHAR AS bucket_key_status,
            checksum_algorithm,
            NULL::VARCHAR AS object_access_control_list,
            nullif(owner, '') AS object_owner
        FROM versions
    """,
    "fragments": """
        SELECT f.segment_id, f.fragment_index, f.node_id,
            CASE WHEN f.is_lost THEN 'lost' ELSE coalesce(n.state, 'lost') END AS state
        FROM segment_fragments f LEFT JOIN nodes n USING (node_id)
    """,
    # Bytes of a version that several names share (hard links) are counted once.
    # bytes_on_nodes counts every fragment of every stripe with a live frame (without fragment
    # headers), and m + 1 copies of what rides in the journal.
    "space": """
        WITH logical AS (
            SELECT coalesce(sum(size), 0)::BIGINT AS logical_bytes,
                (SELECT count(*) FROM versions WHERE NOT is_delete_marker) AS versions
            FROM (
                SELECT size, row_number() OVER (PARTITION BY file_id, is_latest ORDER BY bucket, key) AS name, is_latest
                FROM versions WHERE NOT is_delete_marker
            ) WHERE name = 1 OR NOT is_latest
        ), referenced AS (
            SELECT coalesce(sum(chunk_length), 0)::BIGINT AS unique_bytes
            FROM (SELECT DISTINCT chunk_id, scope, chunk_length FROM chunk_references)
        ), stored AS (
            SELECT coalesce(sum(stored_length), 0)::BIGINT AS stored_bytes,
                coalesce(sum(length), 0)::BIGINT AS chunk_bytes, count(*) AS chunks
            FROM chunks
        ), striped AS (
            SELECT coalesce(sum(s.fragment_length * (g.k + g.m)), 0)::BIGINT AS segment_bytes
            FROM (SELECT DISTINCT segment_id, stripe_offset, fragment_length FROM chunks WHERE NOT in_journal) s
            JOIN segments g USING (segment_id)
        ), riding AS (
            SELECT coalesce(sum(stored_length), 0)::BIGINT * (SELECT coalesce(max(m), 2) + 1 FROM segments)
                AS journal_bytes
            FROM chunks WHERE in_journal
        )
        SELECT versions, logical_bytes, unique_bytes, stored_bytes,
            segment_bytes + journal_bytes AS bytes_on_nodes, chunks,
            logical_bytes / nullif(unique_bytes, 0) AS dedup_ratio,
            chunk_bytes / nullif(stored_bytes, 0) AS compression_ratio
        FROM logical, referenced, stored, striped, riding
    """,
    # Chunks a bucket shares with others count in full here: these rows do not add up to `space`.
    "space_by_bucket": """
        WITH logical AS (
            SELECT bucket, count(*) AS versions, sum(size)::BIGINT AS logical_bytes
            FROM versions WHERE NOT is_delete_marker GROUP BY bucket
        ), referenced AS (
            SELECT bucket, sum(chunk_length)::BIGINT AS unique_bytes
            FROM (SELECT DISTINCT bucket, chunk_id, scope, chunk_length FROM chunk_references) GROUP BY bucket
        )
        SELECT b.bucket, coalesce(l.versions, 0) AS versions, coalesce(l.logical_bytes, 0) AS logical_bytes,
            coalesce(r.unique_bytes, 0) AS unique_bytes,
            l.logical_bytes / nullif(r.unique_bytes, 0) AS dedup_ratio
        FROM buckets b LEFT JOIN logical l USING (bucket) LEFT JOIN referenced r USING (bucket)
    """,
}
