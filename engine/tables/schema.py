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

SCHEMA_VERSION = 3

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

_EVENTS = {
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
}
_EVENT_BUCKETS = {"bucket": TEXT, "versioning": TEXT}
_EVENT_UPLOADS = {
    "upload_id": TEXT,
    "storage_class": TEXT,
    "initiated_ns": WHOLE,
    "user_metadata": MAP,
    "tags": MAP,
}

TABLES: dict[str, dict[str, str]] = {
    # One row: how far the tables are. `fingerprint` is that of the record at applied_lsn,
    # by which a journal that lost its tail, or another store's, is recognised ('': not known).
    "tables_state": {
        "schema_version": SMALL,
        "store_id": TEXT,
        "m": SMALL,  # of the store: journal files have m + 1 replicas
        "applied_lsn": WHOLE,
        "state_lsn": WHOLE,  # of the keymap the newest rows were read from: later while catching up
        "fingerprint": TEXT,
        "loaded_lsn": WHOLE,  # of the keymap everything was read from when the tables were made
        "recalled_lsn": WHOLE,  # up to which the events before that have been read back from the journal
        "oldest_lsn": WHOLE,  # of those events
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
    # upload still open (then version_id is NULL). A node of a large manifest's tree is a chunk
    # too: it stands before the rows it leads to, with length 0. One that could not be read
    # stands for them, with their length.
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
        "is_tree": FLAG,
    },
    # What the view `segments` shows beside what lies in them.
    "segment_states": {
        "segment_id": TEXT,
        "code": TEXT,
        "k": SMALL,
        "m": SMALL,
        "owner": TEXT,
        "state": TEXT,
        "size": WHOLE,  # bytes of one fragment file; 0 while open
        "stripes": WHOLE,
        "is_condemned": FLAG,  # nothing new is matched in it: it is about to be deleted
        "scrubbed": TIME,  # when every byte of it was last read and checked; NULL: never yet
    },
    "segment_fragments": {
        "segment_id": TEXT,
        "fragment_index": SMALL,
        "node_id": TEXT,
        "is_lost": FLAG,  # not written whole, or found missing or rotten, and not repaired since
    },
    "nodes": {
        "node_id": TEXT,
        "path": TEXT,
        "domain": TEXT,
        "state": TEXT,
        "generation": SMALL,  # raised when an empty directory took the node's place
        "since": TIME,  # when it came into its state
        "drains_again": FLAG,  # it was draining when it was lost, and will be once it is there again
    },
    # What stands in the quarantine of each node that is there. No record tells of it: the nodes
    # are read anew for every statement that asks for it, so these are the rows of the last one.
    "quarantine": {
        "node_id": TEXT,
        "file": TEXT,  # what it was on the node
        "set_aside": TIME,
        "size": WHOLE,  # NULL: only the note is there
        "reason": TEXT,
        "path": TEXT,  # where it stands now
    },
    "users": {"name": TEXT, "access_key": TEXT, "access": TEXT, "is_root": FLAG, "created": TIME},
    # Every change of an object as it happened, after loaded_lsn. A permanent delete has no facts.
    # Rows of record_type 'STATE' are no events: they tell what was there at loaded_lsn.
    "journal_events": _EVENTS,
    # What the derivation of journal_events must remember of the state at applied_lsn.
    "journal_buckets": _EVENT_BUCKETS,
    "journal_uploads": _EVENT_UPLOADS,
    # The same for the records up to loaded_lsn that the journal and its archives still hold.
    "past_events": _EVENTS,
    "past_buckets": _EVENT_BUCKETS,
    "past_uploads": _EVENT_UPLOADS,
    # Every change of the store itself: of segments, nodes and the journal. One row for each
    # segment, journal file or node it is about.
    "store_journal": {
        "sequence_number": TEXT,  # as in `journal`
        "record_type": TEXT,  # the change, as in OPEN_SEGMENT
        "record_timestamp": TIME,
        "segment_id": TEXT,
        "node_id": TEXT,
        "journal_lsn": WHOLE,  # first LSN of the journal file, or of those that stay
        "chunks": WHOLE,  # moved, or dropped; of the whole change
        "details": TEXT,
        "requester": TEXT,
        "request_id": TEXT,
    },
}


def create_table(name: str) -> str:
    columns = ", ".join(f'"{column}" {kind}' for column, kind in TABLES[name].items())
    return f"CREATE OR REPLACE TABLE {name} ({columns})"


def arrow_schema(name: str) -> pyarrow.Schema:
    return pyarrow.schema([(column, ARROW_TYPES[kind]) for column, kind in TABLES[name].items()])


# The join key of AWS's annotation tables: one value for one version of one object.
_JOIN_KEY = "md5(bucket || chr(10) || key || chr(10) || version_id)"

