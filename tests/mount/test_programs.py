"""Programs people run on a filesystem, on the mount."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading

import pytest
from mount_process import MountProcess

pytestmark = pytest.mark.parametrize("mount", ["alone", "joined"], indirect=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git(mount: MountProcess) -> None:
    work = mount.top / "bucket" / "work"
    work.mkdir()
    for number in range(20):
        (work / f"file-{number}").write_text(f"line {number}\n" * 200)
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(work), "-c", "user.name=n", "-c", "user.email=e@x", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    (work / "file-3").write_text("changed")
    git("mv", "file-4", "moved")
    git("commit", "-qam", "two")
    git("gc", "-q")
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain") == ""
    git("checkout", "-q", "HEAD~1")
    assert (work / "file-3").read_text() == "line 3\n" * 200


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite(mount: MountProcess, journal: str) -> None:
    path = mount.top / "bucket" / "db.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(f"pragma journal_mode={journal}")
        database.execute("create table t (k integer primary key, v blob)")
        for number in range(10):
            database.executemany("insert into t (v) values (?)", [(os.urandom(3000),) for _ in range(20)])
            database.commit()
            if number % 3 == 0:
                database.execute("delete from t where k % 3 = 0")
                database.commit()
    database.close()
    with sqlite3.connect(path) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert database.execute("select count(*) from t").fetchone()[0] > 100
    database.close()


def test_copying_a_tree_and_many_threads(mount: MountProcess) -> None:
    top = mount.top / "bucket"
    failures: list[OSError] = []

    def work(number: int) -> None:
        try:
            mine = top / f"thread-{number}"
            mine.mkdir()
            for turn in range(15):
                (mine / f"f{turn}").write_bytes(os.urandom(2000 * turn))
                os.rename(mine / f"f{turn}", mine / f"g{turn}")
            os.rename(mine, top / f"done-{number}")
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not failures
    assert sorted(os.listdir(top)) == [f"done-{number}" for number in range(6)]
    copied = mount.bounded("cp", "-a", "done-1", "copy") or mount.bounded("diff", "-r", "done-1", "copy")
    assert copied == ""
