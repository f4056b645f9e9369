"""objfs gc and compact as a person runs them, beside a server with workers and a mount, and
what a full disk does at the doors."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "OBJFS_ROOT_ACCESS_KEY": "tester",
    "OBJFS_ROOT_SECRET_KEY": "tester-secret",
}
MIB = 1024 * 1024
SEED = int(os.environ.get("OBJFS_TEST_SEED", "9"))
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse to use here")


def objfs(data: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "objfs", command, "--data", str(data), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def collected(data: Path, command: str, *arguments: str) -> dict[str, Any]:
    done = objfs(data, command, "--json", *arguments)
    assert done.returncode == 0, done
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def serving(data: Path, *arguments: str) -> Iterator[Any]:
    """A running server; an S3 client of it."""
    log = data.parent / "serve.log"
    with open(log, "a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "objfs", "serve", "--data", str(data), "--listen", "127.0.0.1:0", *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready"), log.read_text()[-3000:]
        address = next(word.rstrip(",") for word in line.split() if word.startswith("http"))
        yield boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id="tester",
            aws_secret_access_key="tester-secret",
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def node_bytes(data: Path) -> int:
    """Really taken on the nodes, the reserves apart."""
    files = [path for path in data.glob("nodes/*/**/*") if path.is_file() and path.name != "reserve"]
    return sum(path.stat().st_size for path in files)


def open_deleted_bytes(data: Path) -> int:
    """Of files under the nodes that are deleted and that some process still has open."""
    count = 0
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
            if target.startswith(str(data)) and target.endswith(" (deleted)") and "/segments/" in target:
                count += os.stat(link).st_size
        except OSError:
            continue  # it ended meanwhile
    return count


def test_collection_beside_a_server_under_load(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert objfs(data, "init", "--reserve", "1MiB").returncode == 0
    dice = random.Random(SEED)
    kept = {f"kept{number}": dice.randbytes(dice.choice((100, 50_000, 900_000))) for number in range(12)}
    with serving(data, "--workers", "2") as s3:
        s3.create_bucket(Bucket="bucket")
        empty = node_bytes(data)
        for key, content in kept.items():
            s3.put_object(Bucket="bucket", Key=key, Body=content)
            s3.put_object(Bucket="bucket", Key=key + "-gone", Body=dice.randbytes(1_000_000))
        for key in kept:
            s3.delete_object(Bucket="bucket", Key=key + "-gone")
        stop, wrong = threading.Event(), list[str]()

        def read_and_write() -> None:
            number = 0
            while not stop.is_set():
                for key, content in kept.items():
                    if s3.get_object(Bucket="bucket", Key=key)["Body"].read() != content:
                        wrong.append(key)
                number += 1
                body = random.Random(number % 3).randbytes(300_000)  # the same content again and again
                s3.put_object(Bucket="bucket", Key="rewritten", Body=body)
                if s3.get_object(Bucket="bucket", Key="rewritten")["Body"].read() != body:
                    wrong.append("rewritten")
                s3.delete_object(Bucket="bucket", Key="rewritten")

        clients = [threading.Thread(target=read_and_write)]
        for client in clients:
            client.start()
        try:
            said = collected(data, "compact", "--dry-run")
            assert said["buckets"]["bucket"] > 11_000_000
            result = collected(data, "compact")
            assert result["freed_bytes"] > 11_000_000 and result["unsealed"] == result["reasons"] == []
            for _ in range(3):
                collected(data, "compact")
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert wrong == []
        assert open_deleted_bytes(data) == 0
        # One percent of these must hold the history of some thousand requests, which is kept.
        s3.put_object(Bucket="bucket", Key="large", Body=os.urandom(36_000_000))
        for key in [*kept, "large"]:
            s3.delete_object(Bucket="bucket", Key=key)
        collected(data, "gc")
        assert not list(data.glob("nodes/*/segments/*/*"))
        assert node_bytes(data) < empty + 0.01 * 48_000_000 * 1.5
    assert objfs(data, "fsck").returncode == 0
    assert collected(data, "gc")["segments"] == 0


@needs_fuse
def test_a_full_disk_at_the_doors(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no filesystem can be mounted here")
    try:
        fill_and_empty(disk / "data", tmp_path / "mnt")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "mnt")], capture_output=True, check=False)
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill_and_empty(data: Path, mounted: Path) -> None:
    assert objfs(data, "init", "--code", "2+1", "--reserve", "10MiB").returncode == 0
    dice, held = random.Random(SEED), dict[str, bytes]()
    with serving(data, "--workers", "1", "--mount", str(mounted)) as s3:
        s3.create_bucket(Bucket="bucket")
        with pytest.raises(ClientError) as refused:
            for number in range(200):
                content = dice.randbytes(4 * MIB)
                s3.put_object(Bucket="bucket", Key=f"k{number}", Body=content)
                held[f"k{number}"] = content
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 507
        assert refused.value.response["Error"]["Code"] == "InsufficientStorage"
        with open(mounted / "bucket" / "file", "wb", buffering=0) as file:
            with pytest.raises(OSError) as full:  # at write(2), not at close
                file.write(dice.randbytes(MIB))
            assert full.value.errno == errno.ENOSPC
        for key, content in held.items():
            assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == content
            assert (mounted / "bucket" / key).read_bytes() == content
        keys = sorted(held)
        for key in keys[: len(keys) // 2]:
            s3.delete_object(Bucket="bucket", Key=key)
        for key in keys[len(keys) // 2 : -2]:
            os.unlink(mounted / "bucket" / key)
        result = collected(data, "compact")
        assert result["freed_bytes"] > (len(keys) - 3) * 4 * MIB
        for key in keys[-2:]:
            assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == held[key]
        (mounted / "bucket" / "file").write_bytes(held["k0"])
        assert s3.get_object(Bucket="bucket", Key="file")["Body"].read() == held["k0"]


def test_a_collection_killed_at_any_time_is_taken_up_by_the_next(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert objfs(data, "init", "--code", "2+1", "--reserve", "1MiB").returncode == 0
    dice = random.Random(SEED)
    rounds = int(os.environ.get("OBJFS_KILL_ROUNDS", "5"))
    held: dict[str, bytes] = {}
    with serving(data, "--workers", "1") as s3:
        s3.create_bucket(Bucket="bucket")
        for number in range(rounds):
            for key in range(12):
                content = dice.randbytes(dice.choice((200, 40_000, 700_000, 3_000_000)))
                s3.put_object(Bucket="bucket", Key=f"k{key}", Body=content)
                held[f"k{key}"] = content
            for key in dice.sample(sorted(held), 4):
                s3.delete_object(Bucket="bucket", Key=key)
                del held[key]
            with subprocess.Popen(
                [sys.executable, "-m", "objfs", "compact", "--data", str(data)],
                env=ENVIRONMENT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as killed:
                time.sleep(0.4 + dice.random() * 2.5)
                killed.kill()
            for key, content in held.items():
                assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == content, f"seed {SEED} round {number}"
        collected(data, "compact")
        for key, content in held.items():
            assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == content
        for key in held:
            s3.delete_object(Bucket="bucket", Key=key)
        collected(data, "gc")
        assert not list(data.glob("nodes/*/segments/*/*")) and not list(data.glob("nodes/*/quarantine/*"))
    assert objfs(data, "fsck").returncode == 0
