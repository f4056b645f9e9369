"""objfs scrub, repair and quarantine list: check everything, rebuild what is damaged, show
what was set aside. Work in this process, beside a running server or alone."""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from objfs.commands.common import on_store

if TYPE_CHECKING:
    from engine.care.narrowing import NarrowResult
    from engine.care.repair import RepairResult
    from engine.care.scrub import ScrubResult
    from engine.quarantine import SetAside
    from engine.store import Store

PASS_NAME = "scrub-pass"  # in DATA/index: when a pass began that is not finished
NICENESS = 10  # those who wait for an answer go first
OBJECTS_MAX = 20  # names of unreadable objects that are shown
SETTLE_SECONDS = 15.0  # for nodes that miss nothing any more to be called healthy


def scrub(arguments: argparse.Namespace) -> int:
    """A pass that was interrupted goes on; --all begins a new one."""
    from engine.care import scrub as care
    from objfs.progress import showing

    os.nice(NICENESS)
    data = Path(arguments.data)
    began_ns = None if arguments.all else _unfinished_pass(data)

    async def run(store: Store) -> tuple[ScrubResult, list[str]]:
        _begin_pass(data, time.time_ns() if began_ns is None else began_ns)
        result = await care.scrub(
            store.parts, bytes_per_second=arguments.limit, report=report, older_than_ns=began_ns, seal=True
        )
        return result, await _names_of_unreadable(store, result)

    with showing() as report:
        result, objects = on_store(arguments.data, run)
    _end_pass(data)
    if arguments.json:
        print(json.dumps({**_builtins(result), "unreadable_objects": objects}, indent=2))
    else:
        print(describe_scrub(result, objects, continued=began_ns is not None))
    return 1 if result.damaged or result.unreadable or result.problems else 0


def describe_scrub(result: ScrubResult, objects: list[str], *, continued: bool) -> str:
    """What `objfs scrub` prints."""
    from objfs.render import size

    rate = size(int(result.checked_bytes / result.seconds)) if result.seconds else size(0)
    rest = "the rest of an interrupted pass: " if continued else ""
    lines = [
        f"checked {rest}{size(result.checked_bytes)} in {result.seconds:.1f} s ({rate}/s): "
        f"{result.segments:,} segments and {result.copies:,} journal, descriptor and snapshot files"
    ]
    lines += [f"damaged: {one.where} on node {one.node_id}: {one.reason}" for one in result.damaged]
    if result.damaged:
        lines.append("what is damaged is repaired by a running server, or by objfs repair")
    for one in result.unreadable:
        lines.append(f"unreadable: {len(one.chunk_ids):,} chunks of segment {one.segment_id:016x}: {one.reason}")
    lines += [f"unreadable object: {name}" for name in objects]
    if result.unreadable:
        lines.append("nothing was deleted; bring back the nodes or disks that hold good fragments, then objfs repair")
    lines += [f"not checked: {reason}" for reason in result.absent]
    lines += [f"problem: {problem}" for problem in result.problems]
    if len(lines) == 1:
        lines.append("everything is as it was written")
    return "\n".join(lines)


async def _names_of_unreadable(store: Store, result: ScrubResult) -> list[str]:
    """Objects that name a chunk that can't be read, at most OBJECTS_MAX."""
    from engine.care.survival import versions_naming
    from engine.read_path import ContentReader

    chunk_ids = {chunk_id for one in result.unreadable for chunk_id in one.chunk_ids}
    if not chunk_ids:
        return []
    reader = ContentReader(store.parts.plane, store.parts.index)
    found = await versions_naming(store.keymap, reader.expand, chunk_ids, OBJECTS_MAX + 1)
    names = [f"{version.bucket}/{version.key} version {version.version_id}" for version in found[:OBJECTS_MAX]]
    return [*names, "… and more; objfs fsck lists all"] if len(found) > OBJECTS_MAX else names


