"""An index process that is killed between ordering, applying, syncing and answering: replay
brings the change back, and a client that asks again gets one answer, not two effects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from engine.changes import Condition, CreateBucket, Origin, PutVersion, SetBucketVersioning
from engine.crash_sites import CrashSite
from engine.errors import PreconditionFailed
from engine.store import Opening, Store, open_store
from engine.types import Content, Manifest, Versioning
from tests.badinput.world import ORIGIN, Image, get, run

ROOT = Path(__file__).parents[2]
SITES = [
    CrashSite.JOURNAL_EPOCH_NAMED,
    CrashSite.JOURNAL_EPOCH_OPENED,
    CrashSite.JOURNAL_FILE_CREATED,
    CrashSite.JOURNAL_PARTLY_WRITTEN,
    CrashSite.JOURNAL_WRITTEN,
    CrashSite.JOURNAL_TAIL_WRITTEN,
    CrashSite.JOURNAL_SYNCED,
    CrashSite.COMMIT_ORDERED,
    CrashSite.COMMIT_APPLIED,
]


def start(data: Path, site: CrashSite | None = None, count: int = 1) -> subprocess.Popen[bytes]:
    command = ["-m", "engine.process", str(data)]
    if site is not None:
        command = [str(Path(__file__).with_name("interrupted_index.py")), str(data), site.name, str(count)]
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def write(store: Store, number: int) -> str:
    """One version of "key", its bytes in a segment or in the record by turns, if the key
    still holds the version before it."""
    with store.pins.hold():
        writer = store.open_writer()
        await writer.write(content_of(number))
        condition = Condition(if_match=[f"etag{number - 1}"]) if number else Condition(if_none_match=["*"])
        change = PutVersion("racing", "key", await writer.finish(), f"etag{number}", condition=condition)
        result = await store.commit(change, Origin(requester="test", request_id=f"request{number}"))
    assert result.version is not None
    return result.version.version_id


def content_of(number: int) -> bytes:
    return f"content {number} ".encode() * (10 if number % 2 else 10_000)


ONCE_AN_EPOCH = [*SITES[1:3], CrashSite.JOURNAL_TAIL_WRITTEN]


@pytest.mark.parametrize(
    ("site", "count"), [(site, count) for site in SITES for count in (1, 3) if count == 1 or site not in ONCE_AN_EPOCH]
)
def test_a_commit_cut_off_anywhere_takes_effect_once(closed: Image, site: CrashSite, count: int) -> None:
    run(lambda: interrupted(closed, site, count))
    closed_contents = closed.contents

    async def after() -> None:
        async with open_store(closed.data) as store:
            versions = store.keymap.list_versions("racing").versions
            assert [version.etag for version in versions] == [f"etag{number}" for number in range(5, -1, -1)]
            head = store.keymap.head("racing", "key")
            assert head is not None
            assert b"".join([bytes(piece) async for piece in store.read(head.manifest)]) == content_of(5)
            for key, content in closed_contents.items():
                assert await get(store, key) == content
            assert await store.fsck() == []

    run(after)


async def interrupted(image: Image, site: CrashSite, count: int) -> None:
    """Six conditional writes in a row. The index dies during one of them; the client asks
    again by itself while the next index process comes up, and again when all is over."""
    index = await anyio.to_thread.run_sync(start, image.data)
    try:
        async with open_store(image.data, Opening.JOIN) as store:
            await store.commit(CreateBucket("racing"), ORIGIN)
            await store.commit(SetBucketVersioning("racing", Versioning.ENABLED), ORIGIN)
        stop(index)
        index = await anyio.to_thread.run_sync(start, image.data, site, count)
        async with open_store(image.data, Opening.JOIN) as store, anyio.create_task_group() as tasks:
            answers: list[str] = []
            died = False

            async def writes() -> None:
                for number in range(6):
                    answers.append(await write(store, number))

            tasks.start_soon(writes)
            with anyio.fail_after(60):
                while len(answers) < 6:
                    if index.poll() is not None:
                        assert index.returncode == -9 and not died
                        died = True
                        index = await anyio.to_thread.run_sync(start, image.data)
                    await anyio.sleep(0.02)
            assert died, "the index was to die on the way"
            assert len(set(answers)) == 6
            for number in range(6):  # the same request again: its first answer, no second effect
                assert await write(store, number) == answers[number]
            with pytest.raises(PreconditionFailed):
                await store.commit(
                    PutVersion(
                        "racing", "key", Content(Manifest([]), []), "late", condition=Condition(if_match=["etag2"])
                    ),
                    Origin(requester="test", request_id="late"),
                )
    finally:
        stop(index)
