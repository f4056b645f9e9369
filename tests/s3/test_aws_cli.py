"""aws-cli of today, with its defaults."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.s3.conftest import Server

AWS = Path(sys.executable).parent / "aws"
pytestmark = pytest.mark.skipif(not AWS.exists(), reason="aws-cli is not installed beside this Python")


def _aws(server: Server, *arguments: str) -> str:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    command = [str(AWS), "--endpoint-url", server.url, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sync_there_and_back_keeps_every_file(server: Server, bucket: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name, size in (("a", 0), ("deep/er/b c+d", 1000), ("deep/ü", 70_000), ("large", 12 * 1024 * 1024)):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
        os.utime(path, (1_700_000_000, 1_700_000_000))  # LastModified has whole seconds: not of this one
    _aws(server, "s3", "sync", str(source), f"s3://{bucket}/p/")
    _aws(server, "s3", "sync", f"s3://{bucket}/p/", str(target))
    assert subprocess.run(["diff", "-r", source, target]).returncode == 0
    assert _aws(server, "s3", "sync", str(source), f"s3://{bucket}/p/") == "", "a second sync has nothing to do"
    _aws(server, "s3", "cp", f"s3://{bucket}/p/large", f"s3://{bucket}/copy")
    _aws(server, "s3", "mv", f"s3://{bucket}/copy", f"s3://{bucket}/moved")
    assert "moved" in _aws(server, "s3", "ls", f"s3://{bucket}/")
    _aws(server, "s3", "rm", "--recursive", f"s3://{bucket}/")
    assert _aws(server, "s3", "ls", f"s3://{bucket}/") == ""


def test_empty_files_among_others_do_not_stall_a_sync(server: Server, bucket: str, tmp_path: Path) -> None:
    """Each connection carries uploads of no bytes and of some, in turn: the client waits
    for `100 Continue` on both."""
    for number in range(60):
        (tmp_path / f"{number:02}").write_bytes(b"" if number % 3 == 0 else b"content")
    started = time.monotonic()
    _aws(server, "s3", "sync", str(tmp_path), f"s3://{bucket}/")
    # A misread answer costs the client the keep-alive timeout, over and over; none takes seconds.
    assert time.monotonic() - started < 25
    assert len(_aws(server, "s3", "ls", f"s3://{bucket}/").splitlines()) == 60
