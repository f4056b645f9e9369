"""How many more losses what is stored survives now. Reads only."""

from __future__ import annotations

from collections.abc import Iterable

from engine.types import NodeEntry, NodeState, Segment

HOLDING = (NodeState.HEALTHY, NodeState.DRAINING)  # fragments on nodes in these states count


def holding(places: Iterable[NodeEntry]) -> set[str]:
    """Ids of the nodes whose fragments can be counted on."""
    return {place.node_id for place in places if place.state in HOLDING}


def losses_left(segment: Segment, holding: set[str]) -> int:
    """How many more of its fragments the segment can lose before anything in it can't be
    read; m is full protection, below 0 it can't be read now."""
    lost = set(segment.fragments_lost)
    whole = sum(1 for index, node_id in enumerate(segment.node_ids) if index not in lost and node_id in holding)
    return whole - segment.k


def protection(segments: Iterable[Segment], places: Iterable[NodeEntry]) -> dict[int, int]:
    """Stripes below full protection, by the losses they still survive, fewest first. A
    segment that is open counts as one stripe."""
    there = holding(places)
    counts: dict[int, int] = {}
    for segment in segments:
        left = losses_left(segment, there)
        if left < segment.m:
            counts[left] = counts.get(left, 0) + max(segment.stripes, 1)
    return dict(sorted(counts.items()))
