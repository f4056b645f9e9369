"""Rebuilding the index from the nodes alone.

DATA/index is set aside and made anew: the keymap from the newest index snapshot and the
journal after it, everything else when it is next used. The same happens by itself when an
index is missing or found damaged at open; this is for whoever wants it now. Only while
nobody has the store open.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from engine.care.pace import Meter, Report, silent
from engine.errors import StoreInUse
from engine.index.replay import OpenedKeymap, bring_up_to_date
from engine.keymap.counting import read_counters
from engine.keymap.soundness import close_soundly
from engine.nodes.descriptor import read_store_descriptor
from engine.nodes.directory import DirectoryNode
from engine.nodeset import NodeOpener, NodeSet
from engine.opening import owner_lock

ASIDE_NAME = "index.aside"  # in DATA: the index as it was before the last rebuild


class RebuildResult(Struct):
    """`snapshot_lsn`: 0 when there was no snapshot and the whole journal was replayed.
    `aside`: where the former index is now ("" if there was none)."""

    snapshot_lsn: int
    replayed_records: int
    end_lsn: int
    objects: int
    versions: int
    seconds: float
    aside: str
    missing: list[str]  # what is wrong with nodes that could not be used


async def rebuild_index(
    data: Path, *, report: Report = silent, node_opener: NodeOpener = DirectoryNode
) -> RebuildResult:
    """Raises StoreInUse, NotAStore, and what opening a store raises; the former index is in
    its place again then."""
    return await anyio.to_thread.run_sync(_rebuild, data.absolute(), report, node_opener)


def _rebuild(data: Path, report: Report, node_opener: NodeOpener) -> RebuildResult:
    descriptor = read_store_descriptor(data)
    with owner_lock(data) as owned:
        if not owned:
            raise StoreInUse(f"{data} is open in another process; stop objfs serve and unmount, then rebuild")
        started = time.monotonic()
        index, aside = data / "index", data / ASIDE_NAME
        nodes = NodeSet(descriptor, node_opener)
        try:
            was_there = _set_aside(index, aside)
            try:
                opened = bring_up_to_date(
                    index / "keymap.sqlite",
                    dict(nodes.nodes),
                    descriptor.store_id,
                    descriptor.m,
                    nodes.missing,
                    told=_telling(report),
                )
            except BaseException:
                if was_there:
                    shutil.rmtree(index)
                    aside.rename(index)
                raise
            counters = read_counters(opened.db)
            close_soundly(opened.db, opened.sums)
        finally:
            nodes.close()
    return RebuildResult(
        snapshot_lsn=_snapshot_lsn(opened),
        replayed_records=opened.replayed,
        end_lsn=opened.end_lsn,
        objects=counters["objects"],
        versions=counters["versions"],
        seconds=time.monotonic() - started,
        aside=str(aside) if was_there else "",
        missing=list(nodes.missing.values()),
    )


def _set_aside(index: Path, aside: Path) -> bool:
    was_there = index.is_dir()
    if was_there:
        if aside.exists():
            shutil.rmtree(aside)
        index.rename(aside)
    index.mkdir()
    return was_there


def _snapshot_lsn(opened: OpenedKeymap) -> int:
    assert opened.snapshot_lsn is not None, "there was no keymap to keep"
    return opened.snapshot_lsn


def _telling(report: Report) -> Callable[[str, int, int], None]:
    """Progress as Meters tell it, one for each thing that is done."""
    meters: dict[str, Meter] = {}

    def told(what: str, done: int, total: int) -> None:
        meter = meters.setdefault(what, Meter(what, total, report))
        meter.total = total
        meter.add(done - meter.done)

    return told
