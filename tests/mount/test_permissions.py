"""Permissions as another user meets them. The kernel checks them (default_permissions)."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from mount_process import SECONDS_MAX, MountProcess

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
NOBODY = 65534


@pytest.fixture
def bucket(mount: MountProcess) -> Path:
    # The way to the mount must be open to that user too.
    for above in mount.top.parents:
        if above.name.startswith("pytest"):
            above.chmod(0o755)
    mount.top.parent.chmod(0o755)
    return mount.top / "bucket"


def as_nobody(bucket: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        cwd=bucket,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def test_what_others_may_not_do(bucket: Path) -> None:
    (bucket / "file").write_bytes(b"mine")
    (bucket / "secret").write_bytes(b"mine")
    os.chmod(bucket / "secret", 0o600)
    assert as_nobody(bucket, "cat file").stdout == "mine"
    for script in ("cat secret", "echo x >> file", "touch new", "rm -f file", "mv file other", "chmod 777 file"):
        assert as_nobody(bucket, script).returncode != 0, script
    assert sorted(os.listdir(bucket)) == ["file", "secret"]


def test_what_others_make_is_theirs(bucket: Path) -> None:
    (bucket / "open").mkdir()
    os.chmod(bucket / "open", 0o1777)
    (bucket / "open" / "roots").touch()
    done = as_nobody(bucket, "umask 027; cd open && mkdir d && echo x > d/f && chmod 4755 d/f && ln -s f d/l")
    assert done.returncode == 0, done.stderr
    seen = os.stat(bucket / "open" / "d" / "f")
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (NOBODY, NOBODY, 0o4755)
    assert stat.S_IMODE(os.stat(bucket / "open" / "d").st_mode) == 0o750
    assert as_nobody(bucket, "rm -f open/roots").returncode != 0, "the sticky bit keeps what is not theirs"
    assert as_nobody(bucket, "echo y >> open/d/f").returncode == 0
    assert stat.S_IMODE(os.stat(bucket / "open" / "d" / "f").st_mode) == 0o755, "a write takes set-user-id away"


def test_a_set_group_id_directory_hands_down_its_group(bucket: Path) -> None:
    (bucket / "shared").mkdir()
    os.chown(bucket / "shared", 0, 1234)
    os.chmod(bucket / "shared", 0o2777)
    assert as_nobody(bucket, "mkdir shared/d && touch shared/f").returncode == 0
    assert os.stat(bucket / "shared" / "f").st_gid == 1234
    below = os.stat(bucket / "shared" / "d")
    assert below.st_gid == 1234 and below.st_mode & stat.S_ISGID
