"""objfs serve, mount, umount, sql, status and user as a person runs them, end to end."""

from __future__ import annotations

import csv
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "OBJFS_ROOT_ACCESS_KEY": "tester",
    "OBJFS_ROOT_SECRET_KEY": "tester-secret",
}
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse to use here")


class Shop:
    """A store in a directory, and the command on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.mount = directory / "mnt"
        assert self.run("init").returncode == 0

    def run(self, *arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
        group = 2 if arguments[0] in ("user", "node") else 1
        command = [*map(str, arguments[:group]), "--data", str(self.data), *map(str, arguments[group:])]
        return subprocess.run(
            [sys.executable, "-m", "objfs", *command],
            cwd=self.directory,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            input=text,
            timeout=60,
            check=False,
        )

    def out(self, *arguments: str | Path) -> str:
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    @contextmanager
    def started(self, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A running `objfs serve` or `objfs mount`, ready, in a session of its own."""
        command, *rest = map(str, arguments)
        with open(self.directory / "log", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "objfs", command, "--data", str(self.data), *rest],
                cwd=self.directory,
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("ready"), (self.directory / "log").read_text()[-3000:]
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    for pid in session(process.pid):
                        os.kill(pid, signal.SIGKILL)
                    process.wait()
            process.stdout.close()
            subprocess.run(["fusermount3", "-u", "-z", self.mount], stderr=subprocess.DEVNULL, check=False)

    def serving(self, *arguments: str | Path) -> object:
        return self.started("serve", "--listen", "127.0.0.1:0", *arguments)

    def s3(self) -> object:
        lines = self.out("credentials").splitlines()
        keys = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        return boto3.client(
            "s3",
            endpoint_url=keys["AWS_ENDPOINT_URL"],
            region_name=keys["AWS_DEFAULT_REGION"],
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}),
        )


def session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_serves_answers_and_drains(shop: Shop, workers: str) -> None:
    with shop.serving("--workers", workers) as server:
        s3 = shop.s3()
        s3.create_bucket(Bucket="first")
        s3.put_object(Bucket="first", Key="a/b.txt", Body=b"hello")
        assert s3.get_object(Bucket="first", Key="a/b.txt")["Body"].read() == b"hello"
        assert json.loads(shop.out("sql", "SELECT bucket, key, size FROM inventory", "--format", "json")) == [
            {"bucket": "first", "key": "a/b.txt", "size": 5}
        ]
        report = json.loads(shop.out("status", "--json"))
        assert [node["state"] for node in report["nodes"]] == ["healthy"] * 6
        assert (report["objects"], report["under_redundancy"], report["tables"]["lag_records"]) == (1, 0, 0)
        server.terminate()
        assert server.wait(40) == 0
        assert session(server.pid) == []
    assert shop.out("fsck") == "no problems found\n"
    assert "first" in shop.out("sql", "SELECT bucket FROM inventory")


@needs_fuse
@pytest.mark.parametrize("workers", ["0", "1"])
def test_every_door_shows_the_same(shop: Shop, workers: str) -> None:
    with shop.serving("--workers", workers, "--mount", shop.mount) as server:
        s3 = shop.s3()
        (shop.mount / "made-by-mkdir").mkdir()
        (shop.mount / "made-by-mkdir" / "file").write_bytes(b"through the mount")
        assert s3.get_object(Bucket="made-by-mkdir", Key="file")["Body"].read() == b"through the mount"
        s3.put_object(Bucket="made-by-mkdir", Key="file", Body=b"through S3")
        assert (shop.mount / "made-by-mkdir" / "file").read_bytes() == b"through S3"
        server.terminate()
        assert server.wait(40) == 0
    assert not os.path.ismount(shop.mount)
    assert list(shop.mount.iterdir()) == []


@needs_fuse
def test_a_dead_mount_is_cleared_and_everything_killed_comes_back(shop: Shop) -> None:
    with shop.serving("--workers", "1", "--mount", shop.mount) as server:
        shop.s3().create_bucket(Bucket="kept")
        for pid in session(server.pid):
            os.kill(pid, signal.SIGKILL)
        server.wait()
        with pytest.raises(OSError):
            os.listdir(shop.mount)
        with shop.serving("--workers", "1", "--mount", shop.mount):
            assert os.listdir(shop.mount) == ["kept"]


@needs_fuse
def test_mount_and_umount_without_a_server(shop: Shop) -> None:
    with shop.started("mount", shop.mount) as mounted:
        (shop.mount / "bucket").mkdir()
        (shop.mount / "bucket" / "file").write_text("x")
        assert "1" in shop.out("sql", "SELECT size FROM inventory")
        shop.out("umount", shop.mount)
        assert mounted.wait(40) == 0
    refused = shop.run("umount", shop.mount)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)


def test_a_killed_worker_is_replaced_while_the_others_serve(shop: Shop) -> None:
    with shop.serving("--workers", "2") as server:
        s3 = shop.s3()
        s3.create_bucket(Bucket="kept")
        before = set(session(server.pid))
        for pid in sorted(before)[1:]:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(set(session(server.pid)) - before) == len(before) - 1)
        eventually(lambda: healthy(s3.meta.endpoint_url))
        assert [bucket["Name"] for bucket in shop.s3().list_buckets()["Buckets"]] == ["kept"]


def healthy(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=2)
    try:
        connection.request("GET", "/_objfs/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_a_second_server_on_the_store_is_refused_in_one_line(shop: Shop) -> None:
    with shop.serving("--workers", "1"):
        refused = shop.run("serve", "--listen", "127.0.0.1:0")
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)


def test_users_are_added_listed_and_limited(shop: Shop) -> None:
    shop.out("user", "add", "reader", "--access", "read", "--access-key", "reader-key", "--secret-key", "reader-secret")
    with shop.serving("--workers", "1"):
        shop.s3().create_bucket(Bucket="first")
        listed = json.loads(shop.out("user", "list", "--json"))
        assert [(user["name"], user["access"]) for user in listed] == [("root", "full"), ("reader", "read")]
        reader = boto3.client(
            "s3",
            endpoint_url=shop.s3().meta.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="reader-key",
            aws_secret_access_key="reader-secret",
        )
        assert [bucket["Name"] for bucket in reader.list_buckets()["Buckets"]] == ["first"]
        with pytest.raises(reader.exceptions.ClientError, match="AccessDenied"):
            reader.put_object(Bucket="first", Key="k", Body=b"")
    assert shop.run("user", "add", "reader").returncode == 1


def test_sql_writes_every_format_and_reports_errors_in_one_line(shop: Shop) -> None:
    target = shop.directory / "answer"
    for form in ("table", "csv", "json", "parquet"):
        shop.out("sql", "SELECT 1 AS one, 'x' AS two", "--format", form, "--output", target)
        if form == "csv":
            assert list(csv.reader(target.read_text().splitlines())) == [["one", "two"], ["1", "x"]]
        if form == "json":
            assert json.loads(target.read_text()) == [{"one": 1, "two": "x"}]
    assert target.read_bytes()[:4] == b"PAR1"
    wrong = shop.run("sql", "SELECT nothing FROM nowhere")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    forbidden = shop.run("sql", "DROP TABLE nodes")
    assert forbidden.returncode == 1
    assert shop.run("sql", "SELECT 1", "--format", "parquet").returncode == 1
