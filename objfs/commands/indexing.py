"""objfs checkpoint and rebuild-index."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from objfs.commands.common import on_store

if TYPE_CHECKING:
    from engine.care.checkpoint import CheckpointResult
    from engine.care.rebuild import RebuildResult
    from engine.store import Store


def checkpoint(arguments: argparse.Namespace) -> int:
    from engine.care.checkpoint import checkpoint
    from objfs.progress import showing

    with showing() as report:

        async def run(store: Store) -> CheckpointResult:
            return await checkpoint(
                store.parts,
                report=report,
                bytes_per_second=arguments.limit,
                force=True,
                retention_days=arguments.journal_retention / 86400,
                archive_bytes_max=arguments.journal_bytes,
                waiting=lambda what: print(f"objfs: waiting for {what} to end", file=sys.stderr),
            )

        result = on_store(arguments.data, run)
    print(_json(result) if arguments.json else describe_checkpoint(result))
    return 0


def _json(result: object) -> str:
    return json.dumps(msgspec.to_builtins(result), indent=2)


def describe_checkpoint(result: CheckpointResult) -> str:
    from objfs.render import size

    lines = [
        f"index snapshot at LSN {result.snapshot_lsn:,} on {', '.join(sorted(result.snapshot_nodes))}",
        f"moved {result.moved_chunks:,} chunks ({size(result.moved_bytes)}) out of the journal, "
        f"archived {result.archived_records:,} records, freed {size(result.freed_bytes)} on the nodes",
    ]
    return "\n".join(lines + [f"note: {note}" for note in result.notes])


def rebuild_index(arguments: argparse.Namespace) -> int:
    from engine.care.rebuild import rebuild_index
    from objfs.progress import showing

    with showing() as report:

        async def run() -> RebuildResult:
            return await rebuild_index(Path(arguments.data), report=report)

        result = anyio.run(run)
    print(_json(result) if arguments.json else describe_rebuild(result))
    return 0


def describe_rebuild(result: RebuildResult) -> str:
    source = f"the snapshot at LSN {result.snapshot_lsn:,} and " if result.snapshot_lsn else ""
    lines = [
        f"rebuilt the index from {source}{result.replayed_records:,} journal records, up to LSN {result.end_lsn:,}, "
        f"in {result.seconds:.1f} s: {result.objects:,} objects, {result.versions:,} versions"
    ]
    if result.aside:
        lines.append(f"the former index is in {result.aside}; delete it when all is well")
    return "\n".join(lines + [f"note: done without a node: {problem}" for problem in result.missing])
