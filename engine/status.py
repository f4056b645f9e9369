"""What `objfs status` tells: nodes, health, space, ratios, lag. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from engine.care.survival import HOLDING, protection
from engine.care.underway import under_way
from engine.errors import IndexUnavailable, QueryFailed
from engine.opening import Parts
from engine.quarantine import count_quarantined
from engine.types import NodeEntry, Segment, SegmentState

OBJECTS_SECONDS = 5.0  # how long status waits for the tables to count


async def collect_status(parts: Parts) -> dict[str, Any]:
    """A dict of JSON values; see README for the fields."""
    await parts.index.freshen()
    keymap = parts.index.keymap
    counters = keymap.counters()
    places = {place.node_id: place for place in keymap.nodes()}
    stored_on_nodes = await anyio.to_thread.run_sync(parts.nodes.used_bytes)
    total, free = await anyio.to_thread.run_sync(parts.nodes.space)
    reserved = sum((await anyio.to_thread.run_sync(parts.nodes.reserve.look)).held.values())
    logical = counters.get("logical_bytes", 0)
    unique = counters.get("chunk_bytes", 0)
    frames = counters.get("stored_bytes", 0)
    applied, durable = keymap.applied_lsn(), parts.index.durable_lsn()
    segments = list(keymap.segments())
    below = protection(segments, places.values())
    under = sum(below.values()) + await parts.journal_under_redundancy()
    quarantined = await anyio.to_thread.run_sync(count_quarantined, dict(parts.nodes.nodes))
    return {
        "store_id": parts.descriptor.store_id,
        "code": f"{parts.descriptor.k}+{parts.descriptor.m}",
        "health": _health(list(places.values()), under, parts.descriptor.m),
        "nodes": [
            {
                "id": place.node_id,
                "path": place.path,
                "domain": place.domain,
                "state": str(place.state),
                "drains_again": place.drains_again,
                "used_bytes": stored_on_nodes.get(place.node_id),
            }
            for place in places.values()
        ],
        "warnings": parts.nodes.warnings(),
        "under_redundancy": under,
        "protection": {str(left): stripes for left, stripes in below.items()},
        "objects_below": await _objects_below(parts) if under else {},
        "scrub": _scrubbed(segments),
        "quarantined": quarantined,
        "under_way": msgspec.to_builtins(under_way(parts.data)),
        "space": {"content_total": total, "content_free": free},
        "reserved": reserved,
        "objects": counters.get("objects", 0),
        "versions": counters.get("versions", 0),
        "logical_bytes": logical,
        "unique_bytes": unique,
        "frame_bytes": frames,
        "node_bytes": sum(size for size in stored_on_nodes.values() if size is not None),
        "dedup_ratio": round(logical / unique, 3) if unique else 1.0,
        "compression_ratio": round(unique / frames, 3) if frames else 1.0,
        "journal": {"ordered_lsn": applied, "durable_lsn": durable, "lag_records": max(applied - durable, 0)},
        "tables": {"lag_records": await parts.tables_lag()},
        "oldest_pin": None,
        "hidden_keys": keymap.hidden_keys(),
    }


async def under_redundancy(parts: Parts) -> int:
    """Stripes below full protection, plus journal records, snapshots and archives on fewer
    than m+1 available nodes."""
    keymap = parts.index.keymap
    return sum(protection(keymap.segments(), keymap.nodes()).values()) + await parts.journal_under_redundancy()


async def _objects_below(parts: Parts) -> dict[str, int] | None:
    """Objects below full protection, by the losses they still survive. None while nobody
    serves the tables, or while they are too busy to answer soon."""
    from engine.tables.client import query  # the status of a store must not import duckdb

    m = parts.descriptor.m
    sql = f"SELECT losses_left, count(*) FROM protection WHERE is_latest AND losses_left < {m} GROUP BY 1 ORDER BY 1"
    with anyio.move_on_after(OBJECTS_SECONDS):
        try:
            left, counts = (column.to_pylist() for column in (await query(parts.data, sql)).columns)
            return dict(zip(map(str, left), counts, strict=True))
        except (IndexUnavailable, QueryFailed):
            return None
    return None


def _scrubbed(segments: Sequence[Segment]) -> dict[str, int | None]:
    """How long ago what was not checked for longest was checked. What was never checked is
    counted apart."""
    times = [one.scrubbed_ns for one in segments if one.state is SegmentState.SEALED]
    checked = [time_ns for time_ns in times if time_ns]
    return {"oldest_checked_ns": min(checked, default=None), "unchecked_segments": len(times) - len(checked)}


def _health(places: list[NodeEntry], under: int, m: int) -> str:
    lost = sum(1 for place in places if place.state not in HOLDING)
    if lost > m:
        return "critical"
    return "degraded" if lost or under else "healthy"
