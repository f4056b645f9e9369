"""Placement: which nodes a new segment is laid on. Pure functions.

A node's domain is a path like "zone/rack/host" (any depth, may be empty). No more than m
fragments of a stripe share a domain, on every level where the layout can achieve that,
so losing one whole domain loses no more than the code can bear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from engine.errors import StoreError, WritesStopped
from engine.interfaces import Node
from engine.nodes.descriptor import StoreDescriptor
from engine.types import NodeEntry

_Domain = tuple[str, ...]


def choose_nodes(healthy: Sequence[NodeEntry], k: int, m: int, rotation: int = 0) -> tuple[int, list[NodeEntry]]:
    """(k, nodes in fragment order) for a new segment. m never shrinks, k does: with fewer
    than k+m healthy nodes it is what remains beside m parity fragments. `rotation` is any
    growing number; it spreads data and parity over the nodes. Raises WritesStopped."""
    if len(healthy) < m + 1:
        names = ", ".join(sorted(node.node_id for node in healthy)) or "none"
        raise WritesStopped(
            f"writes need {m + 1} healthy nodes, {len(healthy)} of them can be written ({names}); "
            "bring nodes back or replace them"
        )
    k = min(k, len(healthy) - m)
    start = rotation % len(healthy)
    waiting = [*healthy[start:], *healthy[:start]]
    enforced = _separable_levels(healthy, k + m, m)
    counts: Counter[_Domain] = Counter()
    depth = max(len(_domains(node)) for node in healthy)
    chosen: list[NodeEntry] = []
    while len(chosen) < k + m:
        # The limits nest (a rack lies in one zone), so taking any node that breaks none of
        # them always reaches k+m; the least used domain first spreads further than asked.
        best = min(
            (node for node in waiting if all(counts[domain] < m for domain in _domains(node, enforced))),
            key=lambda node: _uses(node, counts, depth),
        )
        waiting.remove(best)
        chosen.append(best)
        counts.update(_domains(best))
    return k, chosen


def choose_spare(
    kept: Sequence[NodeEntry], spares: Sequence[NodeEntry], m: int, free: Mapping[str, int]
) -> NodeEntry | None:
    """The best of `spares` for one more fragment of a segment whose others lie on `kept`:
    one that keeps the rule if there is any, then the least used domain, then most room.
    None without spares."""
    if not spares:
        return None
    levels = _separable_levels([*kept, *spares], len(kept) + 1, m)
    depth = max(len(_domains(node)) for node in [*kept, *spares])
    counts: Counter[_Domain] = Counter()
    for node in kept:
        counts.update(_domains(node))

    def rank(node: NodeEntry) -> tuple[int, list[int], int]:
        broken = sum(counts[domain] >= m for domain in _domains(node, levels))
        return broken, _uses(node, counts, depth), -free.get(node.node_id, 0)

    return min(spares, key=rank)


def spare_keeps_rule(kept: Sequence[NodeEntry], spare: NodeEntry, nodes: Sequence[NodeEntry], m: int) -> bool:
    """Whether one more fragment on `spare`, beside those on `kept`, breaks no limit that
    the layout of `nodes` can keep."""
    levels = _separable_levels(nodes, len(kept) + 1, m)
    counts: Counter[_Domain] = Counter()
    for node in kept:
        counts.update(_domains(node))
    return all(counts[domain] < m for domain in _domains(spare, levels))


def crowded(places: Sequence[NodeEntry], nodes: Sequence[NodeEntry], m: int) -> list[int]:
    """Positions of the fragments in `places` by which a domain holds more than m of them,
    though the layout of `nodes` could separate them."""
    if not places:
        return []
    levels = _separable_levels(nodes, len(places), m)
    counts: Counter[_Domain] = Counter()
    found: list[int] = []
    for position, place in enumerate(places):
        domains = _domains(place, levels)
        if any(counts[domain] >= m for domain in domains):
            found.append(position)
        else:
            counts.update(domains)
    return found


def layout_warnings(descriptor: StoreDescriptor, nodes: Sequence[Node]) -> list[str]:
    """What the layout cannot survive, in words for init and status. Blocking."""
    devices: Counter[int] = Counter()
    for node in nodes:
        try:
            device = node.space().device
        except StoreError:
            continue  # a lost node is told of as such, not as a matter of layout
        if device:
            devices[device] += 1
    if not devices:
        return []
    k, m = descriptor.k, descriptor.m
    (device, most), known = devices.most_common(1)[0], devices.total()
    name = f"{device >> 8 & 0xFFF}:{device & 0xFF}"
    if len(devices) == 1 and known > 1:
        return [
            f"all {known} nodes are on one device ({name}): if it fails, all content is lost; code {k}+{m} can't help"
        ]
    if most > m:
        return [f"{most} of {known} nodes are on one device ({name}): code {k}+{m} survives the loss of {m} nodes only"]
    return []


def _uses(node: NodeEntry, counts: Counter[_Domain], depth: int) -> list[int]:
    """How often the node's domains are used. On levels it names none it is alone, so it is
    neither worse nor better than one in an unused domain."""
    uses = [counts[domain] for domain in _domains(node)]
    return uses + [0] * (depth - len(uses))


def _domains(node: NodeEntry, levels: set[int] | None = None) -> list[_Domain]:
    """The node's domains from the widest to the narrowest (without the node itself)."""
    parts = tuple(part for part in node.domain.split("/") if part)
    return [parts[:depth] for depth in range(1, len(parts) + 1) if levels is None or depth in levels]


def _separable_levels(nodes: Sequence[NodeEntry], wanted: int, m: int) -> set[int]:
    """The depths at which no domain need hold more than m of `wanted` fragments. The
    widest come first: surviving the loss of a zone matters more than that of a host."""
    levels: set[int] = set()
    for depth in range(1, max(len(_domains(node)) for node in nodes) + 1):
        if _room(nodes, levels | {depth}, m) >= wanted:
            levels.add(depth)
    return levels


def _room(nodes: Sequence[NodeEntry], levels: set[int], m: int) -> int:
    """How many nodes can be taken when each domain at `levels` gives at most m."""
    counts: Counter[_Domain] = Counter()
    taken = 0
    for node in nodes:
        domains = _domains(node, levels)
        if all(counts[domain] < m for domain in domains):
            counts.update(domains)
            taken += 1
    return taken
