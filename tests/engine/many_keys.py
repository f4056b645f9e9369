"""Run by test_many_keys.py as a process of its own, whose memory is measured: makes keys, goes through
all of them, and says how much memory of its own the process holds then; again and again.

    python many_keys.py DATA KEYS TIMES
"""

from __future__ import annotations

import gc
import re
import sys
from functools import partial
from pathlib import Path

import anyio

from engine import limits
from engine.changes import CreateBucket, Origin, PutVersion
from engine.keymap import schema
from engine.store import Store, init_store, open_store
from engine.types import Content, Manifest

WRITERS = 50

# What is bounded is filled soon.
limits.FEED_RECORDS_MAX = 500
schema.CACHE_KIBIBYTES = 1024


def own_bytes() -> int:
    """Not counting pages of files, which the kernel takes back when it needs them."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


async def put_some(store: Store, numbers: range) -> None:
    for number in numbers:
        key = f"{number:08d}".ljust(limits.KEY_BYTES_MAX, "k")
        change = PutVersion("bucket", key, Content(Manifest()), "e", user_metadata={"number": str(number)})
        await store.commit(change, Origin("test", f"request {number}"))


async def main(data: Path, keys: int, times: int) -> None:
    init_store(data)
    async with open_store(data) as store:
        await store.commit(CreateBucket("bucket"), Origin("test"))
        for time in range(times):
            async with anyio.create_task_group() as tasks:
                for writer in range(WRITERS):
                    tasks.start_soon(put_some, store, range(time * keys + writer, (time + 1) * keys, WRITERS))
            after, seen = "", 0
            while True:
                page = store.keymap.list_objects("bucket", after=after)
                seen += len(page.versions)
                if page.next_after is None:
                    break
                after = page.next_after
            with store.keymap.snapshot() as reader:
                assert seen == sum(1 for _ in reader.all_versions("bucket")) == (time + 1) * keys
            gc.collect()
            print(own_bytes(), flush=True)


if __name__ == "__main__":
    anyio.run(partial(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
