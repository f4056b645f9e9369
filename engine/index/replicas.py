"""Which nodes hold the copies of what is replicated: journal files, snapshots, archives."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from engine.types import NodeEntry, NodeState

# Where they are available, these miss older things; what is new is as safe there.
RETURNED = (NodeState.STALE, NodeState.REBUILDING, NodeState.LOST)


def choose_replicas(
    places: Iterable[NodeEntry],
    available: Iterable[str],
    count: int,
    excluded: set[str],
    turn: int = 0,
    states: Collection[NodeState] = (NodeState.HEALTHY,),
) -> list[str]:
    """Up to `count` ids of nodes in one of the `states` that are available, in separate
    domains where possible; `turn` says with which one to begin."""
    there = set(available)
    domains = {
        place.node_id: place.domain
        for place in places
        if place.state in states and place.node_id in there and place.node_id not in excluded
    }
    known = list(domains)
    start = turn % len(known) if known else 0
    waiting = known[start:] + known[:start]
    chosen: list[str] = []
    while waiting and len(chosen) < count:
        used = [domains[node_id] for node_id in chosen]
        best = min(waiting, key=lambda node_id: used.count(domains[node_id]))
        waiting.remove(best)
        chosen.append(best)
    return chosen
