"""Access, concurrency, clients that leave, and ends in order."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError

from engine.secrets import read_root_keys
from engine.store import init_store, open_store
from engine.types import Access
from tests.s3.conftest import ROOT, Server, _end, _process, error_of, free_port


def _add_user(server: Server, access: Access) -> tuple[str, str]:
    async def add() -> tuple[str, str]:
        async with open_store(server.data) as store:
            added = await store.users.add(f"u{secrets.token_hex(4)}", access=access)
            return added.access_key, added.secret_key

    return anyio.run(add)


def test_a_reader_may_read_and_not_write(server: Server, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    access_key, secret_key = _add_user(server, Access.READ)
    reader = server.client(access_key=access_key, secret_key=secret_key)
    assert reader.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    assert reader.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    for call in (
        lambda: reader.put_object(Bucket=bucket, Key="k", Body=b"y"),
        lambda: reader.delete_object(Bucket=bucket, Key="k"),
        lambda: reader.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]}),
        lambda: reader.create_bucket(Bucket=f"{bucket}-2"),
        lambda: reader.copy_object(Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "k"}),
        lambda: reader.create_multipart_upload(Bucket=bucket, Key="k"),
        lambda: reader.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": []}),
    ):
        with pytest.raises(ClientError) as raised:
            call()
        assert error_of(raised) == ("AccessDenied", 403)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_of_racing_creators_exactly_one_wins(s3: Any, bucket: str) -> None:
    def create(number: int) -> bool:
        try:
            s3.put_object(Bucket=bucket, Key="k", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "PreconditionFailed"
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = [number for number, wins in enumerate(threads.map(create, range(16))) if wins]
    assert len(won) == 1
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == str(won[0]).encode()


def test_a_write_is_seen_at_once_by_every_connection(server: Server, bucket: str) -> None:
    clients = [server.client() for _ in range(4)]
    for number in range(20):
        clients[number % 4].put_object(Bucket=bucket, Key="k", Body=str(number).encode())
        for client in clients:
            assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == str(number).encode()


def test_a_large_body_refused_early_still_gets_its_answer(s3: Any) -> None:
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=f"absent-{secrets.token_hex(4)}", Key="k", Body=bytes(64 * 1024 * 1024))
    assert error_of(raised) == ("NoSuchBucket", 404)


def test_a_client_that_leaves_in_a_download_harms_nobody(server: Server, s3: Any, bucket: str) -> None:
    content = os.urandom(16 * 1024 * 1024)
    s3.put_object(Bucket=bucket, Key="k", Body=content)
    headers = server.sign("GET", f"/{bucket}/k")
    head = f"GET /{bucket}/k HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(f"{head}\r\n".encode())
            assert connection.recv(100_000).startswith(b"HTTP/1.1 200")
    got = s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()


def test_a_worker_drains_what_is_under_way_when_told_to_end(tmp_path: Path) -> None:
    data = tmp_path / "store"
    init_store(data)
    keys, port = read_root_keys(data), free_port()
    server = Server(data, port, keys.access_key, keys.secret_key)
    index = _process("engine.process", str(data))
    worker = _process("gateway.worker", str(data), f"127.0.0.1:{port}")
    try:
        client = server.client()
        client.create_bucket(Bucket="drain")
        headers = server.sign("PUT", "/drain/k", {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
        head = "PUT /drain/k HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(f"{head}Content-Length: 10\r\n\r\n".encode() + b"hello")
            time.sleep(0.3)
            worker.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(b"there")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        _end(worker)
        _end(index)


def test_a_worker_without_a_store_says_so_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.worker", str(tmp_path / "none"), f"127.0.0.1:{free_port()}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("objfs: ")
