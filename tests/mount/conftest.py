"""A mounted store, served by a process of its own."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_process import SECONDS_MAX, MountProcess, start_mount

from engine.store import init_store


# "alone": the mount's process owns the store; "joined": its index runs in another one.
@pytest.fixture(params=["alone"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MountProcess]:
    """A mounted store with one bucket, `bucket`."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse here")
    data, top = tmp_path / "data", tmp_path / "mnt"
    init_store(data)
    # A hung mount would hang the test that waits for it: killing its process frees both.
    process = start_mount(request.param, data, top)
    watchdog = threading.Timer(2 * SECONDS_MAX, process.process.kill)
    watchdog.start()
    try:
        process.other("bucket", "bucket")
        yield process
    finally:
        watchdog.cancel()
        if process.process.poll() is None:
            process.stop()
        subprocess.run(["umount", "-l", str(top)], capture_output=True, check=False)
        log = (tmp_path / "mount.log").read_text()
        assert "Traceback" not in log, log
