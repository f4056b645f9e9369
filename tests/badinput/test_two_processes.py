"""Several processes on one store: a second owner is refused by name, others join."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.store import Opening, open_store
from tests.badinput.world import Image, put, run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours that has printed its line of readiness."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready"), process.stderr.read() if process.stderr else ""
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def done(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=ENVIRONMENT, timeout=90, check=False
    )


def serve(image: Image) -> list[str]:
    return ["objfs", "serve", "--data", str(image.data), "--listen", "127.0.0.1:0"]


@pytest.mark.parametrize("first", [[], ["--workers", "0"]])
@pytest.mark.parametrize("second", [[], ["--workers", "0"]])
def test_a_second_server_is_refused_by_name_and_the_first_goes_on(
    closed: Image, first: list[str], second: list[str]
) -> None:
    with started(*serve(closed), *first) as server:
        refused = done(*serve(closed), *second)
        assert refused.returncode == 1, refused
        assert refused.stdout == ""
        (line,) = refused.stderr.splitlines()
        assert line.startswith("objfs: ") and str(closed.data) in line, line
        assert "stop it first" in line, line
        assert server.poll() is None
        joined = done("objfs", "status", "--data", str(closed.data))
        assert (joined.returncode, joined.stderr) == (0, ""), joined
    closed.check()


def test_a_second_index_process_is_refused_by_name(closed: Image) -> None:
    with started("engine.process", str(closed.data)):
        refused = done("engine.process", str(closed.data))
        assert refused.returncode == 1, refused
        (line,) = refused.stderr.splitlines()
        assert line == f"objfs: {closed.data} is open in another process; stop it first"

        async def joins() -> None:
            async with open_store(closed.data, Opening.EITHER) as store:
                await closed.check_open(store)
                await put(store, "joined", b"joined" * 20_000)

        run(joins)
    contents, closed.contents = closed.contents, closed.contents | {"joined": b"joined" * 20_000}
    try:
        closed.check()
    finally:
        closed.contents = contents


def test_a_worker_does_not_open_a_store_nobody_owns(closed: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.opening.JOIN_SECONDS", 0.3)

    async def joins() -> str:
        try:
            async with open_store(closed.data, Opening.JOIN):
                pass
        except StoreError as error:
            return f"{type(error).__name__}: {error}"
        raise AssertionError("it was opened")

    message = run(joins)
    assert message.startswith("StoreInUse: ") and str(closed.data) in message and "index.sock" in message, message
    closed.check()


def test_an_owner_that_hangs_is_named(closed: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lock and does not answer: nobody takes its place."""
    monkeypatch.setattr("engine.opening.JOIN_SECONDS", 0.3)
    holder = (
        "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(closed.data / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        message = closed.refused()
        assert message.startswith("StoreInUse: ") and "does not answer" in message, message
        assert str(closed.data) in message
    finally:
        process.communicate()
    closed.check()
