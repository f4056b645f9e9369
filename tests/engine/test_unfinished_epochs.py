"""A journal epoch whose opening is cut short takes nothing back.

What was answered before it was durable stays after the end of the process: it was written
to the replicas of the epoch before. A new epoch overrules that only once it holds it.
"""

from __future__ import annotations

import gc
from pathlib import Path

import anyio
import pytest

from engine.changes import CreateBucket, Origin, SetBucketTags
from engine.crash_sites import CrashSite, watch
from engine.errors import StoreError
from engine.index import local
from engine.index.opening import open_local_index
from engine.journal.recovery import JournalScan
from engine.nodes.memory import MemoryNode

pytestmark = pytest.mark.anyio
STORE_ID = "0123456789abcdef" * 2
ORIGIN = Origin("test")
SITES = [
    CrashSite.JOURNAL_EPOCH_NAMED,
    CrashSite.JOURNAL_EPOCH_OPENED,
    CrashSite.JOURNAL_FILE_CREATED,
    CrashSite.JOURNAL_PARTLY_WRITTEN,
    CrashSite.JOURNAL_TAIL_WRITTEN,
]


class Ended(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("site", SITES)
async def test_what_was_applied_outlives_an_unfinished_epoch(
    tmp_path: Path, site: CrashSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SYNC_DELAY_SECONDS", 0.2)
    nodes = {name: MemoryNode(name) for name in "abcdef"}
    directory = tmp_path / "index"
    armed = False

    def end(reached: CrashSite) -> None:
        if armed and reached is site:
            raise Ended

    async def live() -> None:
        nonlocal armed
        async with open_local_index(directory, nodes, store_id=STORE_ID, m=2, missing={}) as index:
            await index.commit(CreateBucket("bucket"), ORIGIN)
            member = next(name for name in nodes if any(n.endswith(".journal") for n in nodes[name].files))
            nodes[member].fault_next_sync()
            await index.commit(SetBucketTags("bucket", {"kept": "yes"}), ORIGIN, durable=False)
            armed = True  # applied and answered, and its sync will fail
            await anyio.sleep(5)

    reached_it = False
    with watch(end):
        try:
            await live()
        except* Ended:
            reached_it = True
    assert reached_it
    gc.collect()  # the connections of the process that ended

    for node in nodes.values():
        node.fault_none()
    for _ in range(2):  # the second time over what the first left
        async with open_local_index(directory, nodes, store_id=STORE_ID, m=2, missing={}) as index:
            assert index.keymap.bucket("bucket").tags == {"kept": "yes"}
            await index.commit(SetBucketTags("bucket", {"kept": "yes"}), ORIGIN)
    assert JournalScan(nodes, STORE_ID).unfinished == set()


async def test_an_epoch_that_lost_more_than_its_tail_is_damage(tmp_path: Path) -> None:
    """Records behind the missing one prove that it had been there: opening is refused."""
    nodes = {name: MemoryNode(name) for name in "abcdef"}
    directory = tmp_path / "index"
    async with open_local_index(directory, nodes, store_id=STORE_ID, m=2, missing={}) as index:
        await index.commit(CreateBucket("bucket"), ORIGIN)
        for number in range(3):
            await index.commit(SetBucketTags("bucket", {"n": str(number)}), ORIGIN)
    for node in nodes.values():
        for name in node.files:
            if name.endswith(".journal"):
                node.fault_corrupt(name, 48 + 10)
    with pytest.raises(StoreError, match="whole on no node"):
        async with open_local_index(directory, nodes, store_id=STORE_ID, m=2, missing={}):
            pass
