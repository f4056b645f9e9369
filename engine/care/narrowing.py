"""Narrowing: segments that cannot get all their fragments back, because too few nodes are
left, are written anew over the nodes there are, with smaller k and the same m.

Their chunks are copied forward into new segments, which placement lays over the healthy
nodes; what is left of the old ones is nobody's, and collection deletes it once nothing can
be reading it any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread
from msgspec import Struct

from engine.care.collect import collect
from engine.care.lock import care_lock
from engine.care.moving import move_chunks
from engine.care.pace import Meter, Report, Throttle, silent
from engine.care.repair import Need, make_plan
from engine.errors import StoreError
from engine.opening import Parts


class NarrowResult(Struct):
    """`left`: what could not be written anew, and why."""

    segments: int = 0
    moved_bytes: int = 0
    left: list[str] = []


async def narrow(
    parts: Parts,
    *,
    bytes_per_second: int | None = None,
    report: Report = silent,
    grace_seconds: float = 0.0,
) -> NarrowResult:
    """Write anew every segment that still needs a fragment moved; to be called when repair
    has done what it can. Raises NodeFull, WritesStopped, CollectionStopped."""
    await parts.index.freshen()
    with parts.index.keymap.snapshot() as keymap:
        plan = await anyio.to_thread.run_sync(make_plan, keymap, dict(parts.nodes.nodes), grace_seconds)
    needs = [need for need in plan.needs if need.moves]
    result = NarrowResult()
    if needs:
        await _move_all(parts, needs, Throttle(bytes_per_second), report, result)
        await collect(parts, bytes_per_second=bytes_per_second, report=report)
    return result


async def _move_all(
    parts: Parts, needs: Sequence[Need], throttle: Throttle, report: Report, result: NarrowResult
) -> None:
    keymap = parts.index.keymap
    meter = Meter("narrow", sum(need.segment.size * need.segment.k for need in needs), report)
    for need in needs:
        segment_id = need.segment.segment_id
        async with care_lock(parts.data, "repair"):
            chunks = keymap.chunks_in(segment_id)
            try:
                await move_chunks(parts, chunks, throttle, meter)
            except StoreError as error:
                result.left.append(f"segment {segment_id:016x}: {error}")
                continue
        result.segments += 1
        result.moved_bytes += sum(chunk.stored for chunk in chunks)
    await parts.plane.seal()
    meter.tell()
