"""Before each 2xx, and before fsync returns at the mount, what it acknowledges is safe on
m+1 nodes or more. The lossy filesystem says what was safe when; a kill could not tell.

Every sync takes a while here, so that an answer that does not wait for it comes first.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

running = pytest.importorskip("running")  # tools/running.py, on the path by conftest.py

from doors import MULTIPART_BYTES_MIN, MountDoor, S3Door  # noqa: E402
from served import BUCKET, ServedStore  # noqa: E402
from sync_trace import Answered, Judge  # noqa: E402

from engine.nodes.descriptor import read_store_descriptor  # noqa: E402
from engine.nodeset import NodeSet  # noqa: E402
from engine.store import Opening, open_store  # noqa: E402

SYNC_SECONDS = 0.03
SIZES = (1, 5_000, 70_000, 400_000, 3_000_000)
M = 2
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not running.can_mount(), reason="no /dev/fuse here")]

Note = Callable[[str, str, int], None]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the servers are processes of their own, whatever runs here


def work_at_s3(served: ServedStore, name: str, rng: random.Random, note: Note) -> None:
    door = S3Door(served.environment, BUCKET)
    for number, size in enumerate(SIZES * 2):
        key = f"{name}/{number}"
        assert door.put(key, rng.randbytes(size))
        note("put", key, size)
        if number % 3 == 0:
            assert door.delete(key)
            note("delete", key, 0)
    door.put_in_parts(f"{name}/parts", [rng.randbytes(MULTIPART_BYTES_MIN), b"end"])
    note("put", f"{name}/parts", MULTIPART_BYTES_MIN + 3)
    door.close()


def work_at_mount(served: ServedStore, name: str, rng: random.Random, note: Note) -> None:
    (served.bucket_path / name).mkdir()
    door = MountDoor(served.bucket_path / name)
    door.open_directory()
    for number, size in enumerate(SIZES * 2):
        descriptor = door.open(str(number), 0o302)  # O_CREAT | O_EXCL | O_RDWR
        assert door.write(descriptor, rng.randbytes(size), 0) == size
        door.sync(descriptor)
        note("put", f"{name}/{number}", size)
        door.close_file(descriptor)
        if number % 3 == 0:
            door.rename(str(number), f"renamed{number}")
            door.sync_directory()
            note("rename", f"{name}/renamed{number}", 0)
        if number % 3 == 1:
            door.unlink(str(number))
            door.sync_directory()
            note("delete", f"{name}/{number}", 0)
    door.close()


def answers_of(served: ServedStore, failing: Sequence[str]) -> list[Answered]:
    """Several clients at both doors; what was answered, and when. A sync or a write fails
    now and then on the disks of the `failing` nodes."""
    answers: list[Answered] = []
    failures: list[BaseException] = []

    def note(kind: str, key: str, size: int) -> None:
        answers.append(Answered(kind, key, time.monotonic_ns(), size))

    def run(work: Callable[..., None], name: str) -> None:
        try:
            work(served, name, random.Random(name), note)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    work = ((work_at_s3, "s0"), (work_at_s3, "s1"), (work_at_mount, "m0"))
    threads = [threading.Thread(target=run, args=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    rng = random.Random("failing")
    while failing and any(thread.is_alive() for thread in threads):
        served.disks.command("fail", rng.choice(failing), rng.choice(("sync", "sync", "write")), 1)
        time.sleep(0.5)
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive(), "a client hangs"
    if failures:
        raise failures[0]
    return answers


async def problems_of(
    directory: Path, program: list[str | Path] | None = None, failing: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """How many answers a server gave, and which of them too early."""
    served = ServedStore(directory, logged=True)
    try:
        if program is not None:
            served.store.program = program
        served.start()
        S3Door(served.environment, BUCKET).request("PUT")
        served.disks.command("sync delay", SYNC_SECONDS)
        answers = answers_of(served, failing)
        served.disks.command("sync delay", 0.0)
        assert not failing or "Input/output error" in served.store.log.read_text(), "no disk failed"
        served.stop()
        served.disks.command("flush")
        log = served.disks.log
        assert log is not None
        async with open_store(served.data, Opening.OWN) as store:
            nodes = NodeSet(read_store_descriptor(served.data))
            paths = {place.node_id: Path(place.path).name for place in nodes.descriptor.nodes}
            try:
                return len(answers), await Judge(log, store, nodes, paths, M).problems(answers)
            finally:
                nodes.close()
    finally:
        served.close()


async def test_every_answer_comes_after_the_syncs_it_needs(tmp_path: Path) -> None:
    answers, problems = await problems_of(tmp_path)
    assert not problems, "\n".join(problems[:20])
    assert answers == 47


async def test_answers_wait_for_enough_nodes_while_disks_fail(tmp_path: Path) -> None:
    answers, problems = await problems_of(tmp_path, failing=["node2", "node5"])
    assert not problems, "\n".join(problems[:20])
    assert answers == 47, "with m+1 healthy nodes, writes go on"


@pytest.mark.parametrize("what", ["journal", "one replica", "segments", "late"])
async def test_the_trace_shows_a_server_that_does_not_sync(tmp_path: Path, what: str) -> None:
    broken = Path(__file__).with_name("without_sync.py")
    _answers, problems = await problems_of(tmp_path, [sys.executable, broken, what])
    expected = {"journal": "record", "one replica": "record", "segments": "stripe", "late": "record"}[what]
    assert any(expected in problem for problem in problems), f"{what}: {problems[:3]}"
