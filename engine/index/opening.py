"""Opening the index of a store: recover the journal, bring the keymap up to date with it, serve.

An index that meets damage in its keymap ends, and leaves word that the next one is to build
the keymap anew. One at a time per store, in the process that owns it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from engine.care.reserve import LEND_BYTES, Reserve
from engine.index.local import LocalIndex
from engine.index.page import PageWriter
from engine.index.replay import bring_up_to_date
from engine.index.room import CommitRoom
from engine.interfaces import Node
from engine.keymap.page_sums import mark_damaged
from engine.keymap.reader import SqliteKeymap
from engine.keymap.soundness import KeymapCheck, is_damage

EPOCHS_SKIPPED = 1024  # after opening without all nodes: more than a failing process can have begun on them


@asynccontextmanager
async def open_local_index(
    directory: Path,
    nodes: Mapping[str, Node],
    *,
    store_id: str,
    m: int,
    missing: Mapping[str, str],
    reserve: Reserve | None = None,
) -> AsyncIterator[LocalIndex]:
    """Recover the journal from `nodes`, bring the keymap in `directory` up to date with it
    and serve commits. `missing` names the store's nodes that are not in `nodes`, with
    reasons. With a `reserve`, content is refused before the disks are full. Raises
    NodeUnavailable, JournalCorrupt, UnknownFormat, WrongStore."""
    directory.mkdir(parents=True, exist_ok=True)
    if reserve is not None:  # a full disk must not keep the store from opening
        await anyio.to_thread.run_sync(reserve.lend, LEND_BYTES)
    opened = await anyio.to_thread.run_sync(
        lambda: bring_up_to_date(directory / "keymap.sqlite", dict(nodes), store_id, m, missing)
    )
    path = directory / "keymap.sqlite"
    index = LocalIndex(
        path,
        opened.db,
        opened.sums,
        SqliteKeymap(path),
        PageWriter(directory / "page"),
        nodes,
        store_id=store_id,
        m=m,
        last_epoch=opened.last_epoch,
        epochs_skipped=max(opened.last_number - opened.last_epoch, 0) + (EPOCHS_SKIPPED if missing else 0),
        end_lsn=opened.end_lsn,
        last_time_ns=opened.last_time_ns,
        commit_room=None if reserve is None else CommitRoom(reserve, directory, m + 1),
    )
    index.distrust(opened.nodes_behind)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, index, path)
        if opened.check is not None:
            tasks.start_soon(_finish_check, opened.check)
        try:
            yield index
        finally:
            if opened.check is not None:
                opened.check.stop()
            with anyio.CancelScope(shield=True):
                await index.aclose()
                tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await index.close()


async def _run(index: LocalIndex, path: Path) -> None:
    """An index that meets damage in its keymap leaves word for the next one."""
    try:
        await index.run()
    except* sqlite3.DatabaseError as group:
        damage = group.subgroup(is_damage)
        if damage is not None:
            await anyio.to_thread.run_sync(mark_damaged, path, "SQLite could not read it")
        raise


async def _finish_check(check: KeymapCheck) -> None:
    """Raises KeymapDamaged, which ends the index; the next open builds the keymap again."""
    problem = await anyio.to_thread.run_sync(check.run, abandon_on_cancel=True)
    if problem is not None:
        raise check.tell(problem)