_THERE = "('healthy', 'draining')"  # states of a node whose fragments can be read

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
        FROM (FROM past_events UNION ALL FROM journal_events) WHERE record_type <> 'STATE'
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
    # A fragment counts while it is whole and its node is there (healthy or draining).
    "fragments": f"""
        SELECT f.segment_id, f.fragment_index, f.node_id,
            CASE WHEN f.is_lost THEN 'lost' ELSE coalesce(n.state, 'lost') END AS state,
            f.is_lost, n.state AS node_state, NOT f.is_lost AND coalesce(n.state IN {_THERE}, false) AS is_readable
        FROM segment_fragments f LEFT JOIN nodes n USING (node_id)
    """,
    # losses_left: so many more of its readable fragments can be lost and all of it still reads;
    # below 0 it does not. live_bytes are the frames of chunks that something names, dead_bytes
    # those of chunks that nothing names; live_share tells how full of live frames it is.
    "segments": """
        WITH lying AS (
            SELECT c.segment_id,
                coalesce(sum(c.stored_length) FILTER (r.chunk_id IS NOT NULL), 0)::BIGINT AS live_bytes,
                coalesce(sum(c.stored_length) FILTER (r.chunk_id IS NULL), 0)::BIGINT AS dead_bytes
            FROM chunks c LEFT JOIN (SELECT DISTINCT chunk_id, scope FROM chunk_references) r USING (chunk_id, scope)
            WHERE NOT c.in_journal GROUP BY c.segment_id
        ), readable AS (
            SELECT segment_id, count(*) FILTER (is_readable) AS fragments FROM fragments GROUP BY segment_id
        )
        SELECT s.segment_id, s.code, s.k, s.m, s.owner, s.state, s.size, s.stripes,
            coalesce(l.live_bytes, 0) AS live_bytes, coalesce(l.dead_bytes, 0) AS dead_bytes,
            coalesce(l.live_bytes, 0) / nullif(s.k * s.size, 0) AS live_share,
            s.is_condemned, s.scrubbed, coalesce(f.fragments, 0)::INTEGER - s.k AS losses_left
        FROM segment_states s LEFT JOIN lying l USING (segment_id) LEFT JOIN readable f USING (segment_id)
    """,
    # losses_full is what it would be with every node there. A chunk that still rides in the journal
    # has m + 1 replicas, of which at most one lies on each node that is not there: losses_left
    # is what is certain (-1: it may be that no replica is there).
    "chunk_protection": f"""
        WITH segment AS (
            SELECT s.segment_id, any_value(s.m) AS losses_full,
                (count(*) FILTER (f.is_readable) - any_value(s.k))::INTEGER AS losses_left
            FROM segment_states s JOIN fragments f USING (segment_id) GROUP BY s.segment_id
        ), journal AS (
            SELECT m AS losses_full,
                greatest(m - (SELECT count(*) FROM nodes WHERE state NOT IN {_THERE}), -1)::INTEGER AS losses_left
            FROM tables_state
        )
        SELECT c.chunk_id, c.scope, c.segment_id,
            CASE WHEN c.in_journal THEN j.losses_left ELSE coalesce(s.losses_left, -1) END AS losses_left,
            CASE WHEN c.in_journal THEN j.losses_full ELSE s.losses_full END AS losses_full
        FROM chunks c LEFT JOIN segment s USING (segment_id) CROSS JOIN journal j
    """,
    # How many more losses each version survives: the fewest of its chunks, those of its manifest's
    # tree included. A version of no chunks (empty, or all holes and inline bytes) lies in the
    # journal alone, and survives what that survives. at_risk_chunks: those below full protection.
    "protection": f"""
        WITH named AS (
            SELECT r.bucket, r.key, r.version_id, min(coalesce(p.losses_left, -1)) AS losses_left,
                count(DISTINCT r.chunk_id) FILTER (p.losses_full IS NULL OR p.losses_left < p.losses_full) AS at_risk
            FROM (SELECT DISTINCT bucket, key, version_id, chunk_id, scope FROM chunk_references) r
            LEFT JOIN chunk_protection p USING (chunk_id, scope)
            WHERE r.version_id IS NOT NULL GROUP BY ALL
        ), journal AS (
            SELECT greatest(m - (SELECT count(*) FROM nodes WHERE state NOT IN {_THERE}), -1)::INTEGER AS losses_left
            FROM tables_state
        )
        SELECT v.bucket, v.key, v.version_id, v.is_latest,
            CASE WHEN n.losses_left IS NULL THEN j.losses_left ELSE n.losses_left END AS losses_left,
            coalesce(n.at_risk, 0) AS at_risk_chunks,
            {_JOIN_KEY} AS object_join_key
        FROM versions v LEFT JOIN named n USING (bucket, key, version_id) CROSS JOIN journal j
        WHERE NOT v.is_delete_marker
    """,
    # Bytes of a version that several names share (hard links) are counted once. unique_bytes and
    # stored_bytes include the nodes of manifests' trees; unreferenced_bytes are the frames of chunks
    # that nothing names, which collection frees. bytes_on_nodes counts every fragment of every
    # stripe with a known frame (without fragment headers), and m + 1 copies of what rides in the journal.
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
        ), unreferenced AS (
            SELECT coalesce(sum(stored_length), 0)::BIGINT AS unreferenced_bytes
            FROM chunks ANTI JOIN chunk_references USING (chunk_id, scope)
        ), striped AS (
            SELECT coalesce(sum(s.fragment_length * (g.k + g.m)), 0)::BIGINT AS segment_bytes
            FROM (SELECT DISTINCT segment_id, stripe_offset, fragment_length FROM chunks WHERE NOT in_journal) s
            JOIN segment_states g USING (segment_id)
        ), riding AS (
            SELECT coalesce(sum(stored_length), 0)::BIGINT * (SELECT m + 1 FROM tables_state) AS journal_bytes
            FROM chunks WHERE in_journal
        )
        SELECT versions, logical_bytes, unique_bytes, stored_bytes, unreferenced_bytes,
            segment_bytes + journal_bytes AS bytes_on_nodes, chunks,
            logical_bytes / nullif(unique_bytes, 0) AS dedup_ratio,
            chunk_bytes / nullif(stored_bytes, 0) AS compression_ratio
        FROM logical, referenced, stored, unreferenced, striped, riding
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
