"""What `objfs status` tells: nodes, health, space, ratios, lag. Reads only."""

from __future__ import annotations

from typing import Any

import anyio.to_thread

from engine.opening import Parts
from engine.types import NodeEntry, NodeState


async def collect_status(parts: Parts) -> dict[str, Any]:
    """A dict of JSON values; see README for the fields."""
    await parts.index.freshen()
    keymap = parts.index.keymap
    counters = keymap.counters()
    places = {place.node_id: place for place in keymap.nodes()}
    stored_on_nodes = await anyio.to_thread.run_sync(parts.nodes.used_bytes)
    total, free = parts.nodes.space()
    logical = counters.get("logical_bytes", 0)
    unique = counters.get("chunk_bytes", 0)
    frames = counters.get("stored_bytes", 0)
    applied, durable = keymap.applied_lsn(), parts.index.durable_lsn()
    under = await under_redundancy(parts)
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
                "used_bytes": stored_on_nodes.get(place.node_id),
            }
            for place in places.values()
        ],
        "warnings": parts.nodes.warnings(),
        "under_redundancy": under,
        "space": {"content_total": total, "content_free": free},
        "reserved": 0,
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
    """Stripes with a fragment on a node that is not healthy (or known not whole), plus
    journal records on fewer than m+1 available replicas."""
    healthy = {place.node_id for place in parts.index.keymap.nodes() if place.state is NodeState.HEALTHY}
    stripes = sum(
        max(segment.stripes, 1)
        for segment in parts.index.keymap.segments()
        if segment.fragments_lost or not healthy.issuperset(segment.node_ids)
    )
    return stripes + await parts.journal_under_redundancy()


def _health(places: list[NodeEntry], under: int, m: int) -> str:
    lost = sum(1 for place in places if place.state is not NodeState.HEALTHY)
    if lost > m:
        return "critical"
    return "degraded" if lost or under else "healthy"
