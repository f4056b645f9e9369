"""SQL follows the journal: it reads its own writes, and says what the keymap says."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import anyio
import pytest
from sql_lab import STORE_ID, Lab, content_of, etag_of, memory_nodes, no_trees, opened, put, some_change

from engine.changes import (
    AbortUpload,
    CompleteUpload,
    Condition,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteKey,
    Door,
    Link,
    Origin,
    PartChoice,
    PutPart,
    Rename,
    SetBucketVersioning,
    SetTags,
)
from engine.errors import QueryFailed, StoreError
from engine.index.local import LocalIndex
from engine.index.opening import open_local_index
from engine.nodes.memory import MemoryNode
from engine.tables import client
from engine.tables.server import serve_tables
from engine.tables.service import TablesService
from engine.types import (
    Checksum,
    Content,
    Manifest,
    ObjectPart,
    Version,
    Versioning,
)

pytestmark = pytest.mark.anyio
SEEDS = int(os.environ.get("OBJFS_TEST_SEEDS", "2"))


@pytest.fixture
def nodes() -> dict[str, MemoryNode]:
    return memory_nodes()


async def test_a_query_sees_the_write_that_was_just_answered(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("bbb"))
        for number in range(20):
            await lab.commit(put("bbb", f"key {number}", b"x" * number))
            (row,) = await lab.rows("SELECT count(*) AS objects, sum(size)::BIGINT AS bytes FROM inventory")
            assert row == {"objects": number + 1, "bytes": sum(range(number + 1))}
        await lab.commit(DeleteKey("bbb", "key 7"))
        assert await lab.rows("SELECT * FROM inventory WHERE key = 'key 7'") == []


async def test_the_row_of_a_version_carries_its_facts(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("bbb"))
        facts = {"user_metadata": {"colour": "red"}, "tags": {"team": "ink"}, "checksum": Checksum("CRC32", "AAAAAA==")}
        result = await lab.commit(put("bbb", "a\0\n日本", b"hello", **facts))
        (row,) = await lab.rows("SELECT * FROM inventory")
        assert row["key"] == "a\0\n日本"
        assert row["sequence_number"] == f"{result.lsn:016x}"
        assert (row["version_id"], row["is_delete_marker"], row["size"]) == (None, False, 5)
        assert (row["e_tag"], row["checksum_algorithm"]) == (etag_of(b"hello"), "CRC32")
        assert (row["object_tags"], row["user_metadata"]) == ({"team": "ink"}, {"colour": "red"})
        assert (row["storage_class"], row["is_multipart"], row["encryption_status"]) == ("STANDARD", False, None)
        assert int(row["last_modified_date"].timestamp()) > 1_500_000_000
        (event,) = await lab.rows("SELECT * FROM journal")
        assert {name: event[name] for name in row if name != "is_latest"} == {
            name: value for name, value in row.items() if name != "is_latest"
        }
        assert (event["record_type"], event["requester"], event["source_ip_address"]) == ("CREATE", "ann", "10.0.0.7")
        tagged = await lab.commit(SetTags("bbb", "a\0\n日本", {"team": "paper"}))
        (row,) = await lab.rows("SELECT sequence_number, object_tags FROM inventory")
        assert row == {"sequence_number": f"{tagged.lsn:016x}", "object_tags": {"team": "paper"}}
        assert [e["record_type"] for e in await lab.rows("SELECT * FROM journal ORDER BY sequence_number")] == [
            "CREATE",
            "UPDATE_METADATA",
        ]


async def test_a_directory_renamed_over_an_empty_one_leaves_no_delete_marker_there(
    tmp_path: Path, nodes: dict[str, MemoryNode]
) -> None:
    """On a versioned bucket the moved marker takes the place of the one that was there."""
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("bbb"))
        await lab.commit(SetBucketVersioning("bbb", Versioning.ENABLED))
        for key in ("here/", "there/", "here/file"):
            await lab.commit(put("bbb", key))
        await lab.commit(Rename("bbb", "here/", "bbb", "there/"))
        await assert_tables_equal_keymap(lab)
        found = await lab.rows("SELECT key FROM journal WHERE is_delete_marker ORDER BY key")
        assert [row["key"] for row in found] == ["here/", "here/file"]


async def test_deletes_in_the_journal_are_as_aws_tells_them(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("bbb"))
        await lab.commit(put("bbb", "plain"))
        await lab.commit(DeleteKey("bbb", "plain"))
        await lab.commit(DeleteKey("bbb", "never there"))
        await lab.commit(SetBucketVersioning("bbb", Versioning.ENABLED))
        first = await lab.commit(put("bbb", "kept"))
        assert first.version is not None
        marker = await lab.commit(DeleteKey("bbb", "kept"))
        assert marker.version is not None
        await lab.commit(DeleteKey("bbb", "kept", version_id=first.version.version_id))
        events = await lab.rows(
            "SELECT key, record_type, version_id, is_delete_marker, size, e_tag, object_tags FROM journal "
            "ORDER BY sequence_number"
        )
        nothing = {"is_delete_marker": None, "size": None, "e_tag": None, "object_tags": None}
        created = {"record_type": "CREATE", "is_delete_marker": False, "size": 5, "e_tag": etag_of(b"hello")}
        assert events == [
            {"key": "plain", **created, "version_id": None, "object_tags": {}},
            {"key": "plain", "record_type": "DELETE", "version_id": None, **nothing},
            {"key": "kept", **created, "version_id": first.version.version_id, "object_tags": {}},
            {
                "key": "kept",
                "record_type": "DELETE",
                "version_id": marker.version.version_id,
                "is_delete_marker": True,
                "size": 0,
                "e_tag": None,
                "object_tags": None,
            },
            {"key": "kept", "record_type": "DELETE", "version_id": first.version.version_id, **nothing},
        ]


async def test_space_counts_what_is_shared_once(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("aaa"))
        await lab.commit(CreateBucket("bbb"))
        for bucket in ("aaa", "bbb"):
            for number in range(5):
                await lab.commit(put(bucket, f"copy {number}", b"z" * 1000))
        await lab.commit(Link("aaa", "copy 0", "aaa", "hard link"))
        (space,) = await lab.rows("SELECT * FROM space")
        assert (space["logical_bytes"], space["unique_bytes"], space["dedup_ratio"]) == (10_000, 1000, 10.0)
        (chunk,) = await lab.rows("SELECT * FROM chunks")
        assert (chunk["chunk_id"], chunk["length"]) == (hashlib.sha256(b"z" * 1000).hexdigest(), 1000)
        assert chunk["in_journal"] is True
        assert chunk["stored_length"] == space["stored_bytes"] < 1000
        assert len(await lab.rows("SELECT * FROM chunk_references")) == 11
        shares = await lab.rows("SELECT bucket, logical_bytes, unique_bytes FROM space_by_bucket ORDER BY bucket")
        assert [row["unique_bytes"] for row in shares] == [1000, 1000]


async def test_uploads_and_parts_come_and_go(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("bbb"))
        created = [
            await lab.commit(CreateUpload("bbb", "big", user_metadata={"m": "1"}, tags={"t": "2"})) for _ in range(2)
        ]
        ids = [result.upload_id for result in created]
        assert all(ids)
        texts = [b"one" * 100, b"two" * 100]
        choices = []
        for number, text in enumerate(texts, 1):
            for upload_id in ids:
                assert upload_id is not None
                part = await lab.commit(
                    PutPart("bbb", "big", upload_id, number, content_of(text), hashlib.md5(text).digest())
                )
                if upload_id == ids[0]:
                    choices.append(PartChoice(number, part.part.lsn if part.part else part.lsn))
        assert len(await lab.rows("SELECT * FROM uploads")) == 2
        parts = await lab.rows("SELECT * FROM parts ORDER BY upload_id, part_number")
        assert [row["part_number"] for row in parts] == [1, 2, 1, 2]
        assert len(await lab.rows("SELECT * FROM chunk_references WHERE upload_id IS NOT NULL")) == 4
        entries = [entry for text in texts for entry in content_of(text).manifest.entries]
        object_parts = [ObjectPart(number, len(text)) for number, text in enumerate(texts, 1)]
        assert ids[0] is not None and ids[1] is not None
        await lab.commit(
            CompleteUpload("bbb", "big", ids[0], choices, Content(Manifest(entries)), "abc-2", object_parts)
        )
        assert [row["upload_id"] for row in await lab.rows("SELECT upload_id FROM uploads")] == [ids[1]]
        assert {row["upload_id"] for row in await lab.rows("SELECT upload_id FROM parts")} == {ids[1]}
        (row,) = await lab.rows("SELECT * FROM inventory")
        assert (row["is_multipart"], row["size"], row["e_tag"]) == (True, 600, "abc-2")
        assert (row["user_metadata"], row["object_tags"]) == ({"m": "1"}, {"t": "2"})
        (event,) = await lab.rows("SELECT * FROM journal")
        assert {name: event[name] for name in row if name != "is_latest"} == {
            name: value for name, value in row.items() if name != "is_latest"
        }
        await lab.commit(AbortUpload("bbb", "big", ids[1]))
        for table in ("uploads", "parts"):
            assert await lab.rows(f"SELECT * FROM {table}") == []
        assert await lab.rows("SELECT * FROM chunk_references WHERE upload_id IS NOT NULL") == []


# -- against the keymap, after anything ------------------------------------------------


def keymap_versions(index: LocalIndex) -> list[tuple[Any, ...]]:
    found: list[Version] = []
    for bucket in index.keymap.buckets():
        key = version_id = ""
        while True:
            page = index.keymap.list_versions(bucket.name, key_marker=key, version_id_marker=version_id)
            found += page.versions
            if page.next_key is None:
                break
            key, version_id = page.next_key, page.next_version_id or ""
    return sorted(
        (
            v.bucket,
            v.key,
            v.version_id,
            v.is_latest,
            v.delete_marker,
            v.size,
            v.etag,
            v.last_modified_ns // 1000,
            v.is_multipart,
            v.file_id,
            tuple(sorted(v.tags.items())),
            tuple(sorted(v.user_metadata.items())),
        )
        for v in found
    )


TABLE_VERSIONS = """SELECT bucket, key, version_id, is_latest, is_delete_marker, size, etag,
    epoch_us(last_modified) AS modified, is_multipart, file_id, tags, user_metadata FROM versions"""

# The newest event of every version, permanent deletes left out: what the journal says is there.
FOLDED_JOURNAL = """SELECT * EXCLUDE (record_type, record_timestamp, requester, source_ip_address, request_id)
    FROM journal
    QUALIFY row_number() OVER (PARTITION BY bucket, key, version_id ORDER BY sequence_number DESC,
        is_delete_marker IS NULL) = 1
        AND is_delete_marker IS NOT NULL
    ORDER BY bucket, key, version_id NULLS FIRST"""
INVENTORY = "SELECT * EXCLUDE (is_latest) FROM inventory ORDER BY bucket, key, version_id NULLS FIRST"


async def assert_tables_equal_keymap(lab: Lab) -> None:
    rows = [tuple(row.values()) for row in await lab.rows(TABLE_VERSIONS)]
    seen = sorted(
        (*row[:10], tuple(sorted((row[10] or {}).items())), tuple(sorted((row[11] or {}).items()))) for row in rows
    )
    assert seen == keymap_versions(lab.index)
    assert await lab.rows(FOLDED_JOURNAL) == await lab.rows(INVENTORY)
    referenced = await lab.rows("SELECT DISTINCT chunk_id FROM chunk_references ANTI JOIN chunks USING (chunk_id)")
    assert referenced == []
    whole = await lab.rows(
        """SELECT bucket, key, version_id, v.size, sum(r.length)::BIGINT AS referenced
        FROM versions v LEFT JOIN chunk_references r USING (bucket, key, version_id)
        GROUP BY ALL HAVING v.size <> coalesce(referenced, 0)"""
    )
    assert whole == []
    (space,) = await lab.rows("SELECT * FROM space")
    counters = lab.index.keymap.counters()
    sizes = {(v[9] if v[3] else v[:3]): v[5] for v in keymap_versions(lab.index) if not v[4]}  # linked names once
    assert space["logical_bytes"] == sum(sizes.values())
    assert (space["chunks"], space["stored_bytes"]) == (counters["chunks"], counters["stored_bytes"])


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_inventory_and_journal_agree_with_the_keymap_after_anything(
    tmp_path: Path, nodes: dict[str, MemoryNode], seed: int
) -> None:
    rng = random.Random(seed)
    refused = 0
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("red"))
        await lab.commit(CreateBucket("blue"))
        for step in range(150):
            change = some_change(rng, lab.index)
            door = Door.MOUNT if getattr(change, "file_id", None) else rng.choice([Door.S3, Door.MOUNT])
            try:
                await lab.commit(change, Origin("ann", door=door))
            except StoreError:
                refused += 1
            if rng.random() < 0.15:
                try:
                    await assert_tables_equal_keymap(lab)
                except AssertionError as error:
                    raise AssertionError(f"seed {seed}, step {step}, after {change}") from error
        await assert_tables_equal_keymap(lab)
        kept = await lab.rows("FROM inventory ORDER BY ALL"), await lab.rows("FROM journal ORDER BY ALL")
    assert refused < 140
    # fed again from the journal alone, everything is as before
    (tmp_path / "index" / "tables.duckdb").unlink()
    async with opened(tmp_path, nodes) as lab:
        assert (await lab.rows("FROM inventory ORDER BY ALL"), await lab.rows("FROM journal ORDER BY ALL")) == kept


async def test_tables_take_up_where_they_stopped(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    for turn in range(3):
        async with opened(tmp_path, nodes) as lab:
            if turn == 0:
                await lab.commit(CreateBucket("bbb"))
            await lab.commit(put("bbb", f"key {turn}"))
            assert len(await lab.rows("FROM inventory")) == turn + 1
            assert len(await lab.rows("FROM journal")) == turn + 1


async def test_tables_ahead_of_the_journal_are_made_anew(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("bbb"))
        await lab.commit(put("bbb", "lost"))
        assert len(await lab.rows("FROM inventory")) == 1
    (tmp_path / "index" / "tables.duckdb").rename(tmp_path / "kept.duckdb")
    other = memory_nodes()
    for name in os.listdir(tmp_path / "index"):
        (tmp_path / "index" / name).unlink()
    (tmp_path / "kept.duckdb").rename(tmp_path / "index" / "tables.duckdb")
    async with opened(tmp_path, other) as lab:
        await lab.commit(CreateBucket("bbb"))
        for number in range(5):
            await lab.commit(put("bbb", f"new {number}"))
        assert len(await lab.rows("FROM inventory WHERE key LIKE 'new %'")) == 5
        assert await lab.rows("FROM inventory WHERE key = 'lost'") == []


async def test_far_behind_they_catch_up_in_bounded_batches(
    tmp_path: Path, nodes: dict[str, MemoryNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.tables.service.PENDING_RECORDS_MAX", 7)
    async with open_local_index(tmp_path / "index", nodes, store_id=STORE_ID, m=1, missing={}) as index:
        lab = Lab(index, None)  # type: ignore[arg-type]
        await lab.commit(CreateBucket("bbb"))
        for number in range(60):
            await lab.commit(put("bbb", f"key {number % 10}", str(number).encode()))
            if number % 9 == 8:
                await lab.commit(DeleteKey("bbb", f"key {number % 10}"))
    async with opened(tmp_path, nodes) as lab:
        await assert_tables_equal_keymap(lab)
        assert len(await lab.rows("FROM journal WHERE record_type = 'CREATE'")) == 60


async def test_the_socket_answers_and_a_stopped_server_is_told_apart(
    tmp_path: Path, nodes: dict[str, MemoryNode]
) -> None:
    assert await client.applied_lsn(tmp_path) is None
    async with open_local_index(tmp_path / "index", nodes, store_id=STORE_ID, m=1, missing={}) as index:
        service = TablesService(
            index, no_trees, tmp_path / "index" / "tables.duckdb", store_id=STORE_ID, query_seconds=2
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_tables, service, tmp_path / "index")
            lab = Lab(index, service)
            await lab.commit(CreateBucket("bbb"))
            result = await lab.commit(put("bbb", "k"))
            table = await client.query(tmp_path, "SELECT key, size FROM inventory")
            assert table.to_pylist() == [{"key": "k", "size": 5}]
            assert await client.applied_lsn(tmp_path) == result.lsn
            large = await client.query(tmp_path, "SELECT range AS n FROM range(1000000)")
            assert large.num_rows == 1_000_000
            with pytest.raises(QueryFailed, match="no_such"):
                await client.query(tmp_path, "SELECT no_such FROM inventory")
            with pytest.raises(QueryFailed, match="2 seconds"):
                await client.query(
                    tmp_path,
                    "SELECT count(*) FROM range(100000000000) a, range(999) b WHERE (a.range * b.range) % 7 = 3",
                )
            with anyio.move_on_after(0.3):  # hangs up in the middle of its query
                await client.query(
                    tmp_path, "SELECT count(*) FROM range(100000000000) a, range(999) b WHERE a.range = 3"
                )
            assert (await client.query(tmp_path, "SELECT 1 AS one")).to_pylist() == [{"one": 1}]
            tasks.cancel_scope.cancel()
    assert await client.applied_lsn(tmp_path) is None


async def test_a_deleted_bucket_leaves_no_rows(tmp_path: Path, nodes: dict[str, MemoryNode]) -> None:
    async with opened(tmp_path, nodes) as lab:
        await lab.commit(CreateBucket("bbb"))
        await lab.commit(put("bbb", "k", condition=Condition(if_none_match=["*"])))
        await lab.commit(DeleteKey("bbb", "k"))
        await lab.commit(DeleteBucket("bbb"))
        for table in ("buckets", "versions", "uploads", "parts", "chunk_references"):
            assert await lab.rows(f"FROM {table}") == []
        assert [row["record_type"] for row in await lab.rows("FROM journal ORDER BY sequence_number")] == [
            "CREATE",
            "DELETE",
        ]
