"""objfs checkpoint beside a server, and objfs rebuild-index without one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from running import Failed, RunningStore


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningStore]:
    running = RunningStore(tmp_path, workers=1, mounted=False)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def client_of(server: RunningStore) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


def contents(server: RunningStore) -> dict[str, bytes]:
    client = client_of(server)
    listed = client.list_objects_v2(Bucket="bucket")["Contents"]
    return {item["Key"]: client.get_object(Bucket="bucket", Key=item["Key"])["Body"].read() for item in listed}


def test_a_checkpoint_beside_a_server_and_the_index_rebuilt_after_it(server: RunningStore, tmp_path: Path) -> None:
    client = client_of(server)
    client.create_bucket(Bucket="bucket")
    for number in range(30):
        client.put_object(Bucket="bucket", Key=f"key{number}", Body=b"small %d" % number)
    before = contents(server)
    said = server.objfs("checkpoint")
    assert "index snapshot at LSN" in said and "moved 30 chunks" in said
    assert json.loads(server.objfs("checkpoint", "--json"))["moved_chunks"] == 0
    client.put_object(Bucket="bucket", Key="after", Body=b"after")
    with pytest.raises(Failed, match="is open in another process; stop objfs serve"):
        server.objfs("rebuild-index")
    server.stop()
    os.rename(tmp_path / "data" / "nodes" / "1", tmp_path / "away1")
    os.rename(tmp_path / "data" / "nodes" / "4", tmp_path / "away4")
    said = server.objfs("rebuild-index")
    assert "rebuilt the index from the snapshot at LSN" in said and "31 objects, 31 versions" in said
    assert said.count("note: done without a node") == 2
    server.start()
    assert contents(server) == before | {"after": b"after"}


def test_an_index_that_is_gone_comes_back_when_the_server_starts(server: RunningStore, tmp_path: Path) -> None:
    client = client_of(server)
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="key", Body=b"small")
    server.objfs("checkpoint")
    client.put_object(Bucket="bucket", Key="after", Body=b"after")
    server.stop()
    shutil.rmtree(tmp_path / "data" / "index")
    server.start()
    assert contents(server) == {"key": b"small", "after": b"after"}
    server.stop()
    keymap = tmp_path / "data" / "index" / "keymap.sqlite"
    content = bytearray(keymap.read_bytes())
    content[len(content) // 2] ^= 1
    keymap.write_bytes(content)
    server.start()
    assert contents(server) == {"key": b"small", "after": b"after"}
    assert "does not have its checksum" in server.log.read_text()