def repair(arguments: argparse.Namespace) -> int:
    from engine.care import repair as care
    from engine.care.narrowing import narrow
    from objfs.progress import showing

    os.nice(NICENESS)

    async def run(store: Store) -> tuple[RepairResult, NarrowResult | None, int]:
        repaired = await care.repair(
            store.parts, bytes_per_second=arguments.limit, report=report, grace_seconds=arguments.grace
        )
        narrowed = None
        if arguments.narrow:
            narrowed = await narrow(
                store.parts, bytes_per_second=arguments.limit, report=report, grace_seconds=arguments.grace
            )
        return repaired, narrowed, await _settled(store)

    with showing() as report:
        repaired, narrowed, under = on_store(arguments.data, run)
    if arguments.json:
        fields = {**_builtins(repaired), "under_redundancy": under}
        print(json.dumps({**fields, "narrowed": msgspec.to_builtins(narrowed)}, indent=2))
    else:
        print(describe_repair(repaired, narrowed, under))
    return 1 if under else 0


async def _settled(store: Store) -> int:
    """Stripes and journal records below full protection, once nodes had time to be called
    healthy again."""
    from engine.status import under_redundancy

    under = await under_redundancy(store.parts)
    with anyio.move_on_after(SETTLE_SECONDS):
        while under and any(str(place.state) in ("stale", "rebuilding") for place in store.keymap.nodes()):
            await anyio.sleep(0.25)
            under = await under_redundancy(store.parts)
    return under


def describe_repair(repaired: RepairResult, narrowed: NarrowResult | None, under: int) -> str:
    """What `objfs repair` prints."""
    from objfs.render import size

    rate = size(int(repaired.rebuilt_bytes / repaired.seconds)) if repaired.seconds else size(0)
    lines = [
        f"rebuilt {repaired.fragments:,} fragments of {repaired.segments:,} segments, "
        f"{size(repaired.rebuilt_bytes)} in {repaired.seconds:.1f} s ({rate}/s)"
    ]
    if narrowed is not None:
        lines.append(f"wrote {narrowed.segments:,} segments anew over fewer nodes, {size(narrowed.moved_bytes)}")
    left = repaired.left if narrowed is None else narrowed.left
    lines += [f"left: {reason}" for reason in left]
    for node_id in repaired.waiting:
        lines.append(
            f"left: node {node_id} was lost a moment ago; --grace 1s gives it up, or objfs node remove {node_id}"
        )
    state = "everything is fully protected" if not under else f"{under:,} stripes or records below full protection"
    return "\n".join([*lines, state])


def quarantine(arguments: argparse.Namespace) -> int:
    from engine.quarantine import list_quarantined

    async def run(store: Store) -> list[SetAside]:
        return await anyio.to_thread.run_sync(list_quarantined, dict(store.parts.nodes.nodes))

    found = on_store(arguments.data, run)
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        print(describe_quarantine(found) if found else "nothing is set aside")
    return 0


def describe_quarantine(found: list[SetAside]) -> str:
    """What, where, when and why."""
    from objfs.render import columns, size

    rows = [("WHAT", "NODE", "WHEN", "SIZE", "WHY")]
    for one in found:
        when = datetime.fromtimestamp(one.time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S") if one.time_ns else "-"
        rows.append((one.file, one.node_id, when, "-" if one.size is None else size(one.size), one.reason))
    return "\n".join([columns(rows), "", *(one.path for one in found)])


# -- a pass over everything --------------------------------------------------------


def _pass_path(data: Path) -> Path:
    return data / "index" / PASS_NAME


def _unfinished_pass(data: Path) -> int | None:
    """When the pass began that was not finished."""
    try:
        return int(_pass_path(data).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _begin_pass(data: Path, began_ns: int) -> None:
    _pass_path(data).write_text(f"{began_ns}\n")


def _end_pass(data: Path) -> None:
    _pass_path(data).unlink(missing_ok=True)


def _builtins(result: ScrubResult | RepairResult) -> dict[str, object]:
    """JSON values; chunk ids in hex."""

    def plain(value: object) -> object:
        if isinstance(value, bytes):
            return value.hex()
        raise TypeError(f"{value!r} is no JSON value")

    built: dict[str, object] = msgspec.to_builtins(result, builtin_types=(bytes,), enc_hook=plain)
    return json.loads(json.dumps(built, default=plain))  # type: ignore[no-any-return]
