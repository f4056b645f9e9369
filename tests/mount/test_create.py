"""What create answers when another door is quick to undo it. The operations are called as
the kernel would call them: the moment in question is too short to be hit from outside."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.changes import CreateBucket, DeleteKey, Door, Origin, PutVersion
from engine.store import init_store, open_store
from objfs.mount.operations import Operations

OTHER_DOOR = Origin(requester="other", door=Door.S3)
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def test_a_file_removed_as_soon_as_it_was_made_is_open_all_the_same(tmp_path: Path) -> None:
    context: Any = SimpleNamespace(uid=os.getuid(), gid=os.getgid(), pid=1, umask=0o022)
    init_store(tmp_path / "data")
    async with open_store(tmp_path / "data") as store:
        await store.commit(CreateBucket("bucket"), OTHER_DOOR)
        operations = Operations(store)
        bucket = await operations.lookup(operations.state.table.root.inode, b"bucket", context)
        true_commit = operations.state.commit

        async def commit_and_lose(change: Any, *arguments: Any, **named: Any) -> Any:
            result = await true_commit(change, *arguments, **named)
            if isinstance(change, PutVersion):
                await store.commit(DeleteKey("bucket", change.key), OTHER_DOOR)
            return result

        operations.state.commit = commit_and_lose  # type: ignore[method-assign]
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        info, entry = await operations.create(bucket.st_ino, b"key", 0o644, flags, context)
        assert entry.entry_timeout == 0, "the name leads nowhere"
        assert await operations.write(info.fh, 0, b"content") == 7
        assert bytes(await operations.read(info.fh, 0, 10)) == b"content"
        await operations.release(info.fh)
        assert store.keymap.head("bucket", "key") is None, "what was removed stays so"
