"""objfs gc and compact: free what nothing names. Work in this process, beside a running
server or alone, and return when the bytes are free."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import msgspec

from objfs.commands.common import on_store

if TYPE_CHECKING:
    from engine.care.collect import CollectionResult
    from engine.store import Store


def gc(arguments: argparse.Namespace) -> int:
    return _run(arguments, compact=False)


def compact(arguments: argparse.Namespace) -> int:
    return _run(arguments, compact=True)


def _run(arguments: argparse.Namespace, *, compact: bool) -> int:
    from engine.care.collect import collect
    from objfs.progress import showing

    with showing() as report:

        async def run(store: Store) -> CollectionResult:
            return await collect(
                store.parts,
                compact=compact,
                dry_run=arguments.dry_run,
                threshold=arguments.threshold if compact else 0.0,
                abandoned_after=arguments.abandoned_after,
                bytes_per_second=arguments.limit,
                wait_seconds=arguments.wait,
                report=report,
                waiting=lambda what: print(f"objfs: waiting for {what} to end", file=sys.stderr),
            )

        result = on_store(arguments.data, run)
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(result), indent=2))
    else:
        print(describe(result))
    return 1 if result.reasons or result.unsealed else 0


def describe(result: CollectionResult) -> str:
    """What `objfs gc` and `objfs compact` print."""
    from objfs.render import columns, size

    would = "would free" if result.dry_run else "freed"
    gone = f"{result.segments:,} segments and {result.journal_files:,} journal files"
    lines = [f"{would} {size(result.freed_bytes)} on the nodes: {gone}, {result.chunks:,} dead chunks"]
    if result.moved_bytes:
        lines.append(f"{'would move' if result.dry_run else 'moved'} {size(result.moved_bytes)} that is in use")
    if result.orphan_bytes:
        lines.append(f"{size(result.orphan_bytes)} of it was never part of anything, or only told where frames lie")
    for bucket, count in sorted(result.uploads.items()):
        ends = "would be aborted" if result.dry_run else "aborted"
        lines.append(f"bucket {bucket}: {count:,} abandoned uploads {ends}")
    if result.leftover_files:
        lines.append(f"{result.leftover_files:,} files of segments dropped earlier")
    if result.quarantined_files:
        lines.append(f"set aside {result.quarantined_files:,} files the index does not know, under quarantine/")
    for owner in result.unsealed:
        lines.append(f"writer {owner} did not seal its segment in time; what lies there is left for the next run")
    for reason in result.reasons:
        lines.append(f"left for the next run: {reason}")
    if result.buckets:
        rows = [("BUCKET", "STORED BYTES"), *((name, size(count)) for name, count in sorted(result.buckets.items()))]
        lines += ["", columns(rows)]
    return "\n".join(lines)
