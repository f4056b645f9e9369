"""The views carry AWS's names and types, in AWS's order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.tables.database import Database

# S3 Metadata, journal tables schema (AWS user guide): String → VARCHAR, Timestamp NTZ →
# TIMESTAMP, Long → BIGINT, Map<String, String> → MAP(VARCHAR, VARCHAR).
JOURNAL = [
    ("bucket", "VARCHAR"),
    ("key", "VARCHAR"),
    ("sequence_number", "VARCHAR"),
    ("record_type", "VARCHAR"),
    ("record_timestamp", "TIMESTAMP"),
    ("version_id", "VARCHAR"),
    ("is_delete_marker", "BOOLEAN"),
    ("size", "BIGINT"),
    ("last_modified_date", "TIMESTAMP"),
    ("e_tag", "VARCHAR"),
    ("storage_class", "VARCHAR"),
    ("is_multipart", "BOOLEAN"),
    ("encryption_status", "VARCHAR"),
    ("is_bucket_key_enabled", "BOOLEAN"),
    ("kms_key_arn", "VARCHAR"),
    ("checksum_algorithm", "VARCHAR"),
    ("object_tags", "MAP(VARCHAR, VARCHAR)"),
    ("user_metadata", "MAP(VARCHAR, VARCHAR)"),
    ("requester", "VARCHAR"),
    ("source_ip_address", "VARCHAR"),
    ("request_id", "VARCHAR"),
]
NOT_IN_INVENTORY = {"record_type", "record_timestamp", "requester", "source_ip_address", "request_id"}
INVENTORY = [column for column in JOURNAL if column[0] not in NOT_IN_INVENTORY]
# S3 Inventory, ORC schema (AWS user guide, "Amazon S3 Inventory list").
S3_INVENTORY = [
    ("bucket", "VARCHAR"),
    ("key", "VARCHAR"),
    ("version_id", "VARCHAR"),
    ("is_latest", "BOOLEAN"),
    ("is_delete_marker", "BOOLEAN"),
    ("size", "BIGINT"),
    ("last_modified_date", "TIMESTAMP"),
    ("e_tag", "VARCHAR"),
    ("storage_class", "VARCHAR"),
    ("is_multipart_uploaded", "BOOLEAN"),
    ("replication_status", "VARCHAR"),
    ("encryption_status", "VARCHAR"),
    ("object_lock_retain_until_date", "TIMESTAMP"),
    ("object_lock_mode", "VARCHAR"),
    ("object_lock_legal_hold_status", "VARCHAR"),
    ("intelligent_tiering_access_tier", "VARCHAR"),
    ("bucket_key_status", "VARCHAR"),
    ("checksum_algorithm", "VARCHAR"),
    ("object_access_control_list", "VARCHAR"),
    ("object_owner", "VARCHAR"),
]
OURS = {
    "journal": [("object_join_key", "VARCHAR")],
    "inventory": [("object_join_key", "VARCHAR"), ("is_latest", "BOOLEAN")],
    "s3_inventory": [],
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(str(tmp_path_factory.mktemp("sql") / "tables.duckdb"), "store")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("view", "columns"), [("journal", JOURNAL), ("inventory", INVENTORY), ("s3_inventory", S3_INVENTORY)]
)
def test_the_view_is_aws_s_table_then_our_own_columns(
    database: Database, view: str, columns: list[tuple[str, str]]
) -> None:
    described = database.rows(f"SELECT column_name, column_type FROM (DESCRIBE {view})")
    assert described[: len(columns)] == columns
    assert described[len(columns) :] == OURS[view]


def test_no_table_has_an_index_and_no_column_holds_a_secret(database: Database) -> None:
    assert database.rows("SELECT * FROM duckdb_indexes()") == []
    assert database.rows("SELECT * FROM duckdb_constraints()") == []
    columns = [row[0] for row in database.rows("SELECT column_name FROM duckdb_columns()")]
    assert not [column for column in columns if "secret" in column]


def test_a_damaged_file_or_another_store_s_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "tables.duckdb"
    path.write_bytes(b"this is not a database" * 1000)
    made = Database(str(path), "mine")
    assert made.applied_lsn == 0
    with made.transaction():
        made.insert("users", [("ann", "AK", "full", False, 0)])
        made.advance(7, 9, "x")
    made.close()
    again = Database(str(path), "mine")
    assert (again.applied_lsn, again.state_lsn, again.fingerprint) == (7, 9, "x")
    again.close()
    others = Database(str(path), "yours")
    assert others.applied_lsn == 0
    assert others.rows("SELECT * FROM users") == []
    others.close()


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction():
        database.insert("users", [("ann", "AK", "full", False, 0)])
        raise RuntimeError
    assert database.rows("SELECT * FROM users") == []
